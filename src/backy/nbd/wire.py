"""NBD on the wire: a socket with a time limit for each exchange, and the protocol's numbers.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

import os
import socket
import ssl
import struct
import time
from contextlib import ExitStack
from typing import Any

from backy.nbd.uri import Address
from backy.system import signals

NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
FIXED_NEWSTYLE, NO_ZEROES = 1, 2  # flags of the server
# Flags of an export.
HAS_FLAGS, IS_READ_ONLY, SEND_FLUSH, SEND_TRIM, SEND_WRITE_ZEROES = 1, 2, 1 << 2, 1 << 5, 1 << 6
CAN_SEND_DF, CAN_MULTI_CONN = 1 << 7, 1 << 8
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO_ONLY, GO, STRUCTURED_REPLY = 1, 2, 3, 5, 6, 7, 8  # options
LIST_META_CONTEXT, SET_META_CONTEXT = 9, 10
ACK, SERVER, INFO, META_CONTEXT, IS_REFUSED = 1, 2, 3, 4, 1 << 31  # types of replies to options
UNSUPPORTED, POLICY, INVALID = IS_REFUSED + 1, IS_REFUSED + 2, IS_REFUSED + 3
TLS_REQUIRED, UNKNOWN_EXPORT = IS_REFUSED + 5, IS_REFUSED + 6
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 3, 4, 6, 7  # commands
DONT_FRAGMENT, REQUEST_ONE = 1 << 2, 1 << 3  # flags of a request
IS_LAST = 1  # flag of a chunk
NONE, DATA, HOLE, STATUS, IS_ERROR = 0, 1, 2, 5, 1 << 15  # types of chunks
STATE_HOLE, STATE_ZERO = 1, 2  # of base:allocation; a hole that is not zero may read as anything
ALLOCATION = "base:allocation"  # a context: which ranges hold data
_LOOK_SECONDS = 0.5  # a thread that waits for the server looks so often whether it is to stop
STATE_DIRTY = 1  # https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/nbd.txt


def packed(text: str) -> bytes:
    """A string as it is sent, after its length."""
    return struct.pack(">I", len(text.encode())) + text.encode()


class ViolationError(OSError):
    """The server broke the protocol; the connection cannot be used any more."""


class RefusedError(OSError):
    """The server answered with an error; the connection can still be used."""

    def __init__(self, error: int, text: str) -> None:
        shown = "".join(each if each.isprintable() else "?" for each in text[:200])
        # qemu-nbd only says "writing to file failed" where the file system is full.
        reason = os.strerror(error & 0xFFFF) if error else ""
        super().__init__(error, f"the server says: {'; '.join(filter(None, (shown, reason)))}")


class Wire:
    """A connected socket. `begin` starts the clock for all calls until the next `begin`.

    After the time limit they raise TimeoutError, even if some bytes have arrived meanwhile.
    """

    def __init__(self, where: str | tuple[str, int], timeout_seconds: float) -> None:
        """Connect. Raises OSError where nobody answers."""
        self._timeout = timeout_seconds
        if isinstance(where, tuple):
            self._socket = socket.create_connection(where, timeout_seconds)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            with ExitStack() as stack:
                self._socket = stack.enter_context(socket.socket(socket.AF_UNIX))
                self._socket.settimeout(timeout_seconds)
                self._socket.connect(where)
                stack.pop_all()
        self.close = self._socket.close
        self.begin()

    def begin(self) -> None:
        """Start the clock anew."""
        self._deadline = time.monotonic() + self._timeout

    def _in_time(self, most: float = _LOOK_SECONDS) -> socket.socket:
        """The socket, which waits `most` seconds; by default the caller soon looks at signals."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(min(left, most))
        return self._socket

    def start_tls(self, address: Address) -> None:
        """Encrypt from here on. Raises OSError where a certificate is missing or invalid."""
        folder = address.certificates
        context = ssl.create_default_context(cafile=folder and folder / "ca-cert.pem")
        if folder and (folder / "client-cert.pem").exists():
            context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
        connection = self._in_time(self._timeout)
        self._socket = context.wrap_socket(connection, server_hostname=address.tls_name)
        self.close = self._socket.close

    def send(self, layout: str, *values: object, data: bytes | memoryview = b"") -> None:
        """Send `values` in the layout of `struct`, and then `data`.

        Raises CancelledError if a signal told this process to stop while the server takes nothing.
        """
        for piece in (struct.pack(layout, *values), data):
            rest = memoryview(piece)
            while rest:
                connection = self._in_time()
                try:
                    rest = rest[connection.send(rest) :]
                except TimeoutError:
                    signals.obey()

    def receive_into(self, buffer: memoryview) -> None:
        """Fill the whole buffer. Raises CancelledError if a signal told this process to stop."""
        while buffer:
            signals.obey()
            connection = self._in_time()
            try:
                length = connection.recv_into(buffer)
            except TimeoutError:
                continue
            if not length:
                raise ConnectionError("the server closed the connection")
            buffer = buffer[length:]

    def receive(self, length: int) -> bytearray:
        """The next `length` bytes. The caller has checked that these are not too many."""
        data = bytearray(length)
        self.receive_into(memoryview(data))
        return data

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """The next values, in the layout of `struct`."""
        return struct.unpack(layout, self.receive(struct.calcsize(layout)))
