"""An NBD server of images that are only read.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from backy.errors import ConfigError, translated, visible
from backy.nbd.channel import Channel
from backy.nbd.exports import Exports, OpenExports
from backy.nbd.negotiation import Negotiation
from backy.nbd.transmission import Transmission
from backy.units import MiB

_MOST_CLIENTS = 256  # connections at once
_MOST_STRANGERS = 32  # of them, those that have not chosen an export yet
_HANDSHAKE_SECONDS = 20
_SEND_BUFFER = (
    MiB  # the kernel gives less: 416 KiB, but more than the 256 KiB that nbdcopy asks for
)
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
        with connection:
            if connection.family == socket.AF_UNIX:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                async with AsyncExitStack() as stack:
                    await self._speak(Channel(connection), stack)
            except ConnectionError:  # clients may leave without a word
                pass
            except OSError as error:
                self._complain(f"a client was lost: {str(error) or 'it took too long'}")

    async def _speak(self, channel: Channel, stack: AsyncExitStack) -> None:
        negotiation = Negotiation(channel, self._exports, self._tls, stack)
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            session = await negotiation.run()
        if task := asyncio.current_task():
            self._strangers.pop(task, None)
        if session:
            await Transmission(channel, session, self._log).run()

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
