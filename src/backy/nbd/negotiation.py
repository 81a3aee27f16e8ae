"""The server's side of the first phase of NBD: the client chooses an export and features."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from backy.errors import BackyError
from backy.image.cache import CachedImage
from backy.image.extent_map import ExtentMap
from backy.nbd import wire as nbd
from backy.nbd.channel import Channel
from backy.nbd.wire import ALLOCATION, ViolationError, packed
from backy.units import KiB, MiB

LARGEST_REQUEST = 32 * MiB
_LONGEST_OPTION = 64 * KiB
_LONGEST_STRING = 4 * KiB
_MOST_NAMES, _MOST_CONTEXTS = 10_000, 8
_MINIMUM, _PREFERRED = 1, 64 * KiB  # sizes of requests
_PLAIN_OPTIONS = {nbd.STARTTLS, nbd.ABORT}


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


@dataclass(slots=True)
class Session:
    """What client and server agreed on. `contexts` has those whose block status is asked for."""

    export: Export
    allocation: ExtentMap
    is_structured: bool
    contexts: dict[int, ExtentMap]


@dataclass(slots=True)
class Negotiation:
    """Answers the options of one client. `tls` makes the context that the client must use.

    `stack` closes what the session needs. One export is open at a time; `_contexts` are those that
    the client chose of it.
    """

    channel: Channel
    exports: OpenExports
    tls: Callable[[], ssl.SSLContext] | None
    stack: AsyncExitStack
    _is_structured: bool = False
    _contexts: dict[int, ExtentMap] = field(default_factory=dict)
    _opened: tuple[str, Export, bool] | None = None

    async def run(self) -> Session | None:
        """Answer options until the client chooses an export; None if it goes without.

        Raises OSError if the connection is lost, or the client does not follow the protocol, and
        what `tls` raises.
        """
        flags = nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES
        await self.channel.send(struct.pack(">8s8sH", nbd.NBD_MAGIC, nbd.OPTION_MAGIC, flags))
        [chosen] = struct.unpack(">I", await self.channel.receive(4))
        if chosen & ~flags or not chosen & nbd.FIXED_NEWSTYLE:
            raise ViolationError("the client does not speak the fixed newstyle protocol")
        while True:
            magic, option, length = struct.unpack(">8sII", await self.channel.receive(16))
            if magic != nbd.OPTION_MAGIC or length > _LONGEST_OPTION:
                raise ViolationError("the client sent no option, or one that is too long")
            data = await self.channel.receive(length)
            if self.tls and not self.channel.is_encrypted and option not in _PLAIN_OPTIONS:
                if option == nbd.EXPORT_NAME:
                    raise ViolationError("the client does not use TLS")
                await self._reply(option, nbd.TLS_REQUIRED, b"this server requires TLS")
            elif option == nbd.ABORT:
                await self._reply(option, nbd.ACK)
                return None
            elif option == nbd.STARTTLS:
                await self._start_tls(data)
            elif option == nbd.EXPORT_NAME:
                return await self._choose_old(data, chosen)
            elif session := await self._answer(option, data):
                return session

    async def _answer(self, option: int, data: bytes) -> Session | None:
        """Answer an option; give the session if that was the last one."""
        try:
            match option:
                case nbd.LIST:
                    await self._list(data)
                case nbd.STRUCTURED_REPLY:
                    self._is_structured = True
                    await self._reply(option, nbd.ACK)
                case nbd.LIST_META_CONTEXT | nbd.SET_META_CONTEXT:
                    await self._meta_context(option, data)
                case nbd.INFO_ONLY | nbd.GO:
                    return await self._choose(option, data)
                case _:
                    await self._reply(option, nbd.UNSUPPORTED)
        except (struct.error, UnicodeDecodeError):
            await self._reply(option, nbd.INVALID, b"the option makes no sense")
        except BackyError as error:
            await self._reply(option, nbd.UNKNOWN_EXPORT, error.message.encode()[:_LONGEST_STRING])
        return None

    async def _start_tls(self, data: bytes) -> None:
        if not self.tls or data or self.channel.is_encrypted:
            await self._reply(nbd.STARTTLS, nbd.INVALID if self.tls else nbd.POLICY)
            return
        await self._reply(nbd.STARTTLS, nbd.ACK)
        await self.channel.start_tls(self.tls())
        self._is_structured = False  # what was said in the open does not count

    async def _list(self, data: bytes) -> None:
        if data:
            raise struct.error
        names = await asyncio.to_thread(_first, self.exports.offered.names, _MOST_NAMES)
        for name in names:
            await self._reply(nbd.LIST, nbd.SERVER, packed(name))
        await self._reply(nbd.LIST, nbd.ACK)

    async def _meta_context(self, option: int, data: bytes) -> None:
        name, position = _string(data, 0)
        [count] = struct.unpack_from(">I", data, position)
        position, queries = position + 4, []
        while position < len(data):
            query, position = _string(data, position)
            queries.append(query)
        if count != len(queries) or not self._is_structured:
            raise struct.error
        export, _ = await self._open(name)
        if option == nbd.LIST_META_CONTEXT:
            known = await asyncio.to_thread(_first, export.contexts, _MOST_NAMES)
            asked = tuple(queries) or ("",)
            found = [(0, context) for context in known if context.startswith(asked)]
        else:
            found, chosen = [], {}
            for context in list(dict.fromkeys(queries))[:_MOST_CONTEXTS]:
                if status := await asyncio.to_thread(export.status, context):
                    found.append((len(found) + 1, context))
                    chosen[len(found)] = status
            self._contexts = chosen
        for number, context in found:
            content = struct.pack(">I", number) + context.encode()
            await self._reply(option, nbd.META_CONTEXT, content)
        await self._reply(option, nbd.ACK)

    async def _choose(self, option: int, data: bytes) -> Session | None:
        name, position = _string(data, 0)
        [count] = struct.unpack_from(">H", data, position)
        if len(data) != position + 2 + 2 * count:
            raise struct.error
        session, flags = await self._session(name)
        about = struct.pack(">HQH", nbd.INFO_EXPORT, session.export.image.size, flags)
        await self._reply(option, nbd.INFO, about)
        sizes = struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, _MINIMUM, _PREFERRED, LARGEST_REQUEST)
        await self._reply(option, nbd.INFO, sizes)
        await self._reply(option, nbd.ACK)
        return session if option == nbd.GO else None

    async def _choose_old(self, data: bytes, chosen: int) -> Session:
        """Answer the oldest way to choose an export, which knows no errors."""
        try:
            session, flags = await self._session(data.decode())
        except (BackyError, UnicodeDecodeError) as error:
            raise ViolationError("the client wants what is not there") from error
        zeroes = bytes(0 if chosen & nbd.NO_ZEROES else 124)
        about = struct.pack(">QH", session.export.image.size, flags)
        await self.channel.send(about + zeroes)
        return session

    async def _session(self, name: str) -> tuple[Session, int]:
        """The session with an export, and the flags of that."""
        export, is_lasting = await self._open(name)
        allocation = await asyncio.to_thread(export.status, ALLOCATION)
        if not allocation:
            raise AssertionError(ALLOCATION)
        flags = nbd.HAS_FLAGS | nbd.IS_READ_ONLY
        flags |= nbd.CAN_MULTI_CONN if is_lasting else 0
        flags |= nbd.CAN_SEND_DF if self._is_structured else 0
        return Session(export, allocation, self._is_structured, self._contexts), flags

    async def _open(self, name: str) -> tuple[Export, bool]:
        """The export, kept open; one at a time."""
        if not self._opened or self._opened[0] != name:
            await self.stack.aclose()
            self._opened, self._contexts = None, {}
            export, is_lasting = await self.stack.enter_async_context(self.exports.opened(name))
            self._opened = name, export, is_lasting
        return self._opened[1:]

    async def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        header = struct.pack(">QIII", nbd.OPTION_REPLY_MAGIC, option, kind, len(data))
        await self.channel.send(header + data)


def _first(items: Callable[[], Iterable[str]], count: int) -> list[str]:
    return list(islice(items(), count))


def _string(data: bytes, start: int) -> tuple[str, int]:
    """The string at `start`, and where it ends. Raises struct.error, UnicodeDecodeError."""
    [length] = struct.unpack_from(">I", data, start)
    end = start + 4 + length
    if end > len(data) or length > _LONGEST_STRING:
        raise struct.error
    return data[start + 4 : end].decode(), end
