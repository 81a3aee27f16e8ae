"""An NBD export as an Image and as a Draft, used through several connections."""

import struct
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial

from backy.errors import BackyError, SourceError, translated
from backy.model.extent import Extent, Kind, overlay
from backy.nbd import wire as nbd
from backy.nbd.client import Connection
from backy.nbd.uri import Address
from backy.units import GiB, MiB

_MOST_CONNECTIONS = 8  # as many as an image has readers
_BITMAP = "qemu:dirty-bitmap:"
_STEP = GiB  # bytes whose block status is asked for at once; QEMU counts in 32 bits
_NO_HOLES = memoryview(struct.pack(">II", _STEP, 0))
_MOST_EXTENTS = 1 << 24  # more than 64 TiB have of which every second 4 MiB changed
_LONGEST_ZEROES = 64 * MiB  # bytes: a server that has to write them needs time for each request


class Connections:
    """At most 8 connections to an export; one if the server does not promise that all see the same.

    They are made when they are needed. After one was lost, every use fails: a new connection may
    lead to another server, which has other data, or has lost what was written.

    `export` and `contexts` are what the first connection found. Where anything fails, `kind` is
    raised, with `hint`: those of a source, if a subclass has no others.
    """

    kind: type[BackyError] = SourceError
    hint = "Is the server still running, and does it export this? Nothing was published."

    def __init__(self, address: Address, contexts: Collection[str], timeout_seconds: float) -> None:
        self.address = address
        self._is_lost = False
        self._connect = partial(Connection, address, contexts, timeout_seconds)
        with translated(self.kind, f"{address}: opening it", self.hint):
            self._idle = [self._connect()]
        self.export = self._idle[0].export
        self.contexts = {*self.export.contexts.values()}
        can_share = self.export.flags & nbd.CAN_MULTI_CONN
        self._room = threading.Semaphore(_MOST_CONNECTIONS if can_share else 1)

    def close(self) -> None:
        """Close all connections. None may be in use."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def use(self, what: str) -> Iterator[Connection]:
        """A connection for this thread alone. An OSError in the body becomes a `kind`."""
        with translated(self.kind, f"{self.address}: {what}", self.hint), self._room:
            connection = self._take()
            try:
                yield connection
            except BaseException as error:
                if not isinstance(error, nbd.RefusedError):
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
        is_same = (export.size, export.flags) == (self.export.size, self.export.flags)
        if not is_same or {*export.contexts.values()} != self.contexts:
            connection.close()
            raise ConnectionError("the export has changed since the first connection")
        return connection


class NbdImage:
    """An Image; see there for the contract. `open_image` connects, and gives one.

    `tracks_changes`: whether the server has the bitmap. Set it to False, and no extent is SAME.
    """

    def __init__(self, connections: Connections, bitmap: str | None = None) -> None:
        self.size = connections.export.size
        self._connections = connections
        self._bitmap = _BITMAP + str(bitmap)
        self.tracks_changes = self._bitmap in connections.contexts

    def extents(self) -> Iterator[Extent]:
        """See Image. After 16 million extents the rest is DATA: a hostile server must end."""
        return self.status(0, self.size)

    def status(self, position: int, end: int) -> Iterator[Extent]:
        """The extents from `position`, where a block of the server begins, to `end`."""
        left, minimum = _MOST_EXTENTS, self._connections.export.minimum
        last = end - end % minimum if self._connections.contexts else 0
        while position < last and left > 0:
            what = f"asking for the extents at byte {position}"
            with self._connections.use(what) as connection:
                length, status = connection.status(position, min(_STEP, last - position))
            yield from self._mapped(position, position + length, status)
            position += length
            left -= 1 + sum(map(len, status.values())) // 8
        if position < end:
            yield Extent(position, end - position, Kind.DATA)

    def _mapped(self, start: int, end: int, status: Mapping[str, memoryview]) -> Iterator[Extent]:
        """The extents of [start, end), from the block status of all contexts."""
        allocation = status.get(nbd.ALLOCATION, _NO_HOLES)
        content = _parsed(allocation, start, end, {0: Kind.DATA, nbd.STATE_ZERO: Kind.ZERO})
        if not self.tracks_changes:
            return content
        changes = {0: Kind.SAME, nbd.STATE_DIRTY: Kind.DATA}
        return overlay(content, _parsed(status[self._bitmap], start, end, changes))

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image. Requests whole blocks of the server, at most as much as it allows at once."""
        export, position, end = self._connections.export, offset, offset + len(buffer)
        minimum = export.minimum
        if not 0 <= offset <= end <= self.size:
            why = f"{self._connections.address} ends at byte {self.size}, not at {end}"
            raise self._connections.kind(why)
        what = f"reading {len(buffer)} bytes at byte {offset}"
        with self._connections.use(what) as connection:
            while position < end:
                low = position - position % minimum
                stop = min(end, low + export.maximum)
                high = min(stop + -stop % minimum, self.size)
                piece = wide = buffer[position - offset : stop - offset]
                if (low, high) != (position, stop):
                    wide = memoryview(bytearray(high - low))
                connection.read(low, wide)
                if wide is not piece:
                    piece[:] = wide[position - low : stop - low]
                position = stop


