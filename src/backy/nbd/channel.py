"""The server's side of a connection, in an event loop. Nothing waits with bytes of an image."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress

from backy.nbd.wire import ViolationError
from backy.units import KiB

_PIECE = 64 * KiB  # bytes that are received at once
_MOST_ENCRYPTED = 256 * KiB  # bytes that are encrypted before the client takes them


class Channel:
    """A connected socket. Its methods raise OSError when the connection is lost."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        self.received = bytearray()
        self.is_encrypted = False
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._to_send = memoryview(b"")

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Encrypt from here on. Raises OSError if the client has no valid certificate."""
        if self.received:  # somebody in between may have put it there
            raise ViolationError("the client did not wait for TLS")
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while not self.is_encrypted:
            try:
                self._tls.do_handshake()
                self.is_encrypted = True
            except ssl.SSLWantReadError:
                await self.flush()
                await self._feed()
            except ssl.SSLError:
                with suppress(OSError):
                    self._send_encrypted()  # which says why
                raise
        await self.flush()

    async def receive(self, length: int) -> bytes:
        """The next `length` bytes, which the caller knows to be few."""
        await self.fill(length)
        data = bytes(self.received[:length])
        del self.received[:length]
        return data

    async def skip(self, length: int) -> None:
        """Drop the next `length` bytes, however many."""
        while length:
            await self.fill(1)
            dropped = min(length, len(self.received))
            del self.received[:dropped]
            length -= dropped

    async def fill(self, length: int) -> None:
        """Wait until `received` has `length` bytes. Raises ConnectionError at the end."""
        while len(self.received) < length:
            data = await self._some()
            if not data:
                raise ConnectionError("the client closed the connection")
            self.received += data

    async def _some(self) -> bytes:
        while self._tls:
            with suppress(ssl.SSLWantReadError):
                return self._tls.read(_PIECE)
            await self._feed()
        return await self._loop.sock_recv(self._socket, _PIECE)

    async def _feed(self) -> None:
        data = await self._loop.sock_recv(self._socket, _PIECE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            if not (sent := self.send_now(left)):
                await self.writable()
            left = left[sent:]
        await self.flush()

    def send_now(self, *parts: bytes | memoryview) -> int:
        """Send as much as the client takes now; how many bytes that were. Call `flush` at the end.

        The caller may reuse the memory on return.
        """
        with suppress(BlockingIOError):
            if not self._tls:
                return self._socket.sendmsg(parts)
            if self._send_encrypted():
                part = next(filter(len, parts))
                return self._tls.write(part[:_MOST_ENCRYPTED])
        return 0

    def _send_encrypted(self) -> bool:
        """Whether the client took all that is encrypted."""
        while self._to_send or self._outgoing.pending:
            self._to_send = self._to_send or memoryview(self._outgoing.read())
            try:
                self._to_send = self._to_send[self._socket.send(self._to_send) :]
            except BlockingIOError:
                return False
        return True

    async def flush(self) -> None:
        """Wait until the client has taken everything."""
        while not self._send_encrypted():
            await self.writable()

    async def writable(self) -> None:
        """Wait until the client takes more."""
        may_write = asyncio.Event()
        self._loop.add_writer(self._socket, may_write.set)
        try:
            await may_write.wait()
        finally:
            self._loop.remove_writer(self._socket)
