"""A VM that boots from a revision: until its guest agent answers, beside a whole restore."""

import shlex
import time
from contextlib import closing
from pathlib import Path

from benchmarks.measure import output_of
from benchmarks.ours import JOB
from benchmarks.trial import Command, Trial

STEPS = ("agent", "restore")
RUNS = 3
_UNTIL_THE_AGENT_ANSWERS = """
{boot} >{log} 2>&1 &
until grep -q 'guest agent' {log}; do kill -0 $! || exit 1; sleep 0.05; done
kill $!
"""


def boot(trial: Trial) -> None:
    """`agent`: until the agent of an emulated guest answers. `restore`: all disks, whole."""
    from tests.lab.bootable import boot_disk, data_disk  # noqa: PLC0415 - needs pytest

    backy = [str(trial.settings.backy), "--base-dir", str(trial.folder / "base")]
    disks = (boot_disk(trial.folder / "boot.img"), data_disk(trial.folder / "data.img"))
    places = zip(("vda", "vdb", "vdc"), (*disks, trial.workload.image), strict=True)
    sources = [word for name, path in places for word in ("--source", f"{name}={path}")]
    output_of([*backy, "backup", JOB, "--store", "chunks", *sources])
    for number in range(RUNS):
        folder, restored = trial.folder / f"vm{number}", trial.folder / "restored"
        options = ["--state", str(folder), "--rate", "50MiB"]  # so that it is not done before
        words = shlex.join([*backy, "boot", JOB, *options])
        script = _UNTIL_THE_AGENT_ANSWERS.format(boot=words, log=trial.folder / "boot.log")
        try:
            trial.time("agent", Command(["sh", "-c", script]), sync=False, quiet=True)
        finally:
            _end(folder)
        restored.mkdir(exist_ok=True)
        command = Command([*backy, "restore", JOB, f"{restored}/", "--overwrite"])
        trial.time("restore", command, quiet=True)
        for path in (*folder.glob("*.qcow2"), *restored.iterdir()):
            trial.drop(path)
    trial.say(f"{RUNS} runs")


def _end(folder: Path) -> None:
    """End what still runs there."""
    from backy.system.detached import listening_at  # noqa: PLC0415 - only this row needs backy

    for name in ("control.sock", "backy.sock"):
        if program := listening_at(folder / name):
            with closing(program):
                program.stop(within_seconds=1)
    time.sleep(0.1)
