"""One connection to an NBD server, which sends one request at a time."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from contextlib import suppress

from backy.errors import CancelledError
from backy.nbd import wire as nbd
from backy.nbd.handshake import shake_hands
from backy.nbd.uri import Address
from backy.nbd.wire import RefusedError, ViolationError, Wire
from backy.units import KiB, MiB

_LONGEST_ERROR = 6 + 4 * KiB + 8  # bytes: the longest text that the protocol allows, and an offset
_LONGEST_STATUS = 4 + 8 * MiB  # bytes: as many extents as nbdkit sends, 8 times as many as QEMU
_SIMPLE = 1 << 16  # stands for the type of a simple reply, which has none


class Connection:
    """A connection, for one thread at a time. All methods may raise OSError.

    After RefusedError it can still be used, after any other error not.
    """

    def __init__(self, address: Address, contexts: Collection[str], timeout_seconds: float) -> None:
        """Connect and shake hands. This, and later each call, takes `timeout_seconds` at most."""
        self._wire = Wire(address.where, timeout_seconds)
        self._cookie = 0
        try:
            self.export = shake_hands(self._wire, address, contexts)
        except BaseException:
            self._wire.close()
            raise

    def close(self) -> None:
        """Send a disconnect request, which has no answer, and close the socket."""
        with suppress(OSError, CancelledError):
            self._ask(nbd.DISCONNECT, 0, 0)
        self._wire.close()

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, which is not empty and fits the block sizes of the export.

        Chunks must come in ascending order. All known servers send them so.
        """
        self._ask(nbd.READ, offset, len(buffer))
        rest = buffer
        for kind, length in self._answer():
            start, size = offset + len(buffer) - len(rest), len(rest)
            if kind == nbd.DATA and length > 8:  # noqa: PLR2004 - the offset comes first
                [start], size = self._wire.unpack(">Q"), length - 8
            elif (kind, length) == (nbd.HOLE, 12):
                start, size = self._wire.unpack(">QI")
            elif kind != _SIMPLE:
                raise ViolationError(
                    f"the answer to a read has a chunk of type {kind} and {length} bytes"
                )
            if start != offset + len(buffer) - len(rest) or not 0 < size <= len(rest):
                raise ViolationError(f"{size} bytes came for byte {start}, which is out of order")
            if kind == nbd.HOLE:
                rest[:size] = bytes(size)
            else:
                self._wire.receive_into(rest[:size])
            rest = rest[size:]
        if rest:
            raise ViolationError(f"the last {len(rest)} bytes of a read are missing")

    def status(self, offset: int, length: int) -> tuple[int, dict[str, memoryview]]:
        """How many bytes from `offset` on all contexts describe, and each context's description.

        A description is pairs of 32 bits, for `struct.iter_unpack`: a length, which is not 0, and
        flags. At most `length` bytes are described.
        """
        self._ask(nbd.BLOCK_STATUS, offset, length)
        covered, descriptions = length, dict[str, memoryview]()
        for kind, size in self._answer():
            if kind != nbd.STATUS or not 4 < size <= _LONGEST_STATUS or size % 8 != 4:  # noqa: PLR2004
                raise ViolationError(f"a block status has type {kind} and {size} bytes")
            data = memoryview(self._wire.receive(size))
            name = self.export.contexts.get(int.from_bytes(data[:4], "big"), "")
            if not name or name in descriptions:
                raise ViolationError("a block status came that we did not ask for")
            descriptions[name] = data[4:]
            covered = min(covered, _covered(data[4:], length))
        if len(descriptions) < len(self.export.contexts):
            raise ViolationError("the block status of a context is missing")
        return covered, descriptions

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data`, which is not empty and fits the block sizes of the export.

        Like all that changes an export, it is durable after a `flush`, of any connection if the
        server promises that all see the same.
        """
        self._do(nbd.WRITE, offset, len(data), data)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; the server may make a hole."""
        self._do(nbd.WRITE_ZEROES, offset, length)

    def trim(self, offset: int, length: int) -> None:
        """Say that a range is not needed. It may read as anything then; `status` says what."""
        self._do(nbd.TRIM, offset, length)

    def flush(self) -> None:
        """Have the server make durable what was written."""
        self._do(nbd.FLUSH, 0, 0)

    def _do(self, command: int, offset: int, length: int, data: bytes | memoryview = b"") -> None:
        self._ask(command, offset, length, data)
        for kind, size in self._answer():
            if kind != _SIMPLE:
                raise ViolationError(
                    f"the answer to command {command} has a chunk of type {kind} and {size} bytes"
                )

    def _ask(self, command: int, offset: int, length: int, data: bytes | memoryview = b"") -> None:
        self._wire.begin()
        self._cookie += 1
        numbers = (nbd.REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        self._wire.send(">IHHQQI", *numbers, data=data)

    def _answer(self) -> Iterator[tuple[int, int]]:
        """Give the type and the length of each chunk with data, which the caller receives.

        Raises RefusedError at the end where a chunk was an error.
        """
        flags, refused = 0, None
        while not flags & nbd.IS_LAST:
            [magic] = self._wire.unpack(">I")
            if magic == nbd.CHUNK_MAGIC:
                flags, kind, cookie, length = self._wire.unpack(">HHQI")
            else:
                error, cookie = self._wire.unpack(">IQ")
                flags, kind, length = nbd.IS_LAST, nbd.NONE if error else _SIMPLE, 0
                refused = RefusedError(error, "") if error else None
            if magic not in {nbd.CHUNK_MAGIC, nbd.SIMPLE_MAGIC} or cookie != self._cookie:
                raise ViolationError("an answer came that does not belong to our request")
            if kind & nbd.IS_ERROR:
                refused = self._error(length)
            elif kind != nbd.NONE:
                yield kind, length
        if refused:
            raise refused

    def _error(self, length: int) -> RefusedError:
        """The error in a chunk; an offset may follow its text."""
        if not 6 <= length <= _LONGEST_ERROR:  # noqa: PLR2004
            raise ViolationError(f"the chunk of an error has {length} bytes")
        data = self._wire.receive(length)
        error, size = struct.unpack_from(">IH", data)
        return RefusedError(error, data[6 : 6 + size].decode(errors="replace"))


def _covered(status: memoryview, length: int) -> int:
    """How many bytes a context describes. Only its last extent may go beyond `length`."""
    covered = 0
    for size, _ in struct.iter_unpack(">II", status):
        if not size or covered >= length:
            raise ViolationError("a block status has an empty extent, or one beyond our request")
        covered += size
    return covered
