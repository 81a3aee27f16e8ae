"""Runs every row in every round, and leaves nothing behind but the images."""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import xfs
from benchmarks.measure import BenchmarkError
from benchmarks.results import Results
from benchmarks.rows import Row
from benchmarks.space import GIB, file_system_of
from benchmarks.trial import Settings, Trial
from benchmarks.workload import Workload

# ext4 does not hand out an inode again for 60 seconds after it was deleted, and searches for
# others instead: with the trees of a round just deleted, the same first backup took 23 s instead
# of 12 s. So nothing but single large files is deleted while a round lasts, the trees go at its
# end, and the next round waits until their inodes can be used again. A new file system on a loop
# device for each tool would avoid the wait, but it would be measured with it.
EXT4_PAUSE_SECONDS = 65
XFS_MINIMUM_BYTES = 1 * GIB
XFS_FACTOR = 2.5
EXT4_BYTES = 64 * GIB  # sparse; the row `growth` writes less than 3 GiB


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, how often and where. `work` is a folder of its own."""

    work: Path
    rows: list[Row]
    rounds: int
    workload: Workload
    settings: Settings


@contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Hold the work folder. Raises BenchmarkError where another benchmark has it."""
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchmarkError("another benchmark runs in this work folder") from None
        yield


def run_all(plan: Plan, results: Results) -> None:
    """All rounds. A row that fails is noted in `results`, and the others go on.

    Round by round and not row by row, so that what else the machine does meets all tools alike;
    each round begins with another row.
    """
    trees = plan.work / "round"
    if _clear(trees, plan.work):
        _pause(plan.work)
    for number in range(plan.rounds):
        trees.mkdir()
        start = number * len(plan.rows) // plan.rounds
        ordered = [*plan.rows[start:], *plan.rows[:start]]
        try:
            _run_round(plan, ordered, f"round {number + 1}/{plan.rounds}: ", results)
        finally:
            _clear(trees, plan.work)
        if number + 1 < plan.rounds:
            _pause(plan.work)


def _run_round(plan: Plan, ordered: list[Row], heading: str, results: Results) -> None:
    size = max(XFS_MINIMUM_BYTES, int(plan.workload.size_bytes * XFS_FACTOR))
    backing, mountpoint = plan.work / "xfs.img", plan.work / "xfs"
    ext4 = plan.work / "ext4"
    with ExitStack() as stack:
        if any(row.on_xfs for row in ordered):
            stack.enter_context(xfs.mounted(backing, mountpoint, size))
            results.figures.setdefault("XFS", {})["direct I/O"] = [float(xfs.direct_io(backing))]
        if any(row.on_ext4 for row in ordered):
            stack.enter_context(
                xfs.mounted(plan.work / "ext4.img", ext4, EXT4_BYTES, xfs.MAKE_EXT4)
            )
        for row in ordered:
            folder = plan.work / "round" / row.name.replace(" ", "-").replace("/", "-")
            folder.mkdir()
            trial = Trial(
                row.name,
                heading,
                folder,
                mountpoint if row.on_xfs else None,
                ext4 if row.on_ext4 else None,
                plan.workload,
                plan.settings,
                results,
            )
            _run_row(row, trial, results)


def _run_row(row: Row, trial: Trial, results: Results) -> None:
    try:
        row.run(trial)
    except BenchmarkError as error:
        # The report goes to other people, who need not know where things are on this machine.
        places = (trial.folder, trial.xfs, trial.ext4, trial.workload.image.parent)
        text = str(error)
        for place in filter(None, places):
            text = text.replace(str(place), "…")
        results.problems.append(f"{row.name}: {text}")
        trial.say(f"failed: {text}")


def _clear(trees: Path, work: Path) -> bool:
    for name in ("xfs", "ext4"):
        xfs.remove(work / f"{name}.img", work / name)
    if not trees.exists():
        return False
    shutil.rmtree(trees)
    return True


def _pause(work: Path) -> None:
    os.sync()
    if file_system_of(work) == "ext4":
        print(f"waiting {EXT4_PAUSE_SECONDS} s for deleted inodes", file=sys.stderr, flush=True)
        time.sleep(EXT4_PAUSE_SECONDS)
