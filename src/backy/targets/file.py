"""Target "file": a raw image in a file, with a hole wherever the disk has zeroes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from backy.errors import TargetError, translated
from backy.system import files, folders
from backy.system.files import AnyPath, Cache
from backy.system.place import Place
from backy.targets.path import PathTarget
from backy.targets.raw import RawDraft, RawImage, closing, read_raw

_HINT = "Free some space or name another target."


class FileTarget(PathTarget):
    """A Target; see there for the contract. An existing file takes the size of the disk."""

    def __init__(self, place: str) -> None:
        """See PathTarget."""
        super().__init__(place)
        self._place: AnyPath = self._path

    def check(self, size: int) -> None:
        """See Target."""
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
        if not is_new:
            with translated(TargetError, f"opening {path}", _HINT):
                file = files.open_to_write(self._place)
            self._check_unused(file)
            file.close()

    def capacity(self) -> int | None:
        """None: a file grows, and holes take no space."""
        return None

    def open(self, size: int, block_size: int) -> AbstractContextManager[RawDraft]:
        """See Target. The file that was there stays the same one, with all its names."""
        with translated(TargetError, self._looking, "Name another target."):
            make = self._overwritten if self._place.exists() else self._new
        return make(size, block_size)

    @contextmanager
    def _overwritten(self, size: int, block_size: int) -> Iterator[RawDraft]:
        with translated(TargetError, f"opening {self._path}", _HINT):
            file = files.open_to_write(self._place, Cache.SPARE)
        with closing(file):
            with translated(TargetError, f"resizing {self._path}", _HINT):
                file.resize(size)
            yield RawDraft(file, block_size, is_new=False)

    @contextmanager
    def _new(self, size: int, block_size: int) -> Iterator[RawDraft]:
        """Fill a file beside the path, then rename it: nobody takes half a disk for a whole one."""
        partial = self._place.with_name(f".{self._path.name}.{os.getpid()}.partial")
        try:
            with translated(TargetError, f"writing {self._path}", _HINT):
                folders.remove_file(partial)  # of a killed process that had our number
                file = files.create(partial, Cache.SPARE)
            with closing(file):
                with translated(TargetError, f"resizing {partial}", _HINT):
                    file.resize(size)
                yield RawDraft(file, block_size, is_new=True)
            with translated(TargetError, f"renaming {partial} to {self._path}"):
                folders.rename(partial, self._place)
                folders.sync_folder(self._place.parent)
        finally:
            with suppress(OSError):  # it has its name now, or what failed is worth more
                folders.remove_file(partial)

    def read_back(self) -> AbstractContextManager[RawImage] | None:
        """See Target."""
        with suppress(OSError):
            if self._path.is_file() and self._path.stat().st_size:
                return read_raw(self._path)
        return None


class FileInFolder(FileTarget):
    """The same in a folder that others may write to: neither a link nor a device is opened."""

    def __init__(self, place: str) -> None:
        """See PathTarget."""
        super().__init__(place)
        self._place = Place.at(self._path.parent) / self._path.name


def _is_for_devices(path: Path) -> bool:
    """Whether a new file would be kept in memory: a mistyped device, which would not be one."""
    return path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm")  # noqa: S108
