"""One row in one round: runs its steps, keeps what they cost, compares what was restored."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import BenchmarkError, Run, output_of, timed
from benchmarks.results import Results
from benchmarks.space import cache, evict, usage_of, used_bytes
from benchmarks.workload import Workload

SETTLE_SECONDS = 2.0
FLOOR_PROGRAM = Path(__file__).with_name("floor.py")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for every row of a run."""

    backy: Path
    block_sizes_bytes: tuple[int, ...]
    level: int
    cold: bool
    cores: int


@dataclass(frozen=True, slots=True)
class Command:
    """Words to run, the folder to run them in, and what it reads, which is cached first."""

    words: Sequence[str | Path]
    cwd: Path | None = None
    reads: Path | None = None


@dataclass(frozen=True, slots=True)
class Cycle:
    """What a backup tool runs for every step of the table. `prepare` is not timed."""

    repository: Path
    full: Command
    unchanged: Command
    changed: Command
    restore: Command
    restored: Path
    verify: Command
    scrub: Command | None = None
    prepare: Command | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """Where a row works and where its figures go.

    `folder` is new, on the file system of the work folder, and stays until the end of the round;
    `xfs` and `ext4` are mounted file systems where the row asked for them.
    """

    row: str
    heading: str
    folder: Path
    xfs: Path | None
    ext4: Path | None
    workload: Workload
    settings: Settings
    results: Results

    def time(
        self,
        step: str,
        command: Command,
        env: Mapping[str, str] | None = None,
        *,
        sync: bool = True,
        quiet: bool = False,
    ) -> Run:
        """Run a step with its input in the page cache. Raises BenchmarkError where it fails."""
        if command.reads is not None:
            cache(command.reads)
        log = self.folder.with_suffix(".log")
        words = [str(word) for word in command.words]
        try:
            run = timed(words, log=log, cwd=command.cwd, env=env, sync=sync)
        except BenchmarkError as error:
            raise BenchmarkError(f"{step}: {error}") from None
        self.results.add_run(self.row, step, run)
        if not quiet:
            self.say(f"{step} {run.seconds:.2f} s")
        return run

    def read_back(
        self,
        step: str,
        command: Command,
        repository: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run a step that reads a repository: cached like a source, or cold where asked for.

        Tools differ in whether what they wrote is still cached, so it is made alike.
        """
        os.sync()
        if self.settings.cold:
            evict(repository)
        else:
            cache(repository)
        self.time(step, command, env)

    def figure(self, name: str, value: float) -> None:
        """Keep a figure of this row."""
        self.results.add_figure(self.row, name, value)

    def compare(self, restored: Path, image: Path) -> None:
        """Check a restored image byte for byte and delete it. Raises BenchmarkError."""
        try:
            output_of(["cmp", str(image), str(restored)])
        except BenchmarkError:
            raise BenchmarkError("the restored image differs from the source") from None
        finally:
            self.drop(restored)

    def drop(self, file: Path) -> None:
        """Delete one large file and wait until the file system is done with that."""
        file.unlink(missing_ok=True)
        os.sync()
        time.sleep(SETTLE_SECONDS)

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"{self.heading}{self.row}: {text}", file=sys.stderr, flush=True)

    def occupied(self) -> Callable[[Path], int]:
        """How to measure a repository: by the file system where its files share extents."""
        if self.xfs is None:
            return lambda repository: usage_of(repository).allocated_bytes
        mountpoint, before = self.xfs, used_bytes(self.xfs)
        return lambda _: used_bytes(mountpoint) - before


def on_floor(
    trial: Trial,
    mode: str,
    scratch: Path,
    block_bytes: int,
    more: Sequence[str | Path] = (),
    *,
    step: str = "",
) -> None:
    """Run a mode of floor.py as a step of the row, called like the mode if nothing else is said."""
    words = [sys.executable, "-P", FLOOR_PROGRAM, mode, "--scratch", scratch, *more]
    words += ["--block-size", str(block_bytes), "--threads", str(trial.settings.cores)]
    cost = json.loads(output_of([str(word) for word in words]))
    run = Run(cost["seconds"], cost["cpu_seconds"], cost["peak_rss_bytes"])
    trial.results.add_run(trial.row, step or mode, run)
    trial.say(f"{step or mode} {run.seconds:.2f} s")


def run_cycle(trial: Trial, cycle: Cycle) -> None:
    """All steps of a backup tool in the order of the table."""
    occupied = trial.occupied()
    if cycle.prepare is not None:
        output_of([str(word) for word in cycle.prepare.words], env=cycle.env)
    trial.time("full", cycle.full, cycle.env)
    trial.figure("size after full", occupied(cycle.repository))
    trial.time("unchanged", cycle.unchanged, cycle.env)
    before = occupied(cycle.repository)
    trial.time("changed", cycle.changed, cycle.env)
    after = occupied(cycle.repository)
    trial.figure("size", after)
    trial.figure("growth", after - before)
    trial.figure("files", usage_of(cycle.repository).files)
    trial.read_back("restore", cycle.restore, cycle.repository, cycle.env)
    trial.compare(cycle.restored, trial.workload.changed_image)
    trial.read_back("verify", cycle.verify, cycle.repository, cycle.env)
    if cycle.scrub is not None:
        trial.read_back("scrub", cycle.scrub, cycle.repository, cycle.env)
