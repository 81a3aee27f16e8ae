"""Watcher: hears of the progress and the warnings of an operation."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Hears how far an operation is. `advance` is called often, from any thread: be quick."""

    def begin(self, total: int) -> None:
        """There are `total` more bytes of disks to deal with."""

    def advance(self, length: int) -> None:
        """`length` more bytes are dealt with: read, or skipped."""

    def warn(self, text: str) -> None:
        """`text` is a warning for the user."""

    def note(self, text: str) -> None:
        """Something that is worth a line in the log: what a hook printed, say."""


class Silence:
    """A Watcher that does nothing."""

    def begin(self, total: int) -> None:
        """See Watcher."""

    def advance(self, length: int) -> None:
        """See Watcher."""

    def warn(self, text: str) -> None:
        """See Watcher."""

    def note(self, text: str) -> None:
        """See Watcher."""


SILENCE = Silence()
