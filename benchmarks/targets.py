"""What backy promises to reach, as ratios to other tools in the same run."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import growth
from benchmarks.delta import DELTA_BYTES
from benchmarks.results import Results
from benchmarks.rows import Row
from benchmarks.space import MIB
from benchmarks.workload import Workload

PEAK_LIMIT_BYTES = 200 * MIB


@dataclass(frozen=True, slots=True)
class Target:
    """At most `limit` times what the row of `reference` needs for the same or another step.

    Without a `reference` it is the same row.
    """

    key: str
    step: str
    limit: float
    reference: str
    reference_step: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table of targets. `measured` is None where it could not be told."""

    subject: str
    compared_with: str
    measured: float | None
    limit: float
    unit: str = ""

    @property
    def result(self) -> str:
        """Words for the last column."""
        if self.measured is None:
            return "not measured"
        return "met" if self.measured <= self.limit else "not met"


RATIOS = (
    Target("chunks", "full", 0.30, "restic", "full"),
    Target("chunks", "unchanged", 0.13, "restic", "unchanged"),
    Target("chunks", "changed", 0.22, "restic", "changed"),
    Target("chunks", "restore", 0.22, "restic", "restore"),
    Target("chunks", "verify", 0.35, "restic", "verify"),
    Target("chunks", "size", 1.0, "restic", "size"),
    Target("chunks", "scrub", 1 / 0.9, "", "verify"),
    Target("images", "scrub", 1 / 0.9, "", "verify"),
    Target("images", "full", 1.0, "cp --sparse=always on XFS", "full"),
    Target("images", "changed", 0.15, "restic", "changed"),
    Target("nbd", "read", 1 / 0.7, "", "nbdcopy"),
    Target("serve", "images", 1 / 0.6, "", "nbdkit"),
    Target("serve", "chunks", 1 / 0.8, "", "zstd -d"),
    *(
        Target(key, "changed", 1 / 20, reference, "changed")
        for key in ("told-chunks", "told-images")
        for reference in ("restic", "borg zstd,1 fixed 4 MiB")
    ),
)
GROWTH_LIMIT = 1.1
SPARSE_LIMIT_SECONDS = 1.5
ONE_STEP = {"version": ("version", 0.150), "fleet": ("check", 2.0)}  # step, limit in seconds


def judge(results: Results, rows: list[Row], workload: Workload) -> Iterator[Verdict]:
    """A verdict for every target of every row of backy that was run, in the order of `rows`."""
    for row in rows:
        for target in RATIOS:
            if target.key == row.key:
                yield _ratio(results, row, target)
        if row.key == "images":
            growth = results.median(row.name, "growth")
            share = None if growth is None else growth / workload.changed_bytes
            yield Verdict(f"{row.name}: growth", "bytes that changed", share, GROWTH_LIMIT)
        if row.key in ("sparse-chunks", "sparse-images"):
            seconds = results.median(row.name, "unchanged")
            yield Verdict(f"{row.name}: unchanged", "-", seconds, SPARSE_LIMIT_SECONDS, "s")
        if row.key.startswith("sparse-told"):
            seconds = results.median(row.name, "delta")
            full = results.median(row.name, "full") or 0
            data = full * DELTA_BYTES / workload.data_bytes
            limit = SPARSE_LIMIT_SECONDS + data
            yield Verdict(f"{row.name}: delta", "1.5 s plus the data", seconds, limit, "s")
        if row.key == "growth":
            yield from _limits(results, row)
        if row.key in ONE_STEP:
            step, limit_seconds = ONE_STEP[row.key]
            yield Verdict(row.name, "-", results.median(row.name, step), limit_seconds, "s")
        elif row.is_ours:
            peak = results.peak_rss_bytes(row.name)
            share = None if peak is None else peak / MIB
            limit = PEAK_LIMIT_BYTES / MIB
            yield Verdict(f"{row.name}: peak memory", "-", share, limit, "MiB")


def _limits(results: Results, row: Row) -> Iterator[Verdict]:
    for figure, (limit, unit, factor) in growth.LIMITS.items():
        value = results.median(row.name, figure)
        measured = None if value is None else value / factor
        yield Verdict(figure, "-", measured, limit, unit)


def _ratio(results: Results, row: Row, target: Target) -> Verdict:
    ours = results.median(row.name, target.step)
    reference = target.reference or row.name
    theirs = results.median(reference, target.reference_step)
    ratio = None if ours is None or not theirs else ours / theirs
    subject = f"{row.name}: {target.step}"
    return Verdict(subject, f"{reference}: {target.reference_step}", ratio, target.limit)
