"""An NBD export as an Image, read through several connections."""

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
_STEP = GiB  # bytes whose block status is asked for at once; QEMU counts in 32 bits
_NO_HOLES = memoryview(struct.pack(">II", _STEP, 0))
_MOST_EXTENTS = 1 << 24  # more than 64 TiB have of which every second 4 MiB changed
_HINT = "Is the server still running, and does it export this? Nothing was published."


class NbdImage:
    """An Image; see there for the contract. Make it with `open_image`.

    An export is read through at most 8 connections; through one if the server does not promise
    that all see the same data. They are made when they are needed. After one was lost nothing can
    be read any more: a new connection may lead to another server, with another snapshot.

    `tracks_changes`: whether the server has the bitmap. Set it to False, and no extent is SAME.
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
        """Close all connections. None may be in use."""
        while self._idle:
            self._idle.pop().close()

    def extents(self) -> Iterator[Extent]:
        """See Image. After 16 million extents the rest is DATA: a hostile server must end."""
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
        """The extents of [start, end), from the block status of all contexts."""
        allocation = status.get(_ALLOCATION, _NO_HOLES)
        content = _parsed(allocation, start, end, {0: Kind.DATA, STATE_ZERO: Kind.ZERO})
        if not self.tracks_changes:
            return content
        changes = {0: Kind.SAME, STATE_DIRTY: Kind.DATA}
        return overlay(content, _parsed(status[self._bitmap], start, end, changes))

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image. Requests whole blocks of the server, at most as much as it allows at once."""
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
        """A connection for this thread alone. An OSError in the body becomes a SourceError."""
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
            raise ConnectionError("a connection was lost earlier; the data may have changed since")
        with suppress(IndexError):
            return self._idle.pop()
        connection = self._connect()
        export = connection.export
        if (export.size, {*export.contexts.values()}) != (self.size, self._contexts):
            connection.close()
            raise ConnectionError("the export has changed since the first connection")
        return connection


def _parsed(
    status: memoryview, start: int, end: int, kinds: Mapping[int, Kind]
) -> Iterator[Extent]:
    """The extents of [start, end) in a block status; `kinds` has them by the flag that counts."""
    for size, flags in struct.iter_unpack(">II", status):
        if start < end:
            yield Extent(start, min(size, end - start), kinds[flags & max(kinds)])
        start += size


@contextmanager
def open_image(
    address: Address, *, bitmap: str | None = None, timeout_seconds: float = 120
) -> Iterator[NbdImage]:
    """Connect to an export and give it as an Image; leaving closes its connections.

    With `bitmap`, its extents are SAME where QEMU's dirty bitmap of that name is clean;
    `tracks_changes` is False if the server has no such bitmap. Connecting, and later each request,
    takes `timeout_seconds` at most. Raises SourceError where it fails.
    """
    image = NbdImage(address, bitmap, timeout_seconds)
    try:
        yield image
    finally:
        image.close()
