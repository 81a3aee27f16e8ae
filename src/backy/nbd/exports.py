"""What a server offers, and which of it is open: once for all clients that read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from backy.errors import BackyError
from backy.image.cache import CachedImage
from backy.image.extent_map import ExtentMap

ALLOCATION = "base:allocation"


class Export(Protocol):
    """An image that is open, and what is known of its ranges. Any thread may call it."""

    image: CachedImage

    def contexts(self) -> Iterable[str]:
        """The names of the contexts whose block status it has."""

    def status(self, context: str) -> ExtentMap | None:
        """The flags of all ranges in a context; None if there is no such context."""

    def close(self) -> None:
        """Close it. Nobody reads it any more."""


class Exports(Protocol):
    """What is offered. Methods may take long, and raise BackyError; any thread may call them."""

    def names(self) -> Iterable[str]:
        """The names that a client may choose from."""

    def find(self, name: str) -> str:
        """The lasting name of what `name` means now. Raises NotFoundError."""

    def open(self, name: str) -> Export:
        """An export by its lasting name; the caller closes it."""


class OpenExports:
    """Opens each export for the first client that wants it, and closes it after the last one."""

    def __init__(self, offered: Exports) -> None:
        self.offered = offered
        self._open: dict[str, asyncio.Task[Export]] = {}
        self._users: dict[asyncio.Task[Export], int] = {}

    @asynccontextmanager
    async def opened(self, name: str) -> AsyncIterator[tuple[Export, bool]]:
        """An export, and whether its name means the same for good. Raises BackyError."""
        lasting = await asyncio.to_thread(self.offered.find, name)
        if not (task := self._open.get(lasting)):
            opening = asyncio.to_thread(self.offered.open, lasting)
            task = self._open[lasting] = asyncio.create_task(opening)
        self._users[task] = self._users.get(task, 0) + 1
        try:
            yield await asyncio.shield(task), name == lasting
        finally:
            self._users[task] -= 1
            if not self._users[task]:
                del self._users[task], self._open[lasting]
                await asyncio.shield(_close(task))


async def _close(task: asyncio.Task[Export]) -> None:
    with suppress(BackyError):  # which the clients got
        export = await task
        await asyncio.to_thread(export.close)
