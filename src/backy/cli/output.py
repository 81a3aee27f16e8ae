"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence

from backy import disk
from backy.revision import Revision
from backy.units import format_duration, format_rate, format_size


def print_json(record: object) -> None:
    """One JSON value on one line, at once. Where nobody listens any more, it is dropped.

    A backup goes on though the daemon that started it was killed.
    """
    try:
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        disk.silence_standard_output()


def printable(text: str) -> str:
    """Without control characters: names in a forged repository must not steer a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as wide as its content: cut at no terminal's edge, so that it can be piped."""
    for line in table_lines(headings, rows):
        sys.stdout.write(line + "\n")


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of such a table."""
    table = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def revision_row(revision: Revision) -> list[str]:
    """What `backy list JOB` shows of a revision."""
    disks = revision.disks.values()
    return [
        revision.id,
        f"{revision.time:%Y-%m-%d %H:%M:%S}",
        format_size(sum(disk.size for disk in disks)),
        format_size(sum(disk.changed for disk in disks)),
        format_size(sum(disk.stored for disk in disks)),
        format_duration(revision.seconds),
        revision.consistency.value,
        revision.trust.value,
        ",".join(revision.tags) or "-",
    ]


REVISION_HEADINGS = (
    "revision",
    "time (UTC)",
    "size",
    "changed",
    "stored",
    "took",
    "consistency",
    "trust",
    "tags",
)


def summary(revision: Revision, seconds: float) -> str:
    """The line at the end of a backup: read, changed, stored, ratio, seconds, rate."""
    disks = revision.disks.values()
    read, changed, stored = (
        sum(disk.read for disk in disks),
        sum(disk.changed for disk in disks),
        sum(disk.stored for disk in disks),
    )
    ratio = f"{changed / stored:.1f}:1" if stored else "-"
    return (
        f"read {format_size(read)}, changed {format_size(changed)}, stored {format_size(stored)} "
        f"(ratio {ratio}), {seconds:.1f} s, {format_rate(read, seconds)}"
    )
