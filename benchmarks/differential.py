"""What a restore costs to a target that has most of the disk already, beside a whole one.

In one row: to a new file; to the same file after one block in a hundred was overwritten; and to a
new file of which half was written before, as an interrupted restore leaves it.
"""

import os
import random
from pathlib import Path

from benchmarks.measure import BenchmarkError, output_of
from benchmarks.ours import JOB
from benchmarks.space import MIB
from benchmarks.trial import Command, Trial
from benchmarks.workload import SEED

STEPS = ("restore", "restore 1 %", "restore resumed")
ONE_IN = 100


def differential(trial: Trial) -> None:
    """The store is chunks; the target is on the file system of the work folder."""
    base, target, image = trial.folder / "base", trial.folder / "target.img", trial.workload.image
    backy: list[str | Path] = [trial.settings.backy, "--base-dir", base]
    whole, one_percent, resumed = STEPS
    output_of([*map(str, backy), "backup", JOB, "--source", str(image), "--store", "chunks"])
    restore = Command([*backy, "restore", JOB, target])
    trial.read_back(whole, restore, base)
    _compare(image, target)
    _spoil(target)
    over = Command([*restore.words, "--overwrite"])
    trial.read_back(one_percent, over, base)
    _compare(image, target)
    os.truncate(target, trial.workload.size_bytes // 2)
    target.rename(target.with_name(f".{target.name}.partial"))
    trial.read_back(resumed, restore, base)
    trial.compare(target, image)


def _spoil(target: Path) -> None:
    """Overwrite one MiB in a hundred of those that have data, durably."""
    chance = random.Random(SEED)
    with target.open("r+b", buffering=0) as file:
        places, position, size = [], 0, target.stat().st_size
        while position < size:
            position = os.lseek(file.fileno(), position, os.SEEK_DATA) // MIB * MIB
            places.append(position)
            position += MIB
            try:
                os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing follows
                break
        for place in chance.sample(places, max(1, len(places) // ONE_IN)):
            os.pwrite(file.fileno(), chance.randbytes(4096), place)
        os.fsync(file.fileno())


def _compare(image: Path, target: Path) -> None:
    try:
        output_of(["cmp", str(image), str(target)])
    except BenchmarkError:
        raise BenchmarkError("the restored image differs from the source") from None
