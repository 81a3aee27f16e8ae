"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from backy.errors import BackyError, visible
from backy.model.messages import bug_event, error_event
from backy.model.revision import Revision
from backy.system.standard_streams import is_journal
from backy.units import format_duration, format_size

if TYPE_CHECKING:
    from backy.model.answers import Message


_ERROR = 3  # the priority of an error, see syslog(3)


def answer(as_json: bool, record: Message, text: str | Iterable[str]) -> None:
    """Print the result of a command: `record` for programs, or else `text`, a line or several."""
    if as_json:
        print_json(record)
    else:
        print_lines([text] if isinstance(text, str) else text)


def print_json(message: Message) -> None:
    """Print a message on one line, at once."""
    print_document(message)


def print_document(value: object) -> None:
    """Print JSON that is not a message, such as the configuration, on one line, at once."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


class Listing:
    """Prints a message as JSON on one line, the items of its list `key` one by one.

    So a long list needs no more memory than one item.
    """

    def __init__(self, key: str) -> None:
        self._next = f"{{{json.dumps(key)}: ["

    def add(self, item: object) -> None:
        """Print an item."""
        sys.stdout.write(self._next + json.dumps(item))
        self._next = ", "

    def end(self, **others: object) -> None:
        """Print the rest, with other keys and their values, and flush."""
        fields = "".join(f", {json.dumps(key)}: {json.dumps(others[key])}" for key in others)
        sys.stdout.write(f"{self._next.removeprefix(', ')}]{fields}}}\n")
        sys.stdout.flush()


def warn(text: str, priority: int = 4) -> None:
    """Print a line on standard error; the command continues. The journal notes the priority."""
    sys.stderr.write(f"{_prefix(priority)}{visible(text)}\n")


def _prefix(priority: int) -> str:
    """From this the journal takes the level of a line: sd-daemon(3)."""
    return f"<{priority}>" if is_journal() else ""


def report(error: BackyError, *, as_json: bool) -> None:
    """Print an error on standard error: what failed, on which object, and what to do next."""
    sys.stderr.write(report_text(error, as_json=as_json))


def report_text(error: BackyError, *, as_json: bool) -> str:
    """What `report` prints."""
    if as_json:
        return f"{_prefix(_ERROR)}{json.dumps(error_event(error))}\n"
    lines = [f"backy: {error.message}", *([f"  {error.hint}"] if error.hint else [])]
    return "".join(f"{_prefix(_ERROR)}{visible(line)}\n" for line in lines)


def report_bug(error: Exception, *, as_json: bool) -> None:
    """Print a bug on standard error, with its traceback."""
    text = "".join(traceback.format_exception(error))
    lines = [json.dumps(bug_event(error, text))] if as_json else text.splitlines()
    sys.stderr.writelines(f"{_prefix(_ERROR)}{line}\n" for line in lines)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines for people, and flush."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a table. It is as wide as its content, whatever the terminal's width."""
    cells = [list(headings), *([visible(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def revision_table(history: Iterable[Revision]) -> Iterator[str]:
    """The table of `backy list JOB`."""
    headings = (
        "revision", "time (UTC)", "size", "changed", "stored", "pages", "took", "consistency",
        "trust", "tags",
    )  # fmt: skip
    return table(headings, map(_revision_row, history))


def _revision_row(revision: Revision) -> list[str]:
    sizes = (format_size(total(revision, what)) for what in ("size", "changed", "stored", "pages"))
    return [
        revision.id, f"{revision.time:%Y-%m-%d %H:%M:%S}", *sizes,
        format_duration(revision.seconds), revision.consistency.value, revision.trust.value,
        ",".join(revision.tags) or "-",
    ]  # fmt: skip


def total(revision: Revision, what: str) -> int:
    """The sum over all disks of "size", "read", "changed", "stored" or "pages", in bytes."""
    return sum(getattr(disk, what) for disk in revision.disks.values())


def summary(revision: Revision, seconds: float) -> str:
    """The last line of a backup: read, changed, stored, ratio, pages, seconds, rate."""
    read, changed, stored = (total(revision, what) for what in ("read", "changed", "stored"))
    ratio = f"{changed / stored:.1f}:1" if stored else "-"
    pages = f"pages {format_size(size)}, " if (size := total(revision, "pages")) else ""
    return (
        f"read {format_size(read)}, changed {format_size(changed)}, stored {format_size(stored)} "
        f"(ratio {ratio}), {pages}{seconds:.1f} s, {format_rate(read, seconds)}"
    )


def format_rate(size: float, seconds: float) -> str:
    """The rate of `size` bytes in `seconds`, as text: "812.0 MiB/s"."""
    return f"{format_size(size / max(seconds, 1e-3))}/s"
