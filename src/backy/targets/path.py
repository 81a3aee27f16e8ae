"""Raw files and block devices as targets: what they have in common, as a Draft and an Image."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISBLK

from backy.errors import TargetError, UsageError, translated
from backy.model.extent import Extent
from backy.system import files
from backy.system.files import AnyPath, Cache, File
from backy.system.folders import lock_out_qemu
from backy.targets.formats import LENGTH, backing_files, format_of


class PathTarget:
    """The part of a Target that looks at its path."""

    is_sequential = False

    def __init__(self, place: str) -> None:
        """Raises UsageError if `place` cannot be the path of anything."""
        if not place or "\0" in place:
            raise UsageError(f"{place!a} cannot be a path", "Name a file or a block device.")
        self._path = Path(place)
        self._looking = f"looking at the target {place}"
        with translated(TargetError, self._looking):  # a link may be exchanged at this moment
            self.identity = os.path.realpath(place)

    def refuse(self, sources: Mapping[str, Path | str]) -> None:
        """See Target. A path inside any repository is refused, too."""
        path = self._path
        with translated(TargetError, self._looking, "Name another target."):
            resolved = path.resolve()
            folders = (resolved, *resolved.parents)
            if any((folder / "repository.json").exists() for folder in folders):
                raise TargetError(f"{path} lies inside a repository", "Restore to another place.")
            for name, source in sources.items() if path.exists() else ():
                what = "source" if _is_same(path, Path(source)) else ""
                if any(_is_same(path, below) for below in backing_files(Path(source))):
                    what = "backing file of the source"
                if what:
                    why = f"{path} is the {what} of disk {name}; a restore would overwrite it"
                    hint = "If that is what you want, stop the VM and add --over-source."
                    raise TargetError(why, hint)

    def refuse_used(self) -> None:
        """See Target. A block device is not asked."""
        with translated(TargetError, self._looking, "Name another target."):
            is_used = self._path.is_file() and self._path.stat().st_size > 0
        if is_used:
            hint = "Name a new file, or add --overwrite to write what differs."
            raise TargetError(f"{self._path} exists", hint)

    def check_file(self) -> bool:
        """Whether a new file can be made; False if it is a file. Raises TargetError otherwise."""
        path = self._path
        with translated(TargetError, self._looking, "Name another target."):
            if path.is_symlink() and not path.exists():
                why = f"{path} is a link to a file that does not exist"
                raise TargetError(why, "Remove it, or mount what it leads to.")
            if not path.resolve().parent.is_dir():
                hint = "Make it first, or name another target."
                raise TargetError(f"there is no folder {path.parent}", hint)
            if path.is_dir():
                raise TargetError(f"{path} is a folder", f"Name a file in it: {path / 'disk.img'}.")
            if path.exists() and not path.is_file():
                why = f"{path} is no regular file"
                raise TargetError(why, "Write - for a stream, or the path of a raw block device.")
            is_new = not path.exists()
            if is_new and _is_for_devices(path.resolve()):
                raise TargetError(f"there is no device {path}", "Is the name right?")
        return is_new

    def refuse_format(self, read_start: Callable[[], bytes]) -> None:
        """See Target."""
        with suppress(OSError), files.open_to_read(self._path) as file:
            held, is_device = format_of(file.read_bytes(0, LENGTH)), file.is_device
            if held and format_of(read_start()) != held:
                path = self._path
                convert = f"qemu-img convert -f raw -O {held} NEW {path}"
                hint = f"Restore to a new file, and convert that: {convert}."
                erase = f"erase its header: dd if=/dev/zero of={path} bs={LENGTH} count=1"
                erase = erase if is_device else "remove it first"
                why = f"{path} is a {held} image; the bytes of the disk would destroy it"
                raise TargetError(why, f"{hint} Or {erase}.")

    def _check_unused(self, file: File) -> None:
        """Raise TargetError, and close the file, if a VM may be using what is to be written.

        Until it is closed, no VM can use it, and no other restore.
        """
        if not lock_out_qemu(file):
            file.close()
            why = f"{self._path} is locked: a VM, a program of QEMU or a restore uses it"
            raise TargetError(why, "Stop that first, or name another target.")


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


def _is_same(path: Path, other: Path) -> bool:
    """Whether two names mean one file, or one block device."""
    status = path.stat()
    with suppress(OSError, ValueError):  # it is gone, or no path at all
        others = other.stat()
        is_device = S_ISBLK(status.st_mode) and S_ISBLK(others.st_mode)
        return path.samefile(other) or (is_device and status.st_rdev == others.st_rdev)
    return False


def _is_for_devices(path: Path) -> bool:
    """Whether a new file would be kept in memory: a mistyped device, which would not be one."""
    return path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm")  # noqa: S108
