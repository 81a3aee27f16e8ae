"""An NBD export as an Image, read through several connections."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from backy.errors import SourceError
from backy.model.extent import Extent, Kind, overlay
from backy.nbd.connections import Connections
from backy.nbd.uri import Address
from backy.nbd.wire import STATE_DIRTY, STATE_ZERO
from backy.units import GiB

ALLOCATION = "base:allocation"
_BITMAP = "qemu:dirty-bitmap:"
_STEP = GiB  # bytes whose block status is asked for at once; QEMU counts in 32 bits
_NO_HOLES = memoryview(struct.pack(">II", _STEP, 0))
_MOST_EXTENTS = 1 << 24  # more than 64 TiB have of which every second 4 MiB changed
_HINT = "Is the server still running, and does it export this? Nothing was published."


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
        allocation = status.get(ALLOCATION, _NO_HOLES)
        content = _parsed(allocation, start, end, {0: Kind.DATA, STATE_ZERO: Kind.ZERO})
        if not self.tracks_changes:
            return content
        changes = {0: Kind.SAME, STATE_DIRTY: Kind.DATA}
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
    contexts = (ALLOCATION, _BITMAP + bitmap) if bitmap else (ALLOCATION,)
    connections = Connections(address, contexts, timeout_seconds, SourceError, _HINT)
    try:
        yield NbdImage(connections, bitmap)
    finally:
        connections.close()
