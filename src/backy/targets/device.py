"""Target "device": a block device that nothing else uses, such as a logical volume."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from backy.errors import TargetError, translated
from backy.system import files
from backy.system.files import Cache, File
from backy.targets.path import PathTarget, RawDraft, RawImage, closing, read_raw
from backy.units import format_size


class DeviceTarget(PathTarget):
    """A Target; see there for the contract. The bytes beyond the disk stay what they are."""

    def check(self, size: int) -> None:
        """See Target. A device that is mounted, or that a program holds for itself, is refused."""
        with self._open() as file:
            if file.size() < size:
                have = f"{format_size(file.size())} ({file.size()} bytes)"
                need = f"{format_size(size)} ({size} bytes)"
                why = f"{self._path} has {have}; {need} are needed"
                raise TargetError(why, "Use a larger device.")

    def capacity(self) -> int | None:
        """See Target."""
        with translated(TargetError, self._looking), files.open_to_read(self._path) as file:
            return file.size()

    @contextmanager
    def open(self, size: int, block_size: int) -> Iterator[RawDraft]:
        """See Target."""
        file = self._open()
        with closing(file):
            yield RawDraft(file, block_size, is_new=False)

    def _open(self) -> File:
        hint = "Unmount it, or stop what uses it."
        with translated(TargetError, f"opening {self._path}", hint):
            file = files.open_to_write(self._path, Cache.SPARE)
        if not file.is_device:
            file.close()
            raise TargetError(f"{self._path} is not a block device", "Name it without device:.")
        self._check_unused(file)
        return file

    def read_back(self) -> AbstractContextManager[RawImage] | None:
        """See Target."""
        return read_raw(self._path)