class NbdDraft:
    """A Draft; see there for the contract. `finish` makes it durable.

    With `is_new` the export reads as zeroes already. The bytes beyond the disk stay what they are,
    also those that share the server's smallest block with its end.
    """

    def __init__(self, connections: Connections, block_size: int, *, is_new: bool = False) -> None:
        self.block_size = block_size
        self._connections = connections
        self._is_new = is_new

    def write(self, offset: int, data: memoryview) -> None:
        """See Draft. Requests have at most as many bytes as the server allows at once."""
        minimum, maximum = self._connections.export.minimum, self._connections.export.maximum
        whole = len(data) - len(data) % minimum
        with self._connections.use(f"writing {len(data)} bytes at byte {offset}") as connection:
            for start in range(0, whole, maximum):
                connection.write(offset + start, data[start : min(start + maximum, whole)])
            if rest := data[whole:]:
                last = memoryview(bytearray(minimum))
                connection.read(offset + whole, last)
                last[: len(rest)] = rest
                connection.write(offset + whole, last)

    def zero(self, offset: int, length: int) -> None:
        """See Draft. The server makes holes if it can."""
        if self._is_new:
            return
        export = self._connections.export
        end = offset + length - length % export.minimum
        for start in range(offset, end, _LONGEST_ZEROES):
            size = min(_LONGEST_ZEROES, end - start)
            with self._connections.use(f"zeroing {size} bytes at byte {start}") as connection:
                if export.flags & nbd.SEND_WRITE_ZEROES:
                    connection.write_zeroes(start, size)
                    continue
                if export.flags & nbd.SEND_TRIM:
                    connection.trim(start, size)
            self._write_zeroes(start, size)
        if length % export.minimum:
            self.write(end, memoryview(bytes(length % export.minimum)))

    def _write_zeroes(self, offset: int, length: int) -> None:
        """Write what the server does not say is zero: what it trimmed may read as anything."""
        zeroes = memoryview(bytes(min(length, MiB)))
        for extent in NbdImage(self._connections).status(offset, offset + length):
            if extent.kind is not Kind.ZERO:
                for start in range(extent.start, extent.end, MiB):
                    self.write(start, zeroes[: extent.end - start])

    def finish(self) -> None:
        """Have the server make everything durable. Fails where a connection was lost meanwhile."""
        with self._connections.use("making it durable") as connection:
            if self._connections.export.flags & nbd.SEND_FLUSH:
                connection.flush()


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
    contexts = (nbd.ALLOCATION, _BITMAP + bitmap) if bitmap else (nbd.ALLOCATION,)
    with closing(Connections(address, contexts, timeout_seconds)) as connections:
        yield NbdImage(connections, bitmap)
