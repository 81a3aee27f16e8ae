"""A disk of a mounted repository, read whole by dd, beside the plain image."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import BenchmarkError, output_of
from benchmarks.ours import JOB
from benchmarks.trial import Command, Trial

RUNS = 3
PATIENCE_SECONDS = 30


def mount(trial: Trial) -> None:
    """`first`: from stored blocks. `cached`: once more. `plain`: the image itself, cached."""
    image = trial.workload.image
    backy = [str(trial.settings.backy), "--base-dir", str(trial.folder / "base")]
    output_of([*backy, "backup", JOB, "--source", str(image), "--store", "chunks"])
    folder = trial.folder / "seen"
    folder.mkdir()
    for _ in range(RUNS):
        with _mounted([*backy, "mount", str(folder)], folder):
            for step in ("first", "cached"):
                trial.time(step, _dd(folder / JOB / "latest" / "vda.img"), sync=False, quiet=True)
        trial.time("plain", _dd(image, reads=image), sync=False, quiet=True)
    trial.say(f"{RUNS} runs")


def _dd(path: Path, reads: Path | None = None) -> Command:
    return Command(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], reads=reads)


@contextmanager
def _mounted(command: list[str], folder: Path) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + PATIENCE_SECONDS
            while not (folder / JOB).exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise BenchmarkError("backy mount does not show anything")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
