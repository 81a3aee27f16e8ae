"""Read at a rate and tell how far it is: an Image around another one."""

from __future__ import annotations

import threading
import time

from backy.image.image import Image
from backy.image.progress import SILENCE, Watcher
from backy.system import signals


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
