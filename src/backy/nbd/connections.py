"""The connections of one export: as many as its server allows, shared by threads."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from backy.errors import BackyError, translated
from backy.nbd.client import Connection
from backy.nbd.uri import Address
from backy.nbd.wire import CAN_MULTI_CONN, RefusedError

_MOST_CONNECTIONS = 8  # as many as an image has readers


class Connections:
    """At most 8 connections to an export; one if the server does not promise that all see the same.

    They are made when they are needed. After one was lost, every use fails: a new connection may
    lead to another server, which has other data, or has lost what was written.

    `export` and `contexts` are what the first connection found. Where anything fails, `kind` is
    raised, with `hint`.
    """

    def __init__(
        self,
        address: Address,
        contexts: Collection[str],
        timeout_seconds: float,
        kind: type[BackyError],
        hint: str,
    ) -> None:
        self.address = address
        self.kind, self._hint = kind, hint
        self._is_lost = False
        self._connect = partial(Connection, address, contexts, timeout_seconds)
        with translated(kind, f"{address}: opening it", hint):
            self._idle = [self._connect()]
        self.export = self._idle[0].export
        self.contexts = {*self.export.contexts.values()}
        can_share = self.export.flags & CAN_MULTI_CONN
        self._room = threading.Semaphore(_MOST_CONNECTIONS if can_share else 1)

    def close(self) -> None:
        """Close all connections. None may be in use."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def use(self, what: str) -> Iterator[Connection]:
        """A connection for this thread alone. An OSError in the body becomes a `kind`."""
        with translated(self.kind, f"{self.address}: {what}", self._hint), self._room:
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
        is_same = (export.size, export.flags) == (self.export.size, self.export.flags)
        if not is_same or {*export.contexts.values()} != self.contexts:
            connection.close()
            raise ConnectionError("the export has changed since the first connection")
        return connection
