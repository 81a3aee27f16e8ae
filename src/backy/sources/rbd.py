"""Source "rbd": images of Ceph, by snapshots and by the cluster's own list of what changed.

A snapshot is called backy-REVISION-SERVER-DISK-ID, where ID is the id that Ceph gave the image. So
a delta is made only against the snapshot that this server took of this disk of this image for the
parent, and never against a snapshot of a copy, or of another image with the same name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from backy.clients.program import call_at_once
from backy.clients.rbd import ImageState, ListedSnapshot, Rbd
from backy.config.settings import AbsolutePath, DiskName, Seconds
from backy.errors import SourceError
from backy.image.image import Image
from backy.model.extent import Extent, Kind
from backy.model.revision import Consistency
from backy.nbd.remote_image import NbdImage
from backy.sources import Request, SourceSettings, TakenSnapshot, checked
from backy.sources.checkpoint import CheckpointNames
from backy.sources.snapshot_data import SnapshotData

_PLACE = ("pool", "namespace", "image")
_AGAIN_HINT = "Run it again when that has ended."
_GONE_HINT = "Run it again. Jobs that read the same image each need a `server` of their own."


_WORD = r"[^-/@\s][^/@\s]*"
_Word = Annotated[str, Field(pattern=f"^{_WORD}$")]
_JOINED = re.compile(f"{_WORD}(/{_WORD}){{1,2}}")
_NAME = re.compile("[^/@]+")  # what Ceph allows for the name of a pool, namespace or image


def _image(value: object) -> str:
    """The name of an image as the client takes it. A mapping may have any name that Ceph allows."""
    if isinstance(value, str) and _JOINED.fullmatch(value):
        return value
    if not isinstance(value, dict) or not {"pool", "image"} <= value.keys() <= set(_PLACE):
        forms = "POOL/IMAGE, POOL/NAMESPACE/IMAGE, or a mapping with pool, namespace and image"
        raise ValueError(f"{value!a:.200} names no image; write {forms}")
    names = [str(value[key]) for key in _PLACE if key in value]
    for name in names:
        if not _NAME.fullmatch(name) or not name.isprintable():
            raise ValueError(f"{name!a:.200} cannot be the name of an image, a pool or a namespace")
    return "/".join(names)


_Image = Annotated[str, BeforeValidator(_image)]


class RbdSettings(SourceSettings):
    """See docs/sources/rbd.md. A disk is "pool/image" or "pool/namespace/image"."""

    disks: dict[DiskName, _Image] = Field(min_length=1)
    cluster: _Word | None = None
    conf: AbsolutePath | None = None
    user: _Word | None = None
    server: str | None = None
    full_always: bool = False
    whole_object: bool = False
    timeout: Seconds = Field(default=60, ge=1)


@dataclass(frozen=True, slots=True)
class _Disk:
    """A disk to back up: its image, as it was before, and the name of its new snapshot.

    `base` is the name of the parent's snapshot; "" where the parent has no such disk.
    """

    image: str
    state: ImageState
    snapshot: str
    base: str

    @property
    def point(self) -> str:
        """The new snapshot, as the client takes it."""
        return f"{self.image}@{self.snapshot}"


class RbdSource:
    """A Source; see there for the contract."""

    is_shared = True

    def __init__(self, /, **settings: object) -> None:
        """Take the settings, or those of backy 2 for one disk, which is vda then."""
        if "pool" in settings and "disks" not in settings:
            place = {key: settings.pop(key) for key in _PLACE if key in settings}
            settings["disks"] = {"vda": place}
        self.settings = checked(RbdSettings, settings)
        self.paths: dict[str, Path] = {}
        self._names = CheckpointNames(self.settings.server)
        cluster = self.settings.cluster
        # Programs take the name of the cluster from that of the file.
        conf = self.settings.conf or (f"/etc/ceph/{cluster}.conf" if cluster else "")
        self._rbd = Rbd(str(conf), self.settings.user or "", self.settings.timeout)

    def look(self) -> Collection[str]:
        """See Source."""
        call_at_once(self._rbd.state_of, self.settings.disks.values())
        return self.settings.disks

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. Snapshots of several disks are of one moment only while a guest is frozen."""
        images = self.settings.disks
        is_one_moment = len(images) == 1 or request.is_frozen
        data = SnapshotData(Consistency.CRASH if is_one_moment else Consistency.NONE)
        states = call_at_once(self._rbd.state_of, images.values())
        disks = {
            name: self._disk(name, image, state, request)
            for (name, image), state in zip(images.items(), states, strict=True)
        }
        try:
            # The monitors take a second for one, and the same second for all.
            call_at_once(self._rbd.create_snapshot, [disk.point for disk in disks.values()])
            yield TakenSnapshot(partial(self._open, request, data, disks))
        finally:
            if not data.keeps_checkpoint:
                call_at_once(self._try_to_remove, disks.values())

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """See Source. A snapshot that somebody protected stays."""
        unwanted: list[tuple[str, str]] = []
        for image in self.settings.disks.values():
            names = [
                name
                for name, snapshot in self._rbd.snapshots(image).items()
                if (revision := self._revision_of(name))
                and revision not in revisions
                and not snapshot.protected
            ]
            image_id = self._rbd.state_of(image).id if names else ""
            unwanted += [(f"{image}@{name}", image_id) for name in names]
        call_at_once(lambda each: self._rbd.remove_snapshot(*each), unwanted)

    def _disk(self, name: str, image: str, state: ImageState, request: Request) -> _Disk:
        suffix = f"{name}-{state.id}"
        base = ""
        if request.parent and name in request.parent.disks and not self.settings.full_always:
            base = f"{self._names.name(request.parent.id)}-{suffix}"
        return _Disk(image, state, f"{self._names.name(request.revision)}-{suffix}", base)

    def _revision_of(self, snapshot: str) -> str | None:
        """The revision for which this server took a snapshot; None for all other snapshots."""
        return self._names.revision_of("-".join(snapshot.split("-")[:4]))

    @contextmanager
    def _open(
        self, request: Request, data: SnapshotData, disks: Mapping[str, _Disk]
    ) -> Iterator[SnapshotData]:
        """Have qemu-nbd serve the snapshots, and ask the cluster what changed."""
        with ExitStack() as stack:
            for name, disk in disks.items():
                data.disks[name] = self._image(name, disk, request, data, stack)
                data.image_formats[name] = "raw"
            yield data

    def _image(
        self, name: str, disk: _Disk, request: Request, data: SnapshotData, stack: ExitStack
    ) -> Image:
        snapshots = self._rbd.snapshots(disk.image)
        data.early_warnings += [
            f"{disk.image}@{other} is not needed any more, but stays: it is protected"
            for other, snapshot in snapshots.items()
            if snapshot.protected and self._revision_of(other)
        ]
        content = stack.enter_context(self._rbd.serve(disk.point))
        self._check_state(disk)  # no migration can begin while it is open, but one may have
        # QEMU rounds the size up to a whole sector.
        size = snapshots[disk.snapshot].size if disk.snapshot in snapshots else content.size
        base = disk.base
        is_same_size = request.parent_has(name, size)
        if base and (why := _why_unusable(snapshots.get(base), size, is_same_size=is_same_size)):
            data.full_read_reasons[name] = f"{disk.image}@{base} {why}"
            base = ""
        used = {snapshots[each].id for each in (disk.snapshot, base) if each in snapshots}
        data.final_checks.append(partial(self._check_present, disk, used))
        extents = self._extents(disk, base, size)
        if base and extents is None:
            data.full_read_reasons[name] = "the list of its changes is too long"
        if extents is None and size != content.size:
            extents = [Extent(0, size, Kind.DATA)]
        return RbdImage(content, extents, size)

    def _extents(self, disk: _Disk, base: str, size: int) -> list[Extent] | None:
        whole_object = self.settings.whole_object
        return self._rbd.extents(disk.point, base or None, size, whole_object=whole_object)

    def _check_state(self, disk: _Disk) -> None:
        """Raise SourceError where the image is another one now, or has lost its parent.

        Of a snapshot that is taken while librbd 16.2 flattens the image, the blocks that were just
        copied become zeroes when the parent goes.
        """
        if self._rbd.state_of(disk.image) != disk.state:
            raise SourceError(f"{disk.image} was flattened or replaced while we read", _AGAIN_HINT)

    def _check_present(self, disk: _Disk, used: Collection[int]) -> list[str]:
        """Raise SourceError where a snapshot that was used has been removed.

        After that, librbd still answers a read or two, with newer content of the image.
        """
        snapshots = self._rbd.snapshots(disk.image).values()
        if not {snapshot.id for snapshot in snapshots} >= set(used):
            raise SourceError(f"a snapshot of {disk.image} was removed while we read", _GONE_HINT)
        self._check_state(disk)
        return []

    def _try_to_remove(self, disk: _Disk) -> None:
        with suppress(SourceError):  # best effort: the next `remove_all_except` retries
            self._rbd.remove_snapshot(disk.point, disk.state.id)


class RbdImage:
    """The content that qemu-nbd serves, with the extents that the cluster reports."""

    def __init__(self, content: NbdImage, extents: list[Extent] | None, size: int) -> None:
        self.size = size
        self.readinto = content.readinto
        self.extents = content.extents if extents is None else extents.__iter__


def _why_unusable(base: ListedSnapshot | None, size: int, *, is_same_size: bool) -> str:
    """Why the parent's snapshot cannot tell what changed since; "" where it can."""
    if not base:
        return "is gone, or was taken of another image or disk"
    if base.protected:
        return "was protected by somebody"
    if base.size != size or not is_same_size:
        return "has another size: the image was resized"
    return ""
