"""An NBD server in a thread of the test, which can be told to break any rule of the protocol."""

import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

from tests.nbd.servers import short_folder

Answer = Iterable[bytes]
Extents = list[tuple[int, int]]

OPTION_REPLY = 0x3E889045565A9
ACK, INFO, CONTEXT, UNSUPPORTED = 1, 3, 4, (1 << 31) + 1
STARTTLS, GO, STRUCTURED, SET_CONTEXT = 5, 7, 8, 10
READ, DISCONNECT, STATUS = 0, 2, 7
NONE, DATA, HOLE, EXTENTS, ERROR, ERROR_OFFSET = 0, 1, 2, 5, (1 << 15) + 1, (1 << 15) + 2
GREETING = b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3)


@dataclass(frozen=True)
class Request:
    """What the client asks for."""

    cookie: int
    offset: int
    length: int

    def simple(
        self, error: int = 0, *, magic: int = 0x67446698, cookie: int | None = None
    ) -> bytes:
        return struct.pack(">IIQ", magic, error, self.cookie if cookie is None else cookie)

    def chunk(
        self, kind: int, data: bytes = b"", *, last: bool = True, length: int | None = None
    ) -> bytes:
        size = len(data) if length is None else length
        return struct.pack(">IHHQI", 0x668E33EF, last, kind, self.cookie, size) + data

    def data(self, offset: int, content: bytes, *, last: bool = True) -> bytes:
        return self.chunk(DATA, struct.pack(">Q", offset) + content, last=last)

    def hole(self, offset: int, length: int, *, last: bool = True) -> bytes:
        return self.chunk(HOLE, struct.pack(">QI", offset, length), last=last)

    def extents(self, context: int, extents: Extents, *, last: bool = True) -> bytes:
        pairs = b"".join(struct.pack(">II", *each) for each in extents)
        return self.chunk(EXTENTS, struct.pack(">I", context) + pairs, last=last)

    def error(self, number: int, text: bytes = b"", *, last: bool = True) -> bytes:
        return self.chunk(ERROR, struct.pack(">IH", number, len(text)) + text, last=last)


def option_reply(option: int, kind: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return struct.pack(">QIII", OPTION_REPLY, option, kind, size) + data


def info(size: int, flags: int = 0x103) -> bytes:
    """The reply to GO that says how large the export is; by default many may connect to it."""
    return option_reply(GO, INFO, struct.pack(">HQH", 0, size, flags))


def block_sizes(minimum: int, preferred: int, maximum: int) -> bytes:
    return option_reply(GO, INFO, struct.pack(">HIII", 3, minimum, preferred, maximum))


@dataclass(frozen=True)
class Script:
    """A server that behaves, with what it says in each place; a test replaces one of these."""

    content: bytes = b""
    greeting: Answer = (GREETING,)
    go: Answer | None = None
    structured: Answer = (option_reply(STRUCTURED, ACK),)
    contexts: Mapping[str, Callable[[Request], Extents]] = field(default_factory=dict)
    set_context: Answer | None = None
    read: Callable[[Request], Answer] | None = None
    status: Callable[[Request], Answer] | None = None

    def serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        self.say(connection, self.greeting)
        stream.read(4)
        while head := stream.read(16):
            _, option, length = struct.unpack(">8sII", head)
            data = stream.read(length)
            self.say(connection, self.option(option, data))
            if option == GO:
                break
        while head := stream.read(28):
            _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", head)
            if command == DISCONNECT:
                break
            request = Request(cookie, offset, length)
            self.say(connection, self.answer(command, request))

    def say(self, connection: socket.socket, answer: Answer) -> None:
        for piece in answer:
            connection.sendall(piece)

    def option(self, option: int, data: bytes) -> Answer:
        if option == GO:
            return self.go or (info(len(self.content)), option_reply(GO, ACK))
        if option == STRUCTURED:
            return self.structured
        if option == SET_CONTEXT:
            return self.set_context or self.known_contexts(data)
        return [option_reply(option, UNSUPPORTED)]

    def known_contexts(self, data: bytes) -> Answer:
        for number, name in enumerate(self.contexts):
            if name.encode() in data:
                yield option_reply(SET_CONTEXT, CONTEXT, struct.pack(">I", number) + name.encode())
        yield option_reply(SET_CONTEXT, ACK)

    def answer(self, command: int, request: Request) -> Answer:
        if command == READ and self.read:
            return self.read(request)
        if command == READ:
            end = request.offset + request.length
            return [request.data(request.offset, self.content[request.offset : end])]
        return self.status(request) if self.status else self.known_status(request)

    def known_status(self, request: Request) -> Answer:
        for number, extents in enumerate(self.contexts.values()):
            yield request.extents(number, extents(request), last=False)
        yield request.chunk(NONE)


def everything(request: Request) -> Extents:
    """One extent of data."""
    return [(request.length, 0)]


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """The URI of a server that follows the script; its threads end with the body."""
    with short_folder() as folder, closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        open_ones: list[socket.socket] = []
        threads: list[threading.Thread] = []

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError, struct.error):
                script.serve(connection)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    open_ones.append(connection)
                    threads.append(threading.Thread(target=serve, args=(connection,)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"nbd+unix:///?socket={folder}/socket"
        finally:
            # Only this ends an `accept` and a `recv` in other threads; `close` does not.
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in open_ones:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
