"""What files and devices have in common as targets: paths that must not be overwritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISBLK
from typing import ClassVar

from backy.errors import TargetError, UsageError, translated
from backy.system import files
from backy.system.files import File
from backy.system.image_locks import is_open_in_qemu
from backy.targets.formats import LENGTH, backing_files, format_of


class PathTarget:
    """The part of a Target that looks at its path."""

    is_sequential: ClassVar[bool] = False

    def __init__(self, place: str) -> None:
        """Raises UsageError if `place` cannot be the path of anything."""
        if not place or "\0" in place:
            raise UsageError(f"{place!a} cannot be a path", "Name a file or a block device.")
        self._path = Path(place)
        self._looking = f"looking at the target {place}"

    def refuse(self, sources: Mapping[str, Path]) -> None:
        """See Target. A path inside any repository is refused, too."""
        path = self._path
        with translated(TargetError, self._looking, "Name another target."):
            resolved = path.resolve()
            folders = (resolved, *resolved.parents)
            if any((folder / "repository.json").exists() for folder in folders):
                raise TargetError(f"{path} lies inside a repository", "Restore to another place.")
            for name, source in sources.items() if path.exists() else ():
                what = "source" if _is_same(path, source) else ""
                if any(_is_same(path, below) for below in backing_files(source)):
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
                why = f"{path} is neither a file nor a block device"
                raise TargetError(why, "Use - for a stream.")
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
        """Raise TargetError, and close the file, if a VM may be using what is to be written."""
        if is_open_in_qemu(file):
            file.close()
            why = f"{self._path} is open in QEMU: a VM or a program uses it"
            raise TargetError(why, "Stop that first, or name another target.")


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
