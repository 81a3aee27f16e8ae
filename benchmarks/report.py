"""The measurements as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from benchmarks import boot, differential
from benchmarks.results import Results
from benchmarks.rows import OWN_LIMITS, READER, Row
from benchmarks.space import MIB, show_size
from benchmarks.targets import judge
from benchmarks.workload import Workload

STEPS = ("full", "unchanged", "changed", "restore", "verify", "scrub", "delta", "full scan")
NOT_MEASURED = "-"
ARITHMETIC = {
    "full": "hash and compress everything",
    "unchanged": "hash everything",
    "changed": "hash everything, compress what changed",
    "verify": "decompress and hash everything",
}


@dataclass(frozen=True, slots=True)
class Report:
    """All that the tables are made from."""

    when: datetime
    machine: Mapping[str, str]
    workload: Workload
    rows: list[Row]
    rounds: int
    cold: bool
    results: Results


def markdown(report: Report) -> str:
    """The whole report, without the tables that nothing was measured for.

    It names no host and no path.
    """
    problems = [f"- {' '.join(text.split())}" for text in report.results.problems]
    sections = {
        "Seconds, median (lowest to highest)": _times(report),
        "MiB a second, by the size of the disk / by its data": _rates(report),
        "Targets": _targets(report),
        "Ratio to restic": _ratios(report),
        "Processor seconds / peak memory of the largest process in MiB": _costs(report),
        "What limits backy": [*_floors(report), *_limits(report)],
        "Machine": _table(("what", "value"), report.machine.items()),
        "Problems": problems,
    }
    parts = [_conditions(report)]
    parts += [[f"## {heading}", "", *lines] for heading, lines in sections.items() if lines]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _conditions(report: Report) -> list[str]:
    load = report.workload
    state = "evicted from the page cache" if report.cold else "in the page cache"
    rounds = "1 round" if report.rounds == 1 else f"{report.rounds} rounds"
    return [
        "# Benchmark",
        "",
        (
            f"{report.when:%Y-%m-%d}, {rounds}. Image of {show_size(load.size_bytes)} with"
            f" {load.data_bytes / MIB:.0f} MiB of data; between two revisions"
            f" {load.changed_bytes / MIB:.0f} MiB changed"
            f" ({load.changed_bytes / load.size_bytes:.1%} of the bytes,"
            f" {load.changed_blocks_share:.0%} of all 4 MiB blocks)."
        ),
        (
            "The source is in the page cache, sync is inside the measured time; before restore,"
            f" verify and scrub the repository is {state}."
        ),
        (
            "Only full backups are measured where a tool has no others;"
            " growth is that of the changed step."
        ),
        *_loop_device(report.results),
    ]


def _loop_device(results: Results) -> list[str]:
    direct = results.figures.get("XFS", {}).get("direct I/O")
    if direct is None:
        return []
    return [f"XFS is on a loop device {'with' if direct[0] else 'without'} direct I/O."]


# Rows that have lines of their own below.
_WITHOUT_TIMES = {"version", "fleet", "floor", "mount", "nbd", "serve", *OWN_LIMITS, *READER}


def _times(report: Report) -> list[str]:
    lines = []
    for row in report.rows:
        if row.key in _WITHOUT_TIMES:
            continue
        figures = [_mib(report.results.median(row.name, name)) for name in ("size", "growth")]
        files = report.results.median(row.name, "files")
        cells = [_seconds(report.results.seconds(row.name, step)) for step in STEPS]
        count = NOT_MEASURED if files is None else f"{files:.0f}"
        lines.append((row.name, *cells, *figures, count))
    return [
        *_table(("", *STEPS, "size MiB", "growth MiB", "files"), lines),
        *_row(report, "together", ("restore", "four restores")),
        *_row(report, "latency", ("one read after the other", "restore", "verify")),
        *_one_step(report, "version", "version"),
        *_one_step(report, "fleet", "check"),
        *_row(report, "differential", differential.STEPS),
        *_row(report, "boot", boot.STEPS),
    ]


def _row(report: Report, key: str, steps: Sequence[str]) -> list[str]:
    """A row whose steps are its own, as a sentence."""
    name = _named(report.rows, key)
    known = [(step, report.results.seconds(name, step)) for step in steps]
    texts = [f"{step} {_seconds(values)} s" for step, values in known if values]
    return ["", f"`{name}`: {', '.join(texts)}."] if texts else []


def _rates(report: Report) -> list[str]:
    """A disk has holes: the first rate is what an operator sees, the second what was worked for."""
    steps = ("full", "unchanged", "changed", "restore")
    sizes = report.workload.size_bytes, report.workload.data_bytes
    lines = []
    for row in report.rows:
        if row.key.startswith("sparse") or row.key in {"floor", *OWN_LIMITS, *READER}:
            continue
        medians = [report.results.median(row.name, step) for step in steps]
        if any(medians):
            cells = [
                " / ".join(f"{size / MIB / seconds:,.0f}" for size in sizes)
                if seconds
                else NOT_MEASURED
                for seconds in medians
            ]
            lines.append((row.name, *cells))
    return _table(("", *steps), lines)


def _one_step(report: Report, key: str, step: str) -> list[str]:
    name = _named(report.rows, key)
    values = report.results.seconds(name, step)
    if not values:
        return []
    return ["", f"`{name}`: {median(values) * 1000:.0f} ms, median of {len(values)}."]


def _targets(report: Report) -> list[str]:
    lines = []
    for verdict in judge(report.results, report.rows, report.workload):
        unit = f" {verdict.unit}" if verdict.unit else ""
        digits = 0 if verdict.unit in ("KiB", "MiB") else 2 + (verdict.unit == "s")
        measured = NOT_MEASURED
        if verdict.measured is not None:
            measured = f"{verdict.measured:.{digits}f}{unit}"
        limit = f"{verdict.limit:.{digits}f}{unit}"
        lines.append((verdict.subject, verdict.compared_with, measured, limit, verdict.result))
    return _table(("row: step", "compared with", "measured", "at most", ""), lines)


def _ratios(report: Report) -> list[str]:
    columns = (*STEPS, "size", "growth")
    lines = []
    for row in report.rows:
        cells = []
        for column in columns:
            ours = report.results.median(row.name, column)
            theirs = report.results.median("restic", column)
            known = ours is not None and theirs
            cells.append(f"{ours / theirs:.2f}" if known and ours and theirs else NOT_MEASURED)
        if set(cells) != {NOT_MEASURED} and not row.key.startswith("sparse"):
            lines.append((row.name, *cells))
    return _table(("", *columns), lines)


def _costs(report: Report) -> list[str]:
    lines = []
    for row in report.rows:
        cells = []
        for step in STEPS:
            cpu = report.results.cpu_seconds(row.name, step)
            peak = report.results.peak_rss_bytes(row.name, step)
            known = cpu is not None and peak is not None
            cells.append(f"{cpu:.1f} / {_mib(peak)}" if known else NOT_MEASURED)
        if set(cells) != {NOT_MEASURED}:
            lines.append((row.name, *cells))
    return _table(("", *STEPS), lines)


def _floors(report: Report) -> list[str]:
    """How fast the cores and the disk are without any tool."""
    lines = []
    rate = _direct_rate(report)
    if rate is not None:
        lines.append(f"- Writes, the data of the image at the rate of dd: {rate / MIB:.0f} MiB/s")
    row = _named(report.rows, "floor")
    for step, work in ARITHMETIC.items():
        seconds = report.results.median(row, step)
        if seconds:
            gigabytes = report.workload.data_bytes / seconds / 1e9
            lines.append(f"- Arithmetic, {work}: {seconds:.2f} s ({gigabytes:.1f} GB/s)")
    return lines


def _limits(report: Report) -> list[str]:
    """Each step of a chunks row beside the two things it cannot be faster than."""
    results, floors = report.results, _named(report.rows, "floor")
    rate = _direct_rate(report)
    lines = []
    for row in (row for row in report.rows if row.key == "chunks" and floors):
        written = {
            "full": results.median(row.name, "size after full"),
            "changed": results.median(row.name, "growth"),
            "restore": float(report.workload.data_bytes),
        }
        for step in STEPS:
            arithmetic = results.median(floors, "verify" if step == "restore" else step)
            amount = written.get(step)
            writes = None if rate is None or amount is None else amount / rate
            measured = results.median(row.name, step)
            bound = max(arithmetic or 0, writes or 0)
            share = f"{bound / measured:.0%}" if measured else NOT_MEASURED
            values = (measured, arithmetic, writes)
            lines.append((f"{row.name}: {step}", *map(_plain, values), share))
    head = ("", "seconds", "arithmetic", "writes", "the larger of both, of the seconds")
    return ["", *_table(head, lines)] if lines else []


def _direct_rate(report: Report) -> float | None:
    seconds = report.results.median(_named(report.rows, "dd"), "full")
    return None if not seconds else report.workload.data_bytes / seconds


def _named(rows: list[Row], key: str) -> str:
    return next((row.name for row in rows if row.key == key), "")


def _table(head: Sequence[str], lines: Iterable[Iterable[str]]) -> list[str]:
    body = [f"| {' | '.join(line)} |" for line in lines]
    if not body:
        return []
    return [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |", *body]


def _seconds(values: list[float]) -> str:
    if not values:
        return NOT_MEASURED
    middle = f"{median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def _plain(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def _mib(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value / MIB:.0f}"
