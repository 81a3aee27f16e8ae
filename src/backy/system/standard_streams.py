"""Standard input, output and error: whatever becomes of them, the work goes on.

A backup must not fail because a log is full or somebody left the pager. What cannot be written is
dropped, and `trouble` tells of it at the end.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from select import select
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ESCAPING = "backy-escaping"  # how characters are written that the encoding lacks
_streams: list[_Stream] = []


def protect() -> None:
    """Have descriptors 0 to 2 open, and sys.stdout and sys.stderr raise no OSError. Call it first.

    Descriptors that are closed would be those of the next files that are opened, and be written to.
    """
    # 1 can only be read, so that a disk that is restored to it fails instead of vanishing.
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


def trouble() -> str:
    """Why something that was printed did not arrive: "standard output: No space left on device".

    Empty where all of it did, and where nobody wants it: the reader of a pipe is gone, or the
    stream was closed from the beginning.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    failed = [each for each in _streams if each.error and each.error.errno != errno.EPIPE]
    return ", ".join(f"{each.title}: {each.error and each.error.strerror}" for each in failed)


class _Stream(io.FileIO):
    """A file that drops all that comes after an error."""

    def __init__(self, descriptor: int, title: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.title = title
        self.error: OSError | None = None

    def write(self, content: ReadableBuffer) -> int:
        """Write some of it, or drop all of it; give how much."""
        while not self.error:
            try:
                written: int | None = super().write(content)
            except OSError as error:
                self.error = error
            else:
                if written is not None:
                    return written
                self._wait()
        return memoryview(content).nbytes

    def _wait(self) -> None:
        """Wait for space: whoever shares it with us has made it non-blocking."""
        select([], [self], [])


def _protected(descriptor: int, title: str, opened: TextIO | None) -> TextIO:
    """A file like the one that Python opened for `descriptor`, which is none if that was closed."""
    stream = _Stream(descriptor, title)
    if not opened:
        stream.error = BrokenPipeError(errno.EPIPE, "closed")
    _streams.append(stream)
    return io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding=opened.encoding if opened else "utf-8",
        errors=_ESCAPING,
        line_buffering=not opened or bool(opened.line_buffering),
    )


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""The byte that Python could not decode before, else an escape: \xfc for ü in ASCII."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
