"""Progress of a long command: a bar on a terminal, else a line a minute, or JSON for programs."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backy.cli.output import format_rate, print_json, warn
from backy.errors import visible
from backy.image.progress import Silence
from backy.model.messages import DamageEvent, NoteEvent, ProgressEvent, WarningEvent
from backy.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.progress import Progress


class Warnings(Silence):
    """A Watcher for commands that run until a signal: what it hears is a line on stderr."""

    def warn(self, text: str) -> None:
        """See Watcher."""
        warn(text)

    note = warn


_Told = WarningEvent | NoteEvent | DamageEvent


class Meter(ABC):
    """Counts bytes from any thread, and shows them no more often than `interval_seconds`."""

    interval_seconds: float

    def __init__(self, title: str) -> None:
        self._title = title
        self._lock = threading.Lock()
        self._start = self._shown = time.monotonic()
        self._total = 0
        self._done = 0

    def begin(self, total: int) -> None:
        """Add to the number of bytes to process."""
        self._total += total

    def advance(self, length: int) -> None:
        """Add `length` processed bytes."""
        with self._lock:
            self._done += length
            now = time.monotonic()
            if now - self._shown < self.interval_seconds:
                return
            self._shown = now
            self._show(self._done, self._total, now - self._start)

    def warn(self, text: str, event: DamageEvent | None = None) -> None:
        """Show it now; programs get `event` instead, if there is one."""
        with self._lock:
            self._say(f"warning: {text}", event or WarningEvent(event="warning", message=text))

    def note(self, text: str) -> None:
        """Show a note at once."""
        with self._lock:
            self._say(text, NoteEvent(event="note", message=text))

    @property
    def seconds(self) -> float:
        """The time since the command started."""
        return time.monotonic() - self._start

    @abstractmethod
    def _show(self, done: int, total: int, seconds: float) -> None:
        """Show that `done` of `total` bytes were processed in `seconds`."""

    @abstractmethod
    def _say(self, text: str, event: _Told) -> None:
        """Show `text`, or print `event` as JSON."""


@contextmanager
def meter(title: str, *, as_json: bool) -> Iterator[Meter]:
    """A Meter for JSON, for a terminal, or for a file or pipe."""
    if as_json:
        yield _Json(title)
    elif sys.stderr.isatty():
        with _progress() as progress:
            yield _Bar(title, progress)
    else:
        yield _Lines(title)


class _Json(Meter):
    interval_seconds = 1.0

    def _show(self, done: int, total: int, seconds: float) -> None:
        rate = done / seconds
        left = round((total - done) / rate, 1) if rate else None
        event = ProgressEvent(
            event="progress", done=done, total=total, rate=round(rate), eta_seconds=left
        )
        print_json(event)

    def _say(self, text: str, event: _Told) -> None:
        print_json(event)


class _Lines(Meter):
    interval_seconds = 60.0

    def _show(self, done: int, total: int, seconds: float) -> None:
        left = format_duration((total - done) * seconds / done) if done else "unknown"
        share = f"{100 * done / max(total, 1):.1f} % of {format_size(total)}"
        self._write(f"{share}, {format_rate(done, seconds)}, {left} left")

    def _say(self, text: str, event: _Told) -> None:
        self._write(text)

    def _write(self, text: str) -> None:
        sys.stderr.write(f"{self._title}: {visible(text)}\n")
        sys.stderr.flush()


class _Bar(Meter):
    interval_seconds = 0.1

    def __init__(self, title: str, progress: Progress) -> None:
        super().__init__(title)
        self._progress = progress
        self._task = progress.add_task(title, total=None)

    def _show(self, done: int, total: int, seconds: float) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def _say(self, text: str, event: _Told) -> None:
        line = f"{self._title}: {visible(text)}"
        self._progress.console.print(line, markup=False, highlight=False)


def _progress() -> Progress:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=Console(stderr=True), transient=True)
