"""The rows of the reader: four restores at once, and a medium that answers late."""

import os
import shlex
from pathlib import Path

from benchmarks.measure import output_of
from benchmarks.ours import JOB
from benchmarks.space import GIB, MIB
from benchmarks.trial import Command, Trial, on_floor

TOGETHER = 4
LATE_BYTES = 1 * GIB
ROOM_BYTES = 3 * GIB


def together(trial: Trial) -> None:
    """Restore a quarter of the image alone, and four times at once to files of their own."""
    part = _part(trial, trial.workload.size_bytes // TOGETHER // MIB * MIB)
    base = trial.folder / "base"
    backup = [trial.settings.backy, "--base-dir", base, "backup", JOB, "--source", part]
    output_of([*map(str, backup), "--store", "chunks"])
    targets = [trial.folder / f"restored{number}.img" for number in range(TOGETHER)]
    restores = [
        shlex.join(
            [str(trial.settings.backy), "--base-dir", str(base), "restore", JOB, str(target)]
        )
        for target in targets
    ]
    trial.read_back("restore", Command(["sh", "-c", restores[0]]), base)
    trial.drop(targets[0])
    # Each is waited for by its process id, so that one that fails is not overlooked.
    script = "".join(f"{restore} & p{number}=$!\n" for number, restore in enumerate(restores))
    script += " && ".join(f"wait $p{number}" for number in range(TOGETHER))
    trial.read_back("four restores", Command(["sh", "-c", script]), base)
    for target in targets:
        trial.compare(target, part)
    trial.drop(part)


def latency(trial: Trial) -> None:
    """Restore and verify from ext4 on a medium whose reads take 10 ms more, with nothing cached."""
    from tests.lab.delayed import delayed_file_system  # noqa: PLC0415 - it needs pytest

    part = _part(trial, min(LATE_BYTES, trial.workload.size_bytes))
    restored = trial.folder / "restored.img"
    with delayed_file_system(ROOM_BYTES) as medium:
        base = medium.folder / "base"
        backy: list[str | Path] = [trial.settings.backy, "--base-dir", base]
        backup = [*backy, "backup", JOB, "--source", part, "--store", "chunks"]
        output_of([str(word) for word in backup])
        medium.mount()
        on_floor(trial, "one-by-one", base, MIB, step="one read after the other")
        medium.mount()
        trial.time("restore", Command([*backy, "restore", JOB, restored]))
        medium.mount()
        trial.time("verify", Command([*backy, "verify", JOB]))
    trial.compare(restored, part)
    trial.drop(part)


def _part(trial: Trial, size_bytes: int) -> Path:
    """The beginning of the image, as a file of its own."""
    part = trial.folder / "part.img"
    words = ["dd", f"if={trial.workload.image}", f"of={part}", "bs=1M", "conv=sparse,fsync"]
    output_of([*words, f"count={size_bytes // MIB}", "status=none"])
    os.truncate(part, size_bytes)  # dd makes no hole at the end
    return part
