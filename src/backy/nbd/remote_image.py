"""An NBD export as an Image, read through several connections at once."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from backy.errors import SourceError, translated
from backy.model.extent import Extent, Kind, overlay
from backy.nbd.client import Connection
from backy.nbd.uri import Address
from backy.nbd.wire import CAN_MULTI_CONN, STATE_DIRTY, STATE_ZERO, RefusedError
from backy.units import GiB

_ALLOCATION = "base:allocation"
_MOST_CONNECTIONS = 8  # as many as an image has readers
_STEP = GiB  # bytes to ask the block status of; QEMU counts in 32 bits
_NO_HOLES = memoryview(struct.pack(">II", _STEP, 0))
_MOST_EXTENTS = 1 << 24  # more than a disk of 64 TiB that changed in each second 4 MiB
_HINT = "Does the server still run and export this? Nothing was published."


class NbdImage:
    """An Image; see there for the contract. Make it with `open_image`.

    An export is read through at most 8 connections, or one where the server does not say that
    several see the same. They are made when they are needed. After one was lost nothing can be
    read any more: who answers then may be another server, with another snapshot.

    `tracks_changes`: whether the server has the bitmap. Set to False, nothing is SAME.
    """

    def __init__(self, address: Address, bitmap: str | None, timeout_seconds: float) -> None:
        self._address, self._is_lost = address, False
        self._bitmap = f"qemu:dirty-bitmap:{bitmap}"
        contexts = (_ALLOCATION, self._bitmap) if bitmap else (_ALLOCATION,)
        self._connect = partial(Connection, address, contexts, timeout_seconds)
        with translated(SourceError, f"{address}: opening it", _HINT):
            self._idle = [self._connect()]
        self._export = self._idle[0].export
        self._contexts = {*self._export.contexts.values()}
        self.size = self._export.size
        self.tracks_changes = self._bitmap in self._contexts
        can_share = self._export.flags & CAN_MULTI_CONN
        self._room = threading.Semaphore(_MOST_CONNECTIONS if can_share else 1)

    def close(self) -> None:
        """End all connections, none of which may be in use."""
        while self._idle:
            self._idle.pop().close()

    def extents(self) -> Iterator[Extent]:
        """See Image. What comes after some 16 million is called DATA, so that all servers end."""
        position, left, minimum = 0, _MOST_EXTENTS, self._export.minimum
        end = self.size - self.size % minimum if self._contexts else 0
        while position < end and left > 0:
            with self._connection(f"asking for the extents at byte {position}") as connection:
                length, status = connection.status(position, min(_STEP, end - position))
            yield from self._mapped(position, position + length, status)
            position += length
            left -= 1 + sum(map(len, status.values())) // 8
        if position < self.size:
            yield Extent(position, self.size - position, Kind.DATA)

    def _mapped(self, start: int, end: int, status: Mapping[str, memoryview]) -> Iterator[Extent]:
        """The extents of [start, end), of which each context has said something."""
        allocation = status.get(_ALLOCATION, _NO_HOLES)
        content = _told(allocation, start, end, {0: Kind.DATA, STATE_ZERO: Kind.ZERO})
        if not self.tracks_changes:
            return content
        changes = {0: Kind.SAME, STATE_DIRTY: Kind.DATA}
        return overlay(content, _told(status[self._bitmap], start, end, changes))

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image. Asks for whole blocks of the server, no more at once than it takes."""
        minimum, position, end = self._export.minimum, offset, offset + len(buffer)
        if not 0 <= offset <= end <= self.size:
            raise SourceError(f"{self._address} ends at byte {self.size}, not at {end}")
        with self._connection(f"reading {len(buffer)} bytes at byte {offset}") as connection:
            while position < end:
                low = position - position % minimum
                stop = min(end, low + self._export.maximum)
                high = min(stop + -stop % minimum, self.size)
                piece = wide = buffer[position - offset : stop - offset]
                if (low, high) != (position, stop):
                    wide = memoryview(bytearray(high - low))
                connection.read(low, wide)
                if wide is not piece:
                    piece[:] = wide[position - low : stop - low]
                position = stop

    @contextmanager
    def _connection(self, what: str) -> Iterator[Connection]:
        """A connection that no other thread has. An OSError in the body becomes a SourceError."""
        with translated(SourceError, f"{self._address}: {what}", _HINT), self._room:
            connection = self._take()
            try:
                yield connection
            except BaseException as error:
                if not isinstance(error, RefusedError):
                    self._is_lost = True
                raise
            finally:
                self._idle.append(connection)

    def _take(self) -> Connection:
        if self._is_lost:
            raise ConnectionError("a connection was lost before, and the data may have changed")
        with suppress(IndexError):
            return self._idle.pop()
        connection = self._connect()
        export = connection.export
        if (export.size, {*export.contexts.values()}) != (self.size, self._contexts):
            connection.close()
            raise ConnectionError("the export is not any more what it was")
        return connection


def _told(status: memoryview, start: int, end: int, kinds: Mapping[int, Kind]) -> Iterator[Extent]:
    """What one context says of [start, end), by the flag that counts."""
    for size, flags in struct.iter_unpack(">II", status):
        if start < end:
            yield Extent(start, min(size, end - start), kinds[flags & max(kinds)])
        start += size


@contextmanager
def open_image(
    address: Address, *, bitmap: str | None = None, timeout_seconds: float = 120
) -> Iterator[NbdImage]:
    """Connect to an export and give it as an Image, whose connections end with the body.

    With `bitmap`, and where `tracks_changes` says that the server has QEMU's dirty bitmap of that
    name, its extents are SAME where that is clean. Connecting, and later each read or question for
    extents, takes `timeout_seconds` at most. Raises SourceError where any of this fails.
    """
    image = NbdImage(address, bitmap, timeout_seconds)
    try:
        yield image
    finally:
        image.close()
