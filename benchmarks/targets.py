"""What backy promises to reach, as ratios to other tools in the same run."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import frequency, growth
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
    Target("chunks", "size", 1.0, "restic", "size"),
    Target("chunks", "scrub", 1 / 0.9, "", "verify"),
    Target("images", "scrub", 1 / 0.9, "", "verify"),
    Target("images", "full", 1.0, "cp --sparse=always on XFS", "full"),
    Target("images", "changed", 0.15, "restic", "changed"),
    Target("differential", "restore 1 %", 0.30, "", "restore"),
    Target("differential", "qcow2 restore 1 %", 0.30, "", "qcow2 restore"),
    Target("differential", "nbd restore 1 %", 0.30, "", "nbd restore"),
    Target("mount", "cached", 2.0, "", "plain"),
    Target("together", "four restores", 4 / 0.95, "", "restore"),
    Target("latency", "restore", 1 / 8, "", "one read after the other"),
    Target("latency", "verify", 1 / 8, "", "one read after the other"),
    Target("nbd", "read", 1 / 0.7, "", "nbdcopy"),
    Target("serve", "images", 1 / 0.6, "", "nbdkit"),
    Target("serve", "chunks", 1 / 0.8, "", "zstd -d"),
    *(
        Target(key, "changed", 1 / 20, reference, "changed")
        for key in ("told-chunks", "told-images")
        for reference in ("restic", "borg zstd,1 fixed 4 MiB")
    ),
)
# Of the larger of two steps of other rows ("" is the same row), which no restore and no verify can
# be faster than. A restore writes what dd writes; the arithmetic is to decompress and hash.
BOUNDS = {
    "restore": (1.15, {"dd": ("dd", "full"), "arithmetic": ("floor", "verify")}),
    "verify": (
        1.25,
        {step: ("", step) for step in ("read past the cache", "decompress and hash")},
    ),
}
GROWTH_LIMIT = 1.1
MOUNT_BYTES_A_SECOND = 0.6 * 1024 * MIB
SPARSE_LIMIT_SECONDS = 1.5
ONE_STEP = {"version": ("version", 0.150), "fleet": ("check", 2.0)}  # step, limit in seconds


def judge(results: Results, rows: list[Row], workload: Workload) -> Iterator[Verdict]:
    """A verdict for every target of every row of backy that was run, in the order of `rows`."""
    for row in rows:
        for target in RATIOS:
            if target.key == row.key:
                yield _ratio(results, row, target)
        if row.key == "chunks":
            yield from (_bounded(results, rows, row, step) for step in BOUNDS)
        if row.key == "images":
            growth = results.median(row.name, "growth")
            share = None if growth is None else growth / workload.changed_bytes
            yield Verdict(f"{row.name}: growth", "bytes that changed", share, GROWTH_LIMIT)
        if row.key.startswith("sparse"):
            yield _sparse(results, row, workload)
        if row.key in MORE:
            yield from MORE[row.key](results, row, workload)
        if row.key in ONE_STEP:
            step, limit_seconds = ONE_STEP[row.key]
            yield Verdict(row.name, "-", results.median(row.name, step), limit_seconds, "s")
        elif row.is_ours:
            peak = results.peak_rss_bytes(row.name)
            share = None if peak is None else peak / MIB
            limit = PEAK_LIMIT_BYTES / MIB
            yield Verdict(f"{row.name}: peak memory", "-", share, limit, "MiB")


def _rates(results: Results, row: Row, workload: Workload) -> Iterator[Verdict]:
    limit = workload.size_bytes / MOUNT_BYTES_A_SECOND
    seconds = results.median(row.name, "cached")
    yield Verdict(f"{row.name}: cached", "0.6 GiB a second", seconds, limit, "s")


def _sparse(results: Results, row: Row, workload: Workload) -> Verdict:
    if not row.key.startswith("sparse-told"):
        seconds = results.median(row.name, "unchanged")
        return Verdict(f"{row.name}: unchanged", "-", seconds, SPARSE_LIMIT_SECONDS, "s")
    seconds, full = results.median(row.name, "delta"), results.median(row.name, "full") or 0
    limit = SPARSE_LIMIT_SECONDS + full * DELTA_BYTES / workload.data_bytes
    return Verdict(f"{row.name}: delta", "1.5 s plus the data", seconds, limit, "s")


def _limits(results: Results, row: Row, _: Workload) -> Iterator[Verdict]:
    """The limits of a row that has its own."""
    limits = {"growth": growth.LIMITS, "frequency": frequency.LIMITS}[row.key]
    for figure, (limit, unit, factor) in limits.items():
        value = results.median(row.name, figure)
        measured = None if value is None else value / factor
        yield Verdict(figure, "-", measured, limit, unit)


def _bounded(results: Results, rows: list[Row], row: Row, step: str) -> Verdict:
    """How much longer a step takes than the larger of its bounds, which is named."""
    limit, bounds = BOUNDS[step]
    names = {other.key: other.name for other in rows}
    names[""] = row.name
    known = [
        (seconds, name)
        for name, (key, bound) in bounds.items()
        if (seconds := results.median(names.get(key, "no such row"), bound))
    ]
    ours = results.median(row.name, step)
    if ours is None or len(known) < len(bounds):
        return Verdict(f"{row.name}: {step}", f"the larger of {' and '.join(bounds)}", None, limit)
    seconds, which = max(known)
    return Verdict(
        f"{row.name}: {step}",
        f"{which}, the larger of {' and '.join(bounds)}",
        ours / seconds,
        limit,
    )


def _ratio(results: Results, row: Row, target: Target) -> Verdict:
    ours = results.median(row.name, target.step)
    reference = target.reference or row.name
    theirs = results.median(reference, target.reference_step)
    ratio = None if ours is None or not theirs else ours / theirs
    subject = f"{row.name}: {target.step}"
    return Verdict(subject, f"{reference}: {target.reference_step}", ratio, target.limit)


MORE = {"growth": _limits, "frequency": _limits, "mount": _rates}
