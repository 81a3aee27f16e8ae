"""Files and block devices of this host, as images."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from backy.errors import SourceError, translated
from backy.model.extent import Extent
from backy.system import files
from backy.system.files import Cache, File

_OPEN_HINT = "Is the path right, and may you read it?"
_READ_HINT = "Check the disk behind it (dmesg); nothing was published, older revisions are intact."
_CANNOT_CLONE = {errno.EOPNOTSUPP, errno.EROFS}  # of O_TMPFILE: a read-only snapshot is fine


class LocalImage:
    """One file or block device, as an Image."""

    def __init__(self, path: Path, file: File, *, is_clone: bool = False) -> None:
        """Read `file`, which the caller closes: the one at `path`, or a clone of it."""
        self.size = file.size()
        self.is_clone = is_clone
        self._path = path
        self._file = file
        self._first_status = file.status()

    def extents(self) -> Iterator[Extent]:
        """See Image. Holes are ZERO."""
        with translated(SourceError, f"looking for holes in {self._path}", _READ_HINT):
            yield from self._file.extents(self.size)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image."""
        with translated(SourceError, f"reading {self._path} at byte {offset}", _READ_HINT):
            length = self._file.read_into(offset, buffer)
        if length != len(buffer):
            why = f"{self._path} ended at byte {offset + length} while it was read"
            raise SourceError(why, "Back it up while nobody resizes it, or from a snapshot.")

    def warnings(self) -> Iterator[str]:
        """Warn where the file was changed while it was read. A device does not tell."""
        if self.is_clone or self._file.is_device:
            return
        with translated(SourceError, f"looking at {self._path}", _READ_HINT):
            now = self._file.status()
        before = self._first_status
        if (now.st_mtime_ns, now.st_size) != (before.st_mtime_ns, before.st_size):
            yield f"{self._path} changed while it was read; parts of it are older"


@contextmanager
def open_local(path: Path, clone: File | None = None) -> Iterator[LocalImage]:
    """Open a file or block device as an Image; with `clone`, which the caller closes, read that.

    Raises SourceError where it cannot be opened, or is empty.
    """
    with ExitStack() as stack:
        with translated(SourceError, f"opening the source {path}", _OPEN_HINT):
            file = clone or stack.enter_context(files.open_to_read(path, Cache.SPARE))
            image = LocalImage(path, file, is_clone=clone is not None)
        if not image.size:
            hint = "A disk image has at least one byte; is the path right?"
            raise SourceError(f"{path} is empty", hint)
        yield image


def clone(path: Path, stack: ExitStack, failures: list[str]) -> File | None:
    """Clone a file: the clone has no name, and does not change when the file is written to.

    `stack` closes the clone. None where there is none: for a device, on a file system that cannot
    clone, without the right or the space to make files beside it, or where the file cannot be
    opened at all. `failures` gets the reason, unless the file system can have no clone.
    """
    try:
        with files.open_to_read(path) as original:
            if original.is_device:
                return None
            made = files.create_unnamed(path.resolve().parent, Cache.SPARE)
            stack.enter_context(made)
            return made if made.clone_from(original) else None
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            failures.append(f"{path} was not cloned, and may change meanwhile: {error.strerror}")
        return None
