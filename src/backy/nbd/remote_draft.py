"""An NBD export as a Draft, written through several connections."""

from __future__ import annotations

from backy.model.extent import Kind
from backy.nbd import wire as nbd
from backy.nbd.connections import Connections
from backy.nbd.remote_image import NbdImage
from backy.units import MiB

_LONGEST_ZEROES = 64 * MiB  # bytes: a server that has to write them needs time for each request


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
