"""The server's side of a connection, in an event loop. Nothing waits with bytes of an image."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from backy.nbd.wire import ViolationError
from backy.units import KiB

Result = TypeVar("Result")

_PIECE = 64 * KiB  # bytes that are received at once
_TURN_SECONDS = 0.01  # of one client that sends faster than it is answered
_MOST_ENCRYPTED = 256 * KiB  # bytes that are encrypted at once, with no look at other clients


class Channel:
    """A connected socket. Its methods raise OSError when the connection is lost."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        self.received = bytearray()
        self.is_encrypted = False
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._turn_ends = 0.0

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Encrypt from here on. Raises OSError if the client has no valid certificate."""
        if self.received:  # somebody in between may have put it there
            raise ViolationError("the client did not wait for TLS")
        wrap = partial(context.wrap_socket, server_side=True, do_handshake_on_connect=False)
        self._socket = encrypted = wrap(self._socket, suppress_ragged_eofs=False)
        await self._finished(encrypted.do_handshake)
        self.is_encrypted = True

    async def receive(self, length: int) -> bytes:
        """The next `length` bytes, which the caller knows to be few."""
        await self.fill(length)
        data = bytes(self.received[:length])
        del self.received[:length]
        return data

    async def skip(self, length: int) -> None:
        """Drop the next `length` bytes, however many."""
        while length:
            length -= len(await self.receive(min(length, _PIECE)))

    async def fill(self, length: int) -> None:
        """Wait until `received` has `length` bytes. Other clients get their turn.

        Raises ConnectionError at the end.
        """
        if self._loop.time() > self._turn_ends:
            await asyncio.sleep(0)
            self._turn_ends = self._loop.time() + _TURN_SECONDS
        while len(self.received) < length:
            data = await self._finished(partial(self._socket.recv, _PIECE))
            if not data:
                raise ConnectionError("the client closed the connection")
            self.received += data

    async def _finished(self, call: Callable[[], Result]) -> Result:
        """What a call gives when it need not wait for the client any more."""
        while True:
            try:
                return call()
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            except ssl.SSLWantWriteError:
                await self.writable()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            if not (sent := self.send_now(left)):
                await self.writable()
            left = left[sent:]

    def send_now(self, *parts: bytes | memoryview) -> int:
        """Send as much as the client takes now; how many bytes that were.

        The caller may reuse the memory on return. But with TLS, after 0 the same bytes must follow.
        """
        with suppress(BlockingIOError, ssl.SSLWantWriteError):
            if not self.is_encrypted:
                return self._socket.sendmsg(parts)
            return self._socket.send(next(filter(len, parts))[:_MOST_ENCRYPTED])
        return 0

    async def writable(self) -> None:
        """Wait until the client takes more."""
        await self._ready(self._loop.add_writer, self._loop.remove_writer)

    async def _ready(self, watch: Callable[..., None], unwatch: Callable[..., bool]) -> None:
        is_ready = asyncio.Event()
        watch(self._socket, is_ready.set)
        try:
            await is_ready.wait()
        finally:
            unwatch(self._socket)
