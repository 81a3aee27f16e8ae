"""Target "file": a raw image in a file, with a hole wherever the disk has zeroes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from backy.errors import BackyError, TargetError, translated, visible
from backy.system import files, folders
from backy.system.files import AnyPath, Cache, File
from backy.system.place import Place
from backy.targets.path import PathTarget, RawDraft, RawImage, closing, read_raw

_HINT = "Free some space or name another target."


class FileTarget(PathTarget):
    """A Target; see there for the contract. An existing file takes the size of the disk."""

    def __init__(self, place: str) -> None:
        """See PathTarget."""
        super().__init__(place)
        self._place: AnyPath = self._path
        self._partial: AnyPath = self._path.with_name(f".{self._path.name}.partial")

    def check(self, size: int) -> None:
        """See Target."""
        if not self.check_file():
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
        self._check_unused(file)
        with closing(file):
            with translated(TargetError, f"resizing {self._path}", _HINT):
                file.resize(size)
            yield RawDraft(file, block_size, is_new=False)

    @contextmanager
    def _new(self, size: int, block_size: int) -> Iterator[RawDraft]:
        """Fill a file beside the path, then rename it: nobody takes half a disk for a whole one.

        It stays after a failure, and the next restore to this path continues it.
        """
        with translated(TargetError, f"writing {self._partial}", _HINT):
            try:
                file = folders.open_own(self._partial, Cache.SPARE)
            except BlockingIOError as error:
                why = f"another restore is writing {self._path}"
                raise TargetError(why, "Wait for it to end, or name another target.") from error
        with closing(file), self._kept(file):
            is_new = not file.size()
            with translated(TargetError, f"resizing {self._partial}", _HINT):
                file.resize(size)
            yield RawDraft(file, block_size, is_new=is_new)
            with translated(TargetError, f"writing {self._partial}", _HINT):
                file.sync()
            with translated(TargetError, f"renaming {self._partial} to {self._path}"):
                if self._place.exists():
                    raise TargetError(f"{self._path} has appeared meanwhile", "Move it away.")
                # While it is locked, so that nobody else continues a file that is complete.
                folders.rename(self._partial, self._place)
                folders.sync_folder(self._place.parent)

    @contextmanager
    def _kept(self, file: File) -> Iterator[None]:
        """After a failure, say how to continue; remove the file if nothing was written to it."""
        try:
            yield
        except BaseException as error:
            if not file.status().st_blocks:
                with suppress(OSError):  # what failed is worth more
                    folders.remove_file(self._partial)
            elif isinstance(error, BackyError):
                kept = f"Run it again to continue, or delete {self._partial} to give up."
                error.hint = visible(f"{error.hint} {kept}".strip())
            raise

    def read_back(self) -> AbstractContextManager[RawImage] | None:
        """See Target. While it is new, this is the file that is being filled."""
        with suppress(OSError):
            held = self._place if self._place.exists() else self._partial
            with files.open_to_read(held) as file:
                if file.size() and not file.is_device:
                    return read_raw(held)
        return None


class FileInFolder(FileTarget):
    """The same in a folder that others may write to: neither a link nor a device is opened."""

    def __init__(self, place: str) -> None:
        """See PathTarget."""
        super().__init__(place)
        self._place = Place.at(self._path.parent) / self._path.name
        self._partial = self._place.with_name(self._partial.name)
