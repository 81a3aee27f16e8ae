"""SnapshotData: what the sources here fill in."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import zstandard

from backy.clients.qemu_nbd import ImageFile, open_image_file
from backy.image.image import Image
from backy.model.extent import Extent
from backy.model.revision import Consistency
from backy.sources import Request, TakenSnapshot
from backy.system import files
from backy.units import MiB

_LARGEST = 64 * MiB  # bytes of a file that is saved: the NVRAM of a machine of aarch64

ImageT = TypeVar("ImageT", bound=Image)


class MappedImage:
    """The first `size` bytes of an image, with extents that somebody else tells."""

    def __init__(self, content: Image, size: int, extents: Callable[[], Iterator[Extent]]) -> None:
        self.size = size
        self.readinto = content.readinto
        self.extents = extents


@dataclass
class SnapshotData:
    """A plain Snapshot for `request`, filled in by its source."""

    request: Request
    consistency: Consistency = Consistency.CRASH
    disks: dict[str, Image] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    full_read_reasons: dict[str, str] = field(default_factory=dict)
    image_formats: dict[str, str] = field(default_factory=dict)
    early_warnings: list[str] = field(default_factory=list)
    final_checks: list[Callable[[], Iterable[str]]] = field(default_factory=list)
    """Called after everything was read; each gives more warnings, or raises SourceError."""
    keeps_checkpoint: bool = False
    _opened: ExitStack = field(default_factory=ExitStack)

    def taken(self, open_disks: Callable[["SnapshotData"], object]) -> TakenSnapshot:
        """The snapshot, whose disks are opened by `open_disks`; it calls `open` for each."""

        @contextmanager
        def opened() -> Iterator[SnapshotData]:
            with self._opened:
                open_disks(self)
                yield self

        return TakenSnapshot(opened)

    def open(self, disk: str, image: AbstractContextManager[ImageT]) -> ImageT:
        """Open the image of a disk. It is closed when the snapshot is left."""
        self.disks[disk] = opened = self._opened.enter_context(image)
        return opened

    def open_files(
        self, images: Mapping[str, ImageFile], timeout_seconds: float, why_full: str = ""
    ) -> None:
        """Lock and open the images of disks before the first is read.

        `why_full` says why their changes are not known. Nobody can start a VM from them until the
        snapshot is left.
        """
        for disk, wanted in images.items():
            self.open(disk, open_image_file(wanted, timeout_seconds))
            self.image_formats[disk] = wanted.format
            if why_full and self.request.parent_of(disk):
                self.full_read_reasons[disk] = why_full

    def save_file(self, name: str, path: Path) -> None:
        """Save a small file, as NAME.zst if it is larger than 1 MiB; or warn."""
        try:
            suffix, content = _content(path)
            self.files[name + suffix] = content
        except OSError as error:
            self.early_warnings.append(f"{path} was not saved: {error.strerror or error}")

    def warnings(self) -> Sequence[str]:
        """See Snapshot."""
        late_warnings = (warning for check in self.final_checks for warning in check())
        return [*self.early_warnings, *late_warnings]

    def keep_checkpoint(self) -> None:
        """See Snapshot."""
        self.keeps_checkpoint = True


def _content(path: Path) -> tuple[str, bytes]:
    """A suffix for the name, and the content of a file, compressed where it is large.

    A hostile QEMU may have written it, so no link is followed.
    """
    with files.File(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as file:
        content = file.read_bytes(0, _LARGEST + 1)
    is_small = len(content) <= MiB
    packed = content if is_small else zstandard.compress(content)
    if len(content) > _LARGEST or len(packed) > MiB:
        raise OSError("it is too large")
    return "" if is_small else ".zst", packed
