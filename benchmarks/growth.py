"""The row `growth`: what a revision takes beside its blocks, and what a long history costs.

On a fresh ext4 with the store chunks. The blocks hold a line of text and zeroes, so that the disks
may be large: the index and its pages have the same size whatever the blocks hold.

- 32 GiB, data in each block, read in full each time: ten blocks change.
- 1 TiB, read through the source `exec`, whose program tells what changed: 100 blocks change. Each
  page has one block with data, so all pages differ.
- `diff` of two revisions of that disk that differ in one block.
- The same disk with 1,440 revisions. The first seven are those. The others are made in one process,
  `python -m benchmarks.growth`, by the drafts that a backup uses, with ten changed blocks each:
  to start the command 1,440 times would take half an hour.

CPU seconds are those of the command and the programs that it started, without those of the same
command for a disk of 1 MiB.
"""

import json
import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from benchmarks.measure import output_of
from benchmarks.ours import JOB, on_ext4
from benchmarks.space import GIB, MIB, usage_of
from benchmarks.trial import Command, Trial
from benchmarks.workload import SEED

KIB = 1 << 10
SMALL_JOB = "small"
DENSE_BYTES, DENSE_CHANGES = 32 * GIB, 10
HUGE_BYTES, HUGE_CHANGES = 1 << 40, 100
DATA_EVERY = 252  # blocks: one with data in each page
REVISIONS, HISTORY_CHANGES = 1440, 10
RUNS = 5
# What was promised: the figure, its limit, its unit, and what a unit is.
LIMITS = {
    "32 GiB, 10 blocks: growth beside the blocks": (600, "KiB", KIB),
    "1 TiB, 100 blocks: growth beside the blocks": (5 * 1024, "KiB", KIB),
    "1 TiB, 100 blocks: CPU of a backup": (0.5, "s", 1),
    "1 TiB: CPU of diff": (0.05, "s", 1),
    "1,440 revisions: indexes and pages": (1536, "MiB", MIB),
    "1,440 revisions: CPU of purging half of them": (10, "s", 1),
}
PROGRAM = """#!/bin/sh
# $1: a folder with `disk` and with `map`, what changed since the last backup. $2: the verb.
request=$(cat)
parent=$(printf '%s' "$request" | sed -n 's/.*"parent": "\\([^"]*\\)".*/\\1/p')
case $2 in
snapshot)
    printf '{"disks": {"vda": {"read": "%s", "changes-since": "%s"}}, "consistency": "crash"}' \\
        "$1/disk" "${parent:-it is the first backup}" ;;
extents)
    echo "parent $parent"
    cat "$1/map" ;;
esac
"""


