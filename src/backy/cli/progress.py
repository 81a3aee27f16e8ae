"""Progress of a long command: a bar on a terminal, else a line a minute, or JSON for programs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from backy.cli.output import print_json, printable
from backy.units import format_duration, format_rate, format_size


class Display(Protocol):
    """Shows how far a command is, whenever it is asked to."""

    interval_seconds: float

    def show(self, done: int, total: int, seconds: float) -> None:
        """`done` of `total` bytes were dealt with in so many seconds."""

    def say(self, text: str, *, is_warning: bool) -> None:
        """Something that the user should know, or what a hook said."""


class Meter:
    """Counts bytes from any thread, and asks the display no more often than it wants."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._lock = threading.Lock()
        self._start = self._shown = time.monotonic()
        self._total = 0
        self._done = 0

    def begin(self, total: int) -> None:
        """So many bytes lie ahead."""
        self._total = total

    def advance(self, length: int) -> None:
        """So many more are dealt with."""
        with self._lock:
            self._done += length
            now = time.monotonic()
            if now - self._shown < self._display.interval_seconds:
                return
            self._shown = now
            self._display.show(self._done, self._total, now - self._start)

    def warn(self, text: str) -> None:
        """Say it now."""
        with self._lock:
            self._display.say(text, is_warning=True)

    def note(self, text: str) -> None:
        """Say what is no warning."""
        with self._lock:
            self._display.say(text, is_warning=False)

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return time.monotonic() - self._start


@contextmanager
def meter(title: str, *, as_json: bool) -> Iterator[Meter]:
    """A Meter with the display that fits where this command's output goes."""
    if as_json:
        yield Meter(_Json())
    elif sys.stderr.isatty():
        with _bar(title) as display:
            yield Meter(display)
    else:
        yield Meter(_Lines(title))


class _Json:
    interval_seconds = 1.0

    def show(self, done: int, total: int, seconds: float) -> None:
        rate = done / seconds
        left = round((total - done) / rate, 1) if rate else None
        print_json(
            {"event": "progress", "done": done, "total": total, "rate": round(rate)}
            | {"eta_seconds": left}
        )

    def say(self, text: str, *, is_warning: bool) -> None:
        print_json({"event": "warning" if is_warning else "note", "message": text})


class _Lines:
    interval_seconds = 60.0

    def __init__(self, title: str) -> None:
        self._title = title

    def show(self, done: int, total: int, seconds: float) -> None:
        left = format_duration((total - done) * seconds / done) if done else "unknown"
        share = f"{100 * done / max(total, 1):.1f} % of {format_size(total)}"
        self._write(f"{share}, {format_rate(done, seconds)}, {left} left")

    def say(self, text: str, *, is_warning: bool) -> None:
        self._write(f"{'warning: ' if is_warning else ''}{printable(text)}")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"{self._title}: {text}\n")
        sys.stderr.flush()


@contextmanager
def _bar(title: str) -> Iterator[Display]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        class Bar:
            interval_seconds = 0.1

            def show(self, done: int, total: int, seconds: float) -> None:
                bar.update(task, completed=done, total=total)

            def say(self, text: str, *, is_warning: bool) -> None:
                mark = "warning: " if is_warning else ""
                bar.console.print(
                    f"{title}: {mark}{printable(text)}", markup=False, highlight=False
                )

        yield Bar()
