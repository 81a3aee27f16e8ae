"""Target "file": a raw image in a file, with a hole wherever the disk has zeroes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

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
        is_new = self.check_file()
        if not is_new:
            with translated(TargetError, f"opening {self._path}", _HINT):
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
