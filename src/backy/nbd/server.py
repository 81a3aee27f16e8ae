"""An NBD server of images that are only read.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

import asyncio
import errno
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

from backy.errors import BackyError, ConfigError, translated, visible
from backy.nbd import wire as nbd
from backy.nbd.channel import Channel
from backy.nbd.negotiation import LARGEST_REQUEST, Exports, Negotiation, OpenExports, Session
from backy.nbd.wire import ViolationError
from backy.units import MiB

_MOST_CLIENTS = 256  # connections at once
_MOST_STRANGERS = 32  # of them, those that have not chosen an export yet
_HANDSHAKE_SECONDS = 20
# The kernel gives less: 416 KiB, but more than the 256 KiB that nbdcopy asks for.
_SEND_BUFFER = MiB
_REQUEST = struct.Struct(">IHHQQI")
_IN_FLIGHT = 16  # requests of a client for which blocks are read at once
_MOST_EXTENTS = 8192  # in a block status; the client asks again for the rest
_LONGEST_TEXT = 1000  # bytes of an error
_WRITES = {nbd.WRITE, nbd.TRIM, nbd.WRITE_ZEROES}
_MOST_NOTES = 4096  # lines about blocks that are not repeated
_LOG_SECONDS = 1  # between two lines about clients that failed: strangers could fill the log


class Server:
    """Serves `exports` to all clients of a listening socket.

    With `certificates`, a folder as `qemu-nbd` takes it, clients must use TLS and show a
    certificate that the authority in ca-cert.pem signed. `log` gets what went wrong, a line each.
    """

    def __init__(
        self, exports: Exports, certificates: Path | None, log: Callable[[str], None]
    ) -> None:
        """Raises ConfigError if the certificates cannot be used."""
        self._exports = OpenExports(exports)
        self._tls = partial(tls_context, certificates) if certificates else None
        self._log = log
        self._log_once = lru_cache(_MOST_NOTES)(log)  # clients try again and again
        self._logged_at = 0.0
        self._strangers: dict[asyncio.Task[None], None] = {}
        self._clients: set[asyncio.Task[None]] = set()
        if self._tls:
            self._tls()

    async def run(self, listener: socket.socket) -> None:
        """Serve until cancelled. All connections are closed then."""
        listener.settimeout(0)
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:  # no descriptors are left, say
                    self._complain(f"accepting a client: {error}")
                    await asyncio.sleep(1)
                    continue
                self._admit(connection)
        finally:
            for task in self._clients:
                task.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)

    def _admit(self, connection: socket.socket) -> None:
        """Serve a client. If there are too many, the one goes that hesitates for longest."""
        if len(self._clients) >= _MOST_CLIENTS and not self._strangers:
            connection.close()
            self._complain(f"there are {_MOST_CLIENTS} clients already; one was sent away")
            return
        if len(self._strangers) >= _MOST_STRANGERS or len(self._clients) >= _MOST_CLIENTS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._serve(connection))
        self._strangers[task] = None
        self._clients.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._strangers.pop(task, None)

    async def _serve(self, connection: socket.socket) -> None:
        with closing(Channel(connection)) as channel:
            if connection.family == socket.AF_UNIX:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                async with AsyncExitStack() as stack:
                    await self._speak(channel, stack)
            except ConnectionError:  # clients may leave without a word
                pass
            except (OSError, BackyError) as error:
                self._complain(f"a client was lost: {str(error) or 'it took too long'}")

    async def _speak(self, channel: Channel, stack: AsyncExitStack) -> None:
        negotiation = Negotiation(channel, self._exports, self._tls, stack)
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            session = await negotiation.run()
        if task := asyncio.current_task():
            self._strangers.pop(task, None)
        if session:
            await Transmission(channel, session, self._log_once).run()

    def _complain(self, text: str) -> None:
        if time.monotonic() - self._logged_at > _LOG_SECONDS:
            self._logged_at = time.monotonic()
            self._log(visible(text))


def tls_context(folder: Path) -> ssl.SSLContext:
    """What a server needs for TLS with client certificates. Raises ConfigError.

    It is made for each client, so a renewed certificate counts at once.
    """
    hint = "It needs ca-cert.pem, server-cert.pem and server-key.pem; see docs/serve.md."
    with translated(ConfigError, f"reading the certificates in {folder}", hint):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca-cert.pem")
        context.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
        return context


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
        self._cookie = 0  # of the request that is being answered
        self._looked_at = 0  # requests in the buffer whose blocks are being read already

    async def run(self) -> None:
        """Answer until the client disconnects. Raises OSError if it does not say so."""
        while True:
            await self._channel.fill(_REQUEST.size)
            self._look_ahead()
            data = await self._channel.receive(_REQUEST.size)
            magic, flags, command, self._cookie, offset, length = _REQUEST.unpack(data)
            if magic != nbd.REQUEST_MAGIC:
                raise ViolationError("the client sent no request")
            if command == nbd.DISCONNECT:
                return
            if command == nbd.WRITE:
                await self._channel.skip(length)
            try:
                await self._answer(flags, command, offset, length)
            except _RequestError as error:
                await self._fail(error.number, str(error))
            except BackyError as error:
                self._log(error.message)
                await self._fail(errno.EIO, error.message)

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

    async def _answer(self, flags: int, command: int, offset: int, length: int) -> None:
        if command in _WRITES:
            raise _RequestError(errno.EPERM, "backups cannot be changed")
        if command not in {nbd.READ, nbd.BLOCK_STATUS}:
            raise _RequestError(errno.EINVAL, "unknown command")
        if not length or offset + length > self._image.size:
            raise _RequestError(errno.EINVAL, f"there are no {length} bytes at byte {offset}")
        if command == nbd.BLOCK_STATUS:
            await self._send_status(offset, length, 1 if flags & nbd.REQUEST_ONE else _MOST_EXTENTS)
        elif length > LARGEST_REQUEST:
            raise _RequestError(errno.EINVAL, f"{length} bytes are too many for one request")
        elif not self._session.is_structured:
            await self._send_range(self._simple(0), offset, length)
        else:
            is_whole = flags & nbd.DONT_FRAGMENT
            parts = [(offset, length, False)] if is_whole else self._chunks(offset, length)
            for start, size, is_zero in parts:
                done = nbd.IS_LAST if start + size == offset + length else 0
                if is_zero:
                    content = struct.pack(">QI", start, size)
                    await self._channel.send(self._chunk(done, nbd.HOLE, content))
                else:
                    header = self._chunk(done, nbd.DATA, struct.pack(">Q", start), size)
                    await self._send_range(header, start, size)

    def _chunks(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """The parts of a range as (start, length, is_zero); data block by block."""
        end, size = offset + length, self._image.block_size
        for extent, state in self._session.allocation.between(offset, end):
            stop = offset + extent
            while offset < stop:
                cut = stop if state & nbd.STATE_ZERO else min(stop, offset - offset % size + size)
                yield offset, cut - offset, bool(state & nbd.STATE_ZERO)
                offset = cut

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

    async def _load(self, offset: int) -> None:
        """Wait until the block at `offset` was read. Raises what the image raises."""
        if done := self._image.start(offset):
            await asyncio.wrap_future(done)

    async def _send_status(self, offset: int, length: int, most: int) -> None:
        if not self._session.contexts:
            raise _RequestError(errno.EINVAL, "no context was chosen")
        for number, status in self._session.contexts.items():
            extents = islice(status.between(offset, offset + length), most)
            data = b"".join(struct.pack(">II", *extent) for extent in extents)
            flags = nbd.IS_LAST if number == len(self._session.contexts) else 0
            content = struct.pack(">I", number) + data
            await self._channel.send(self._chunk(flags, nbd.STATUS, content))

    async def _fail(self, number: int, text: str) -> None:
        answer = self._simple(number)
        if self._session.is_structured:
            said = text.encode()[:_LONGEST_TEXT]
            content = struct.pack(">IH", number, len(said)) + said
            answer = self._chunk(nbd.IS_LAST, nbd.IS_ERROR | 1, content)
        await self._channel.send(answer)

    def _simple(self, error: int) -> bytes:
        return struct.pack(">IIQ", nbd.SIMPLE_MAGIC, error, self._cookie)

    def _chunk(self, flags: int, kind: int, content: bytes, more: int = 0) -> bytes:
        """A chunk of a structured answer, of which `more` bytes follow."""
        numbers = (nbd.CHUNK_MAGIC, flags, kind, self._cookie, len(content) + more)
        return struct.pack(">IHHQI", *numbers) + content
