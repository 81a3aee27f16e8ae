"""Source "image": disk images of every format that QEMU reads, of VMs that do not run.

They are read through QEMU's own locks: an image that a VM writes to is refused, and while we read
it no VM can be started from it, and no program that respects these locks can change it. So all
disks are of one point in time, as after a power cut: CRASH. Nothing tells what changed since a
parent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from pydantic import Field

from backy.clients.image_format import ImageFileOrPath, open_image_file
from backy.config.settings import DiskName, Seconds
from backy.model.revision import Consistency
from backy.sources import Request, SourceSettings, TakenSnapshot, checked
from backy.sources.snapshot_data import SnapshotData


class ImageSettings(SourceSettings):
    """See docs/sources/image.md."""

    disks: dict[DiskName, ImageFileOrPath] = Field(min_length=1)
    timeout: Seconds = Field(default=60, ge=1)


class ImageSource:
    """A Source; see there for the contract."""

    is_shared = True

    def __init__(self, /, **settings: object) -> None:
        self.settings = checked(ImageSettings, settings)
        self.paths = {name: each.path for name, each in self.settings.disks.items()}

    def look(self) -> Collection[str]:
        """See Source. Fails where a VM that runs has locked an image, as a backup would."""
        with self._open() as data:
            return data.disks.keys()

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. Takes nothing: the point in time is when all images have been locked."""
        yield TakenSnapshot(self._open)

    @contextmanager
    def _open(self) -> Iterator[SnapshotData]:
        """Lock and open every disk before the first is read."""
        data = SnapshotData(Consistency.CRASH)
        with ExitStack() as stack:
            for name, wanted in self.settings.disks.items():
                image = open_image_file(wanted, self.settings.timeout)
                data.disks[name] = stack.enter_context(image)
                data.image_formats[name] = wanted.format
            yield data

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """Do nothing: a lock goes with qemu-nbd, and qemu-nbd with us."""
