"""Who wants to know how far a verb is, and what it warns of."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Hears how far a verb is. `advance` is called from any thread, often, and must be quick."""

    def begin(self, total: int) -> None:
        """So many bytes of images lie ahead."""

    def advance(self, length: int) -> None:
        """So many more are dealt with: read, skipped or known."""

    def warn(self, text: str) -> None:
        """Something that the user should know."""

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
