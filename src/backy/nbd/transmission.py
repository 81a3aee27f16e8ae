"""The server's side of the second phase of NBD: requests and replies."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Callable, Iterator
from itertools import islice

from backy.errors import BackyError
from backy.nbd import wire as nbd
from backy.nbd.channel import Channel
from backy.nbd.negotiation import LARGEST_REQUEST, Session
from backy.nbd.wire import ViolationError

_REQUEST = struct.Struct(">IHHQQI")
_IN_FLIGHT = 16  # requests of a client for which blocks are read at once
_MOST_EXTENTS = 8192  # in a block status; the client asks again for the rest
_LONGEST_TEXT = 1000  # bytes of an error
_WRITES = {nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES}


class _RequestError(Exception):
    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class Transmission:
    """Answers the requests of one client, in their order. `log` gets what it could not read."""

    def __init__(self, channel: Channel, session: Session, log: Callable[[str], None]) -> None:
        self._channel = channel
        self._session = session
        self._image = session.export.image
        self._log = log
        self._looked_at = 0  # requests in the buffer whose blocks are being read already

    async def run(self) -> None:
        """Answer until the client disconnects. Raises OSError if it does not say so."""
        while True:
            await self._channel.fill(_REQUEST.size)
            self._look_ahead()
            data = await self._channel.receive(_REQUEST.size)
            magic, flags, command, cookie, offset, length = _REQUEST.unpack(data)
            if magic != nbd.REQUEST_MAGIC:
                raise ViolationError("the client sent no request")
            if command == nbd.DISCONNECT:
                return
            if command == nbd.WRITE:
                await self._channel.skip(length)
            try:
                await self._answer(flags, command, cookie, offset, length)
            except _RequestError as error:
                await self._fail(cookie, error.number, str(error))
            except BackyError as error:
                self._log(error.message)
                await self._fail(cookie, errno.EIO, error.message)

    def _look_ahead(self) -> None:
        """Start to read for the requests that have arrived."""
        received = self._channel.received
        there = min(len(received) // _REQUEST.size, _IN_FLIGHT)
        for place in range(self._looked_at, there):
            _, _, command, _, offset, _ = _REQUEST.unpack_from(received, place * _REQUEST.size)
            if command != nbd.READ or offset >= self._image.size:
                there = place + 1  # what follows may be data to write
                break
            self._image.look_ahead(offset)
        self._looked_at = max(there, 1) - 1

    async def _answer(
        self, flags: int, command: int, cookie: int, offset: int, length: int
    ) -> None:
        if command in _WRITES:
            raise _RequestError(errno.EPERM, "backups cannot be changed")
        if command not in {nbd.READ, nbd.BLOCK_STATUS}:
            raise _RequestError(errno.EINVAL, "unknown command")
        if not length or offset + length > self._image.size:
            raise _RequestError(errno.EINVAL, f"there are no {length} bytes at byte {offset}")
        if command == nbd.BLOCK_STATUS:
            await self._send_status(cookie, offset, length, is_one=bool(flags & nbd.REQUEST_ONE))
        elif length > LARGEST_REQUEST:
            raise _RequestError(errno.EINVAL, f"{length} bytes are too many for one request")
        elif not self._session.is_structured:
            await self._send_range(struct.pack(">IIQ", nbd.SIMPLE_MAGIC, 0, cookie), offset, length)
        elif flags & nbd.DONT_FRAGMENT:
            await self._send_data(cookie, offset, length, flags=nbd.IS_LAST)
        else:
            for start, size, is_zero, is_last in self._chunks(offset, length):
                done = nbd.IS_LAST if is_last else 0
                if is_zero:
                    header = self._chunk(cookie, done, nbd.HOLE, 12)
                    await self._channel.send(header + struct.pack(">QI", start, size))
                else:
                    await self._send_data(cookie, start, size, flags=done)

    def _chunks(self, offset: int, length: int) -> Iterator[tuple[int, int, bool, bool]]:
        """The parts of a range as (start, length, is_zero, is_last); data block by block."""
        end, size = offset + length, self._image.block_size
        for extent, state in self._session.allocation.between(offset, end):
            stop = offset + extent
            while offset < stop:
                cut = stop if state & nbd.STATE_ZERO else min(stop, offset - offset % size + size)
                yield offset, cut - offset, bool(state & nbd.STATE_ZERO), cut == end
                offset = cut

    async def _send_data(self, cookie: int, offset: int, length: int, *, flags: int) -> None:
        header = self._chunk(cookie, flags, nbd.DATA, 8 + length) + struct.pack(">Q", offset)
        await self._send_range(header, offset, length)

    async def _send_range(self, header: bytes, offset: int, length: int) -> None:
        """Send a header and bytes of the image. What cannot be read is known before the header.

        While the client is not ready, no block is held for it.
        """
        size = self._image.block_size
        for start in range(offset - offset % size, offset + length, size):
            await self._load(start)
        left = memoryview(header)
        try:
            while length:
                with self._image.cached(offset, length) as piece:
                    sent = 0 if piece is None else self._channel.send_now(left, piece)
                if piece is None:
                    await self._load(offset)
                elif not sent:
                    await self._channel.writable()
                in_header = min(sent, len(left))
                left = left[in_header:]
                offset, length = offset + sent - in_header, length - sent + in_header
        except BackyError as error:  # it was good a moment ago; the header promised more
            self._log(error.message)
            raise ConnectionError from error
        await self._channel.flush()

    async def _load(self, offset: int) -> None:
        """Wait until the block at `offset` was read. Raises what the image raises."""
        if done := self._image.start(offset):
            await asyncio.wrap_future(done)

    async def _send_status(self, cookie: int, offset: int, length: int, *, is_one: bool) -> None:
        if not self._session.contexts:
            raise _RequestError(errno.EINVAL, "no context was chosen")
        for number, status in self._session.contexts.items():
            most = 1 if is_one else _MOST_EXTENTS
            extents = islice(status.between(offset, offset + length), most)
            data = b"".join(struct.pack(">II", *extent) for extent in extents)
            flags = nbd.IS_LAST if number == len(self._session.contexts) else 0
            header = self._chunk(cookie, flags, nbd.STATUS, 4 + len(data))
            await self._channel.send(header + struct.pack(">I", number) + data)

    async def _fail(self, cookie: int, number: int, text: str) -> None:
        if self._session.is_structured:
            said = text.encode()[:_LONGEST_TEXT]
            kind = nbd.IS_ERROR | 1
            header = self._chunk(cookie, nbd.IS_LAST, kind, 6 + len(said))
            await self._channel.send(header + struct.pack(">IH", number, len(said)) + said)
        else:
            await self._channel.send(struct.pack(">IIQ", nbd.SIMPLE_MAGIC, number, cookie))

    def _chunk(self, cookie: int, flags: int, kind: int, length: int) -> bytes:
        return struct.pack(">IHHQI", nbd.CHUNK_MAGIC, flags, kind, cookie, length)
