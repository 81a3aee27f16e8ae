"""Watcher: hears of the progress and the warnings of an operation. Pace: reads at a rate."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from backy.errors import BackyError, StoreError
from backy.image.image import Image
from backy.system import signals


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


class Pace:
    """At most `rate` bytes a second for all threads together; None is no limit."""

    def __init__(self, rate: int | None = None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def spend(self, length: int) -> None:
        """Wait until `length` more bytes may be read, by any thread."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            wait = max(0.0, self._free - now)
            self._free = max(self._free, now) + length / self._rate
        if wait:
            signals.sleep(wait)


class PacedImage:
    """An Image that is read at a pace. `watcher` is told of every byte that was read."""

    def __init__(self, image: Image, pace: Pace, watcher: Watcher = SILENCE) -> None:
        self.size = image.size
        self.extents = image.extents
        self._image = image
        self._pace = pace
        self._watcher = watcher

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image."""
        self._pace.spend(len(buffer))
        self._image.readinto(offset, buffer)
        self._watcher.advance(len(buffer))
