"""A program that serves one file through FUSE, each read later than it could be answered.

    python delayed_file.py FILE DESCRIPTOR SECONDS

DESCRIPTOR is /dev/fuse, opened and mounted by `tests.lab.delayed`. Reads wait side by side, as on a
network or on many spindles; nothing but the delay limits them. A line on stdin is answered by a
line with two numbers: how many reads came since the last line, and the most that waited at once.
The protocol is that of linux/fuse.h, version 7.31.
"""

import errno
import heapq
import os
import select
import struct
import sys
import time
from pathlib import Path

_HEADER = struct.Struct("=IIQQIIIHH")  # length, operation, request, node, user, group, process
_ANSWER = struct.Struct("=IiQ")  # length, error, request
_ATTRIBUTES = struct.Struct("=QII6Q3I7I")
_INIT_ANSWER = struct.Struct("=IIIIHHIIHHI28x")
_TRANSFER = struct.Struct("=QQI")  # handle, offset, size: reads and writes begin with these
_WRITE_HEADER_BYTES = 40
_GETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC, _FLUSH, _INIT = 3, 14, 15, 16, 18, 20, 25, 26
_FORGET, _INTERRUPT, _BATCH_FORGET, _DESTROY = 2, 36, 42, 38
_NO_ANSWER = {_FORGET, _INTERRUPT, _BATCH_FORGET}
_ASYNC_READ, _BIG_WRITES, _ASYNC_DIRECT_IO, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 15, 1 << 22
_AT_ONCE = 256  # requests in the kernel's queue; 12 by default
_MOST_BYTES = 1 << 20


class _Server:
    """Answers the requests of one mount."""

    def __init__(self, file: int, fuse: int, seconds: float) -> None:
        self._file = file
        self._fuse = fuse
        self._seconds = seconds
        self._waiting: list[tuple[float, int, int, int]] = []  # when, request, offset, size
        self._reads = 0
        self._most = 0

    def run(self) -> None:
        """Until it is unmounted, or stdin ends."""
        poll = select.poll()
        poll.register(self._fuse, select.POLLIN)
        poll.register(sys.stdin.fileno(), select.POLLIN)
        while True:
            left = self._waiting[0][0] - time.monotonic() if self._waiting else 1.0
            for descriptor, _ in poll.poll(max(0.0, left) * 1000):
                if descriptor == self._fuse:
                    self._take()
                elif not os.read(descriptor, 1):
                    return
                else:
                    os.write(1, f"{self._reads} {self._most}\n".encode())
                    self._reads = self._most = 0
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, request, offset, size = heapq.heappop(self._waiting)
                self._answer(request, os.pread(self._file, size, offset))

    def _take(self) -> None:
        try:
            message = memoryview(os.read(self._fuse, _MOST_BYTES + 4096))
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                sys.exit()
            raise
        _, operation, request, *_ = _HEADER.unpack_from(message)
        body = message[_HEADER.size :]
        if operation == _READ:
            _, offset, size = _TRANSFER.unpack_from(body)
            when = time.monotonic() + self._seconds
            heapq.heappush(self._waiting, (when, request, offset, size))
            self._reads += 1
            self._most = max(self._most, len(self._waiting))
        elif operation == _WRITE:
            _, offset, size = _TRANSFER.unpack_from(body)
            os.pwrite(self._file, body[_WRITE_HEADER_BYTES:][:size], offset)
            self._answer(request, struct.pack("=II", size, 0))
        elif operation == _INIT:
            flags = _ASYNC_READ | _BIG_WRITES | _ASYNC_DIRECT_IO | _MAX_PAGES
            pages = _MOST_BYTES // 4096
            most = (_AT_ONCE, _AT_ONCE, _MOST_BYTES, 1, pages, 0, 0)
            self._answer(request, _INIT_ANSWER.pack(7, 31, _MOST_BYTES, flags, *most))
        elif operation == _GETATTR:
            size = os.fstat(self._file).st_size
            times = (0,) * 6
            self._answer(
                request,
                _ATTRIBUTES.pack(60, 0, 0, 1, size, size // 512, *times, 0o100600, 1, *(0,) * 5),
            )
        elif operation == _OPEN:
            self._answer(request, bytes(16))
        elif operation in {_RELEASE, _FLUSH, _FSYNC, _DESTROY}:
            self._answer(request)
        elif operation not in _NO_ANSWER:
            self._answer(request, error=errno.ENOSYS)

    def _answer(self, request: int, content: bytes = b"", error: int = 0) -> None:
        header = _ANSWER.pack(_ANSWER.size + len(content), -error, request)
        os.writev(self._fuse, [header, content])


if __name__ == "__main__":
    _Server(os.open(Path(sys.argv[1]), os.O_RDWR), int(sys.argv[2]), float(sys.argv[3])).run()