def growth(trial: Trial) -> None:
    """All of it, in the order of the limits."""
    _dense(trial)
    base = on_ext4(trial) / "huge"
    blocks = range(0, HUGE_BYTES // MIB, DATA_EVERY)
    huge, small = _Disk(trial, JOB, HUGE_BYTES, blocks), _Disk(trial, SMALL_JOB, MIB, [0])
    backy: list[str | Path] = [trial.settings.backy, "--config", _config(trial, base, huge, small)]
    for disk in (huge, small):
        trial.time(f"{disk.job}: first", Command([*backy, "backup", disk.job]))
    _deltas(trial, backy, base / JOB, huge, small)
    huge.change(1, "one block")
    trial.time("1 TiB: one block", Command([*backy, "backup", JOB]))
    _cpu(trial, "1 TiB: CPU of diff", backy, "diff", "1", "latest")
    _history(trial, base / JOB)
    _purge(trial, backy)


def _dense(trial: Trial) -> None:
    image, base = trial.folder / "dense.img", on_ext4(trial) / "dense"
    _write(image, DENSE_BYTES, range(DENSE_BYTES // MIB), "first")
    backup: list[str | Path] = [trial.settings.backy, "--base-dir", base, "backup", JOB]
    trial.time("32 GiB first", Command([*backup, "--source", image, "--store", "chunks"]))
    before = _beside_blocks(base / JOB)
    chosen = random.Random(SEED).sample(range(DENSE_BYTES // MIB), DENSE_CHANGES)
    _write(image, DENSE_BYTES, chosen, "second")
    trial.time("32 GiB changed", Command(backup))
    grown = _beside_blocks(base / JOB) - before
    trial.figure("32 GiB, 10 blocks: growth beside the blocks", grown)
    trial.drop(image)


class _Disk:
    """The sparse disk of a job that the source `exec` reads, with the map of what changed."""

    def __init__(self, trial: Trial, job: str, size_bytes: int, blocks: Iterable[int]) -> None:
        self.job = job
        self.folder = trial.folder / job
        self._size_bytes = size_bytes
        self._chance = random.Random(SEED)
        self.folder.mkdir()
        _write(self.folder / "disk", size_bytes, blocks, "first")

    def change(self, count: int, text: str) -> None:
        """Write to so many blocks."""
        chosen = sorted(self._chance.sample(range(self._size_bytes // MIB), count))
        _write(self.folder / "disk", self._size_bytes, chosen, text)
        lines, end = [], 0
        for start in (number * MIB for number in chosen):
            lines += [f"{end} {start - end} same\n"] * (start > end)
            lines.append(f"{start} {MIB} data\n")
            end = start + MIB
        lines += [f"{end} {self._size_bytes - end} same\n"] * (self._size_bytes > end)
        (self.folder / "map").write_text("".join(lines))


def _deltas(
    trial: Trial, backy: list[str | Path], repository: Path, huge: _Disk, small: _Disk
) -> None:
    grown, costs, start_ups = [], [], []
    for number in range(RUNS):
        small.change(0, "")
        start_up = trial.time("small: delta", Command([*backy, "backup", small.job]))
        start_ups.append(start_up.cpu_seconds)
        before = _beside_blocks(repository)
        huge.change(HUGE_CHANGES, f"delta {number}")
        costs.append(trial.time("1 TiB: delta", Command([*backy, "backup", JOB])).cpu_seconds)
        grown.append(_beside_blocks(repository) - before)
    trial.figure("1 TiB, 100 blocks: growth beside the blocks", median(grown))
    trial.figure("1 TiB, 100 blocks: CPU of a backup", median(costs) - median(start_ups))


def _history(trial: Trial, repository: Path) -> None:
    """Make the history, and say what it occupies."""
    count = REVISIONS - 2 - RUNS
    root = Path(__file__).resolve().parent.parent
    output_of([sys.executable, "-m", "benchmarks.growth", str(repository), str(count)], cwd=root)
    trial.say(f"{count} revisions")
    trial.figure("1,440 revisions: indexes and pages", _beside_blocks(repository))


def _purge(trial: Trial, backy: list[str | Path]) -> None:
    half = f"{REVISIONS - 1}..{REVISIONS // 2}"
    trial.time("remove half", Command([*backy, "remove", JOB, "-r", half]))
    run = trial.time("purge half", Command([*backy, "purge", JOB]))
    trial.figure("1,440 revisions: CPU of purging half of them", run.cpu_seconds)


def _cpu(trial: Trial, figure: str, backy: list[str | Path], verb: str, *words: str) -> None:
    """The CPU time of a command, without that of the same command for the small disk."""
    costs: dict[str, list[float]] = {JOB: [], SMALL_JOB: []}
    for _ in range(RUNS):
        for job, cost in costs.items():
            command = Command([*backy, verb, job, *words])
            cost.append(trial.time(f"{job}: {verb}", command, quiet=True).cpu_seconds)
    trial.figure(figure, median(costs[JOB]) - median(costs[SMALL_JOB]))


def _write(image: Path, size_bytes: int, blocks: Iterable[int], text: str) -> None:
    """Write a line to the start of each of these blocks; the rest stays a hole."""
    with image.open("r+b" if image.exists() else "wb", buffering=0) as file:
        file.truncate(size_bytes)
        for number in blocks:
            os.pwrite(file.fileno(), f"{text}, block {number}\n".encode(), number * MIB)
        os.fsync(file.fileno())


def _beside_blocks(repository: Path) -> int:
    """What a repository occupies beside its chunks, in blocks of the file system."""
    os.sync()
    everything = usage_of(repository).allocated_bytes
    return everything - usage_of(repository / "chunks").allocated_bytes


def _config(trial: Trial, base: Path, *disks: _Disk) -> Path:
    program = trial.folder / "source"
    program.write_text(PROGRAM)
    program.chmod(0o700)
    jobs = {
        disk.job: {"source": {"type": "exec", "command": [str(program), str(disk.folder)]}}
        for disk in disks
    }
    document = {
        "global": {"base-dir": str(base)},
        "schedules": {"daily": {"daily": {"interval": "1d", "keep": 7}}},
        "defaults": {"schedule": "daily", "store": "chunks"},
        "jobs": jobs,
    }
    path = trial.folder / "backy.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


def main() -> int:
    """Add revisions to a repository, each with ten changed blocks."""
    # Only this program needs backy; the benchmark itself runs with any Python.
    from backy.model.revision import Consistency, Disk, Revision  # noqa: PLC0415
    from backy.repository.draft import draft_revision  # noqa: PLC0415
    from backy.repository.repository import Repository  # noqa: PLC0415
    from backy.stores.draft import draft_disk  # noqa: PLC0415

    folder, count = sys.argv[1:]
    repository, chance = Repository(Path(folder)), random.Random(SEED)
    parent = repository.history().revisions[-1]
    [(name, old)] = parent.disks.items()
    for number in range(int(count)):
        with repository.exclusive("backup"), draft_revision(repository) as draft:
            with draft_disk(repository.store, draft.folder, name, old.size, parent) as target:
                for block in chance.sample(range(old.size // old.block_size), HISTORY_CHANGES):
                    line = f"revision {number}, block {block}\n".encode()
                    target.write(
                        block * old.block_size, memoryview(line.ljust(old.block_size, b"\0"))
                    )
                disk = Disk(old.size, old.block_size, target.finish(), 0, target.changed, 0)
            revision = Revision(draft.id, draft.time, parent.id, 0, Consistency.CRASH, {name: disk})
            with draft.published(revision) as parent:
                pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
