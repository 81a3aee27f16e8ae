"""Standard input, output and error: an error on them does not stop the command.

A backup must not fail because a log is full or a pager was closed. Output that cannot be written
is dropped, and `trouble` reports it at the end. What comes later is written if it can be: the
daemon's log goes on when its file system has space again.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from select import PIPE_BUF, select
from typing import IO, TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ESCAPING = "backy-escaping"  # the error handler for characters that the encoding lacks
_streams: list[_Stream] = []


def protect() -> None:
    """Open descriptors 0 to 2 if they are closed, and let sys.stdout and sys.stderr drop errors.

    Call it first: else the next opened file gets a closed descriptor, and output is written to it.
    """
    # 1 is opened for reading only, so that a restore to standard output fails, and loses no disk.
    for descriptor, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, flags)  # the lowest descriptor that is free
            os.set_inheritable(opened, True)  # noqa: FBT003 - it takes no keyword
    codecs.register_error(_ESCAPING, _escape)
    _streams.clear()  # those of an earlier call are not the standard streams any more
    sys.stdout = _protected(1, "standard output", sys.stdout)
    sys.stderr = _protected(2, "standard error", sys.stderr)


@contextmanager
def prepared_input(content: bytes) -> Iterator[IO[bytes]]:
    """A file without a name, from which a program can read `content` as its standard input."""
    with open(os.memfd_create("stdin"), "w+b") as stdin:
        stdin.write(content)
        stdin.seek(0)
        yield stdin


def is_journal() -> bool:
    """Whether standard error is systemd's journal, which takes the level of a line from "<3>"."""
    found = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def take_input() -> bytes:
    """All of standard input, which is empty from now on, also for the programs that we start."""
    with open(0, "rb", closefd=False) as stdin:
        content = stdin.read()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return content


def trouble() -> str:
    """Why output was lost: "standard output: No space left on device"; "" if none was.

    Also "" if nobody wants the output: the reader of a pipe is gone, or the stream was closed when
    the command started.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    return ", ".join(
        f"{stream.title}: {stream.error.strerror}"
        for stream in _streams
        if stream.error and stream.error.errno != errno.EPIPE
    )


def say_last(text: str) -> None:
    """Write to standard error without buffers and locks, and without waiting for a reader."""
    if select([], [2], [], 0)[1]:
        io.FileIO(2, "w", closefd=False).write(text.encode(errors="replace")[:PIPE_BUF])


class _Stream(io.FileIO):
    """A file that drops what cannot be written; `error` is the first reason."""

    def __init__(self, descriptor: int, title: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.title = title
        self.error: OSError | None = None

    def write(self, content: ReadableBuffer) -> int:
        """Write some of `content`, or drop all of it. Return the number of bytes."""
        while True:
            try:
                written: int | None = super().write(content)
            except OSError as error:
                self.error = self.error or error
                return memoryview(content).nbytes
            if written is not None:
                return written
            select([], [self], [])  # another process may have made it non-blocking


def _protected(descriptor: int, title: str, opened: TextIO | None) -> TextIO:
    """A text file for `descriptor`, set up like `opened`, which is None if it was closed."""
    stream = _Stream(descriptor, title)
    if not opened:
        stream.error = BrokenPipeError(errno.EPIPE, "closed")
    _streams.append(stream)
    return io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding=opened.encoding if opened else "utf-8",
        errors=_ESCAPING,
        # With PYTHONUNBUFFERED Python says that no stream has lines; logs must not wait for 8 KiB.
        line_buffering=descriptor == 2 or bool(opened and opened.line_buffering),  # noqa: PLR2004
    )


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""The original byte, if Python could not decode it; else an escape: \xfc for ü in ASCII."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
