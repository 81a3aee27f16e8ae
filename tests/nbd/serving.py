"""backy's NBD server in a thread, with exports in memory, and a client that may lie."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from backy.errors import DamagedError, NotFoundError
from backy.image.cache import BlockCache, CachedImage
from backy.image.extent_map import ExtentMap
from backy.model.extent import Extent, Kind
from backy.nbd.exports import ALLOCATION
from backy.nbd.server import Server
from backy.system.sockets import unix_listener
from backy.units import KiB
from tests.memory_source import BytesImage
from tests.nbd.servers import short_folder

BLOCK = 64 * KiB
CHANGED = "backy:changed-since:1"
FLAGS = {Kind.DATA: 0, Kind.ZERO: 3}
OPTION, REPLY, REQUEST, SIMPLE, CHUNK = (
    b"IHAVEOPT", 0x3E889045565A9, 0x25609513, 0x67446698, 0x668E33EF,
)  # fmt: skip


class MemoryExport:
    """An Export of bytes; the blocks in `bad` cannot be read."""

    def __init__(self, content: bytes, cache: BlockCache, bad: set[int]) -> None:
        self._image = BytesImage(content)
        self._bad = bad
        self.size = len(content)
        self.extents = self._image.extents
        self.image = CachedImage(self, BLOCK, cache)
        self.is_closed = False

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset // BLOCK in self._bad:
            raise DamagedError(f"block {offset // BLOCK} is damaged")
        self._image.readinto(offset, buffer)

    def contexts(self) -> Iterable[str]:
        return [ALLOCATION, CHANGED]

    def status(self, context: str) -> ExtentMap | None:
        if context == CHANGED:
            first = min(self.size, BLOCK)
            extents = [Extent(0, first, Kind.SAME)]
            extents += [Extent(first, self.size - first, Kind.DATA)] if first < self.size else []
            return ExtentMap(extents, {Kind.SAME: 0, Kind.DATA: 1}, self.size)
        is_known = context == ALLOCATION
        return ExtentMap(self._image.extents(), FLAGS, self.size) if is_known else None

    def close(self) -> None:
        self.image.close()
        self.is_closed = True


@dataclass
class MemoryExports:
    """Exports of `contents`; "latest" means "disk". `opened` has all that were opened."""

    contents: Mapping[str, bytes]
    cache: BlockCache
    bad: set[int] = field(default_factory=set)
    opened: list[MemoryExport] = field(default_factory=list)

    def names(self) -> Iterable[str]:
        return self.contents

    def find(self, name: str) -> str:
        lasting = "disk" if name == "latest" else name
        if lasting not in self.contents:
            raise NotFoundError(f"there is no {name!a}")
        return lasting

    def open(self, name: str) -> MemoryExport:
        self.opened.append(MemoryExport(self.contents[name], self.cache, self.bad))
        return self.opened[-1]


@dataclass
class Serving:
    """A server that runs, its exports, and what it logged."""

    path: Path
    exports: MemoryExports
    log: list[str]

    def uri(self, name: str = "disk") -> str:
        return f"nbd+unix:///{name}?socket={self.path}"


@contextmanager
def serving(
    contents: Mapping[str, bytes],
    certificates: Path | None = None,
    bad: Iterable[int] = (),
    cache_blocks: int = 8,
) -> Iterator[Serving]:
    """A server of these exports on a Unix socket. A bug in it is raised at the end."""
    with BlockCache(cache_blocks * BLOCK) as cache, short_folder() as folder:
        exports = MemoryExports(contents, cache, set(bad))
        made = Serving(folder / "socket", exports, [])
        server = Server(exports, certificates, made.log.append)
        bugs: list[object] = []
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _, context: bugs.append(context))
        is_ready = threading.Event()

        async def run() -> None:
            with unix_listener(made.path) as listener:
                is_ready.set()
                await server.run(listener)

        task = loop.create_task(run())

        def work() -> None:
            with closing(loop):
                loop.run_until_complete(asyncio.wait([task]))
                loop.run_until_complete(loop.shutdown_default_executor())

        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert is_ready.wait(30)
            yield made
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
        assert bugs == []
        assert all(export.is_closed for export in exports.opened)


class Client:
    """A client that sends what it is told to send, and takes answers apart."""

    def __init__(self, path: Path, flags: int = 3) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self.close = self._socket.close
        self.send = self._socket.sendall
        assert self.receive(18) == b"NBDMAGIC" + OPTION + b"\0\3"
        self.send(struct.pack(">I", flags))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self._socket.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def drain(self) -> None:
        """Drop what the server has sent so far. Raises EOFError at the end."""
        self._socket.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                if not self._socket.recv(1 << 20):
                    raise EOFError
        self._socket.settimeout(30)

    def is_hung_up(self) -> bool:
        """Whether the server closes the connection, whatever it sends before."""
        try:
            while self._socket.recv(1 << 20):
                pass
        except ConnectionResetError:
            pass
        return True

    def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; the type and content of all replies."""
        self.send(OPTION + struct.pack(">II", number, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while not replies or not (replies[-1][0] == 1 or replies[-1][0] & 1 << 31):
            magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
            assert (magic, option) == (REPLY, number)
            replies.append((kind, self.receive(length)))
        return replies

    def go(self, name: str = "disk", *contexts: str, is_structured: bool = True) -> Self:
        """Choose an export, with all that is needed before."""
        if is_structured:
            assert self.option(8) == [(1, b"")]
        if contexts:
            count = struct.pack(">I", len(contexts))
            self.option(10, packed(name) + count + b"".join(map(packed, contexts)))
        assert self.option(7, packed(name) + b"\0\0")[-1][0] == 1
        return self

    def ask(self, command: int, offset: int, length: int, flags: int = 0, cookie: int = 7) -> None:
        self.send(struct.pack(">IHHQQI", REQUEST, flags, command, cookie, offset, length))

    def chunks(self, cookie: int = 7) -> Iterator[tuple[int, bytes]]:
        """The type and the content of each chunk of one structured reply."""
        flags = 0
        while not flags & 1:
            magic, flags, kind, echoed, length = struct.unpack(">IHHQI", self.receive(20))
            assert (magic, echoed) == (CHUNK, cookie)
            yield kind, self.receive(length)

    def error(self, cookie: int = 7) -> int:
        """The error number of a structured reply that consists of it."""
        [(kind, content)] = self.chunks(cookie)
        assert kind == 1 << 15 | 1
        return int.from_bytes(content[:4], "big")

    def simple(self, length: int = 0, cookie: int = 7) -> tuple[int, bytes]:
        """The error number and the data of a simple reply."""
        magic, error, echoed = struct.unpack(">IIQ", self.receive(16))
        assert (magic, echoed) == (SIMPLE, cookie)
        return error, b"" if error else self.receive(length)


def packed(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()
