"""Back up one disk: copy what changed into a draft, and run the tracking check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from backy.errors import DamagedError, NotFoundError, StoreError, translated
from backy.image.copy import copy
from backy.image.image import Image
from backy.image.progress import SILENCE, Watcher
from backy.image.workers import few
from backy.model.extent import Extent
from backy.model.revision import Consistency, Disk, Revision, Trust
from backy.operations.read_back import ReadBack
from backy.operations.tracking_check import TrackedImage, blocks_to_check
from backy.repository import backup_status, status
from backy.repository.draft import RevisionDraft
from backy.stores.draft import BlockDraft, draft_disk
from backy.system.files import Cache
from backy.units import counted


def _copied(image: Image, target: BlockDraft, watcher: Watcher = SILENCE) -> int:
    """As `copy`, but with few reads at once: a VM may be using what the source reads from."""
    return copy(image, target, watcher=watcher, workers=few())


class DiskBackup:
    """Backs up the disks of one revision. Appends warnings for the revision to `warnings`.

    `is_verified`: every stored block is read back, not only a sample.
    """

    def __init__(
        self,
        draft: RevisionDraft,
        parent: Revision | None,
        watcher: Watcher,
        warnings: list[str],
        *,
        is_verified: bool = False,
    ) -> None:
        self._draft = draft
        self._repository = draft.repository
        self._parent = parent
        self._watcher = watcher
        self._warnings = warnings
        self._is_verified = is_verified

    def copy(self, name: str, image: Image, whole: str) -> Disk:
        """Back up one disk. `whole` says why it is a full read; it is "" for a delta."""
        base = self._parent if self._parent and name in self._parent.disks else None
        damaged = base.damaged.get(name, ()) if base else ()
        with (
            translated(StoreError, f"{self._repository.name}: writing the draft of {name}"),
            draft_disk(
                self._repository.store, self._draft.folder, name, image.size, base
            ) as target,
        ):
            for start, length in damaged:
                target.discard(start, length)
            tracked = TrackedImage(SourceImage(image, name), target.block_size, damaged)
            read = _copied(tracked, target, self._watcher)
            more, compared = self._check(name, base, tracked, target)
            disk = Disk(
                size=image.size,
                block_size=target.block_size,
                index_hash=target.finish(),
                read=read + more + compared,
                changed=target.changed,
                stored=target.stored,
                compared=compared,
                whole=whole,
            )
            return self._read_back(name, disk, tracked, target)

    def _check(
        self, name: str, base: Revision | None, tracked: TrackedImage, target: BlockDraft
    ) -> tuple[int, int]:
        """Read again what the index lost, and compare some blocks that are called unchanged.

        Returns how many bytes were read for the draft, and how many were compared.
        """
        checked: list[range] = []
        if base and tracked.unchanged:
            checked = blocks_to_check(tracked.unchanged, target.index, base.time, self._draft.time)
        # First, because a line that is lost would look like a block that changed.
        read = self._read_lost(name, tracked, target, checked)
        changed = target.changed
        compared = _copied(tracked.only(checked), target) if checked else 0
        if base and target.changed != changed:
            self._distrust(base, name)
            read += _copied(tracked.only(tracked.unchanged), target)
            read += self._read_lost(name, tracked, target)
        return read, compared

    def _read_lost(
        self, name: str, tracked: TrackedImage, target: BlockDraft, checked: Iterable[range] = ()
    ) -> int:
        """Read all blocks of the parent's pages that are lost; return how many bytes those are."""
        read = 0
        while lost := target.lost(checked):
            count = counted(len(lost), "page")
            self._warnings.append(f"disk {name}: {count} of the parent's index lost; read again")
            read += _copied(tracked.only(lost), target)
        return read

    def _read_back(self, name: str, disk: Disk, tracked: TrackedImage, target: BlockDraft) -> Disk:
        """Check what is stored now; store again from the source what is missing or bad."""
        try:
            reader = self._read_stored(name, disk, tracked, target)
        except DamagedError:
            lost = self._read_lost(name, tracked, target, [range(target.index.blocks)])
            if not lost:
                raise
            disk = replace(disk, read=disk.read + lost, index_hash=target.finish())
            reader = self._read_stored(name, disk, tracked, target)
        if reader.rewritten:
            lost_blocks = counted(reader.rewritten, "stored block")
            what = f"disk {name}: {lost_blocks} could not be read back"
            self._warnings.append(f"{what}; stored again from the source")
            disk = replace(disk, index_hash=target.finish())
        return replace(
            disk,
            read_back=reader.read,
            looked_up=reader.looked_up,
            pages=target.index.page_bytes,
        )

    def _read_stored(self, name: str, disk: Disk, source: Image, target: BlockDraft) -> ReadBack:
        # The draft as a revision, whose id has a dot.
        draft = Revision(
            self._draft.folder.name, self._draft.time, None, 0, Consistency.NONE, {name: disk}
        )
        with self._repository.store.open(draft, name, Cache.AVOID) as stored:
            reader = ReadBack(source, target, stored)
            reader.run(self._draft.time, is_complete=self._is_verified)
        return reader

    def _distrust(self, parent: Revision, name: str) -> None:
        """Distrust the parent and record the tracking error, even if this backup fails later."""
        error = f"the source reported changed blocks of disk {name} as unchanged"
        self._warnings.append(f"{error} since {parent.id}; all of it was read")
        warning = f"{error}; {self._draft.id} detected that"

        def distrusted(parent: Revision) -> Revision:
            warnings = (*parent.warnings, warning)
            return replace(parent, trust=Trust.DISTRUSTED, warnings=warnings)

        with suppress(NotFoundError):  # it was removed meanwhile
            self._repository.change(parent, distrusted)
        now = self._draft.time
        status.update(self._repository.folder, lambda old: backup_status.tracking_failed(old, now))


class SourceImage:
    """An image of a source that turns an OSError into a RuntimeError: it is a bug of the source.

    Without this, it would be reported as an error of the store, which is written at the same time.
    """

    def __init__(self, image: Image, disk: str) -> None:
        self.size = image.size
        self._image = image
        self._disk = disk

    def extents(self) -> Iterator[Extent]:
        """See Image."""
        with self._named("listing its extents"):
            yield from self._image.extents()

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image."""
        with self._named(f"reading {len(buffer)} bytes at byte {offset}"):
            self._image.readinto(offset, buffer)

    @contextmanager
    def _named(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RuntimeError(f"the source of disk {self._disk}, {action}: {error!r}") from error
