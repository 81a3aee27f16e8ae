"""Watcher: hears of the progress and the warnings of an operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from backy.errors import BackyError, StoreError


class Watcher:
    """Hears how far an operation is. `advance` is called often, from any thread: be quick.

    This one does nothing; those that want to know override what they want to hear.
    """

    def begin(self, total: int) -> None:
        """There are `total` more bytes of disks to deal with."""

    def advance(self, length: int) -> None:
        """`length` more bytes are dealt with: read, or skipped."""

    def warn(self, text: str) -> None:
        """`text` is a warning for the user."""

    def note(self, text: str) -> None:
        """Something that is worth a line in the log: what a hook printed, say."""


SILENCE = Watcher()


@contextmanager
def warned(watcher: Watcher, what: str, kind: type[BackyError] = StoreError) -> Iterator[None]:
    """Warn of an error of the body, after the words `what`, instead of raising it."""
    try:
        yield
    except kind as error:
        watcher.warn(f"{what}: {error.message}")
