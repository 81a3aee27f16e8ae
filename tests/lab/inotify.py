"""Who opens, reads or changes what lies in a folder, as the kernel tells it: inotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_ALL = 0xFFF  # opened, read, changed, made, moved, removed; not: looked at with stat(2)


class Watched:
    """Folders that are watched with all that is in them."""

    def __init__(self, top: Path) -> None:
        self._queue = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._queue >= 0, os.strerror(ctypes.get_errno())
        self._folders: dict[int, str] = {}
        for folder in [each for each, _, _ in os.walk(top)]:  # which opens them
            number = _libc.inotify_add_watch(self._queue, os.fsencode(folder), _ALL)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._folders[number] = folder

    def events(self) -> list[str]:
        """What was touched since the last time, as paths."""
        found = []
        try:
            while events := os.read(self._queue, 65536):
                while events:
                    watch, _, _, length = _EVENT.unpack_from(events)
                    name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                    found.append(f"{self._folders.get(watch, '?')}/{os.fsdecode(name)}")
                    events = events[_EVENT.size + length :]
        except BlockingIOError:
            return found
        return found

    def close(self) -> None:
        os.close(self._queue)


@contextmanager
def watched(top: Path) -> Iterator[Watched]:
    """Watch a folder with all that is in it now, while the context lasts."""
    watch = Watched(top)
    try:
        yield watch
    finally:
        watch.close()
