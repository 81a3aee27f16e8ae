"""Raw bytes in an open file or block device, as a Draft and as an Image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from backy.errors import TargetError, translated
from backy.model.extent import Extent
from backy.system import files
from backy.system.files import AnyPath, Cache, File


class RawDraft:
    """A raw file or block device, as a Draft. It only writes; RawImage reads."""

    def __init__(self, file: File, block_size: int, *, is_new: bool) -> None:
        self.block_size = block_size
        self._file = file
        self._is_new = is_new

    def write(self, offset: int, data: memoryview) -> None:
        """Write past the page cache: a restored disk would only push out what is in use."""
        with translated(TargetError, f"writing {self._file.path} at byte {offset}", "Is it full?"):
            self._file.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Make a hole; a new file is one."""
        if not self._is_new:
            with translated(TargetError, f"zeroing {self._file.path} at byte {offset}"):
                self._file.zero(offset, length)


class RawImage:
    """A raw file or block device, as an Image that is read from the medium."""

    def __init__(self, file: File) -> None:
        self.size = file.size()
        self._file = file

    def extents(self) -> Iterator[Extent]:
        """Holes are ZERO."""
        with translated(TargetError, f"looking for holes in {self._file.path}"):
            yield from self._file.extents(self.size)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image; raises TargetError."""
        with translated(TargetError, f"reading {self._file.path} at byte {offset}"):
            length = self._file.read_into(offset, buffer)
        if length != len(buffer):
            raise TargetError(f"{self._file.path} ends at byte {offset + length}")


@contextmanager
def closing(file: File) -> Iterator[None]:
    """Close `file` at the end; unless the body fails, it is durable then. Raises TargetError."""
    try:
        yield
        with translated(TargetError, f"writing {file.path}", "Is it full?"):
            file.sync()
            file.close()
    finally:
        with suppress(OSError):  # what failed before is worth more
            file.close()


@contextmanager
def read_raw(path: AnyPath) -> Iterator[RawImage]:
    """The content of a raw file or block device, from its medium. Raises TargetError."""
    with translated(TargetError, f"opening {path}"):
        file = files.open_to_read(path, Cache.AVOID)
    with file:
        yield RawImage(file)
