"""Back up one disk: copy what changed into a draft, run the tracking check, and read back.

Read back: before a revision is published, look whether what it relies on is stored. A draft skips
what its parent has, and what it wrote went into a cache. Only a look at the medium shows that a
hook, an administrator or the disk took something away.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, islice

from backy.errors import DamagedError, NotFoundError, StoreError, translated
from backy.image.copy import copy
from backy.image.image import Image
from backy.image.progress import SILENCE, Watcher
from backy.image.workers import few, in_parallel
from backy.model.extent import Extent
from backy.model.revision import Consistency, Disk, Revision, Trust
from backy.operations.tracking_check import PERIOD_SECONDS, TrackedImage, blocks_to_check
from backy.repository import backup_status, status
from backy.repository.draft import RevisionDraft
from backy.sources import Snapshot
from backy.stores.blocks import StoredImage
from backy.stores.data import data_blocks
from backy.stores.draft import BlockDraft, draft_disk
from backy.stores.index import Index
from backy.system.files import Cache
from backy.units import counted

_SAMPLE = 8  # blocks of the whole disk that are read back
_LOOK_UP_SECONDS = 0.2  # for blocks; IndexDraft has 0.05 s for pages


def _copied(image: Image, target: BlockDraft, watcher: Watcher = SILENCE) -> int:
    """As `copy`, but with few reads at once: a VM may be using what the source reads from."""
    return copy(image, target, watcher=watcher, workers=few())


@dataclass
class DiskBackup:
    """Backs up the disks of one revision. Appends warnings for the revision to `warnings`.

    `is_verified`: every stored block is read back, not only a sample.
    """

    draft: RevisionDraft
    parent: Revision | None
    watcher: Watcher
    warnings: list[str]
    is_verified: bool = False

    def copy(self, name: str, snapshot: Snapshot) -> Disk:
        """Back up one disk."""
        image = snapshot.disks[name]
        base = self.parent if self.parent and name in self.parent.disks else None
        damaged = base.damaged.get(name, ()) if base else ()
        repository = self.draft.repository
        drafting = draft_disk(repository.store, self.draft.folder, name, image.size, base)
        action = f"{repository.name}: writing the draft of {name}"
        with translated(StoreError, action), drafting as target:
            for start, length in damaged:
                target.discard(start, length)
            tracked = TrackedImage(SourceImage(image, name), target.block_size, damaged)
            read = _copied(tracked, target, self.watcher)
            more, compared = self._check(name, base, tracked, target)
            disk = Disk(
                size=image.size,
                block_size=target.block_size,
                index_hash=target.finish(),
                read=read + more + compared,
                changed=target.changed,
                stored=target.stored,
                compared=compared,
                whole=snapshot.full_read_reasons.get(name, ""),
                image_format=snapshot.image_formats.get(name, ""),
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
            checked = blocks_to_check(tracked.unchanged, target.index, base.time, self.draft.time)
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
            self.warnings.append(f"disk {name}: {count} of the parent's index lost; read again")
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
            self.warnings.append(f"{what}; stored again from the source")
            disk = replace(disk, index_hash=target.finish())
        return replace(
            disk, read_back=reader.read, looked_up=reader.looked_up, pages=target.index.page_bytes
        )

    def _read_stored(self, name: str, disk: Disk, source: Image, target: BlockDraft) -> ReadBack:
        # The draft as a revision, whose id has a dot.
        draft = Revision(
            self.draft.folder.name, self.draft.time, None, 0, Consistency.NONE, {name: disk}
        )
        with self.draft.repository.store.open(draft, name, Cache.AVOID) as stored:
            reader = ReadBack(source, target, stored)
            reader.run(self.draft.time, is_complete=self.is_verified)
        return reader

    def _distrust(self, parent: Revision, name: str) -> None:
        """Distrust the parent and record the tracking error, even if this backup fails later."""
        error = f"the source reported changed blocks of disk {name} as unchanged"
        self.warnings.append(f"{error} since {parent.id}; all of it was read")
        warning = f"{error}; {self.draft.id} detected that"

        def distrusted(parent: Revision) -> Revision:
            warnings = (*parent.warnings, warning)
            return replace(parent, trust=Trust.DISTRUSTED, warnings=warnings)

        with suppress(NotFoundError):  # it was removed meanwhile
            self.draft.repository.change(parent, distrusted)
        folder, now = self.draft.repository.folder, self.draft.time
        status.update(folder, lambda old: backup_status.tracking_failed(old, now))


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


class ReadBack:
    """Checks the blocks of a draft, which is read as `stored`, past the page cache.

    A block that is missing or bad is stored again from `source`. `read` counts the bytes that had
    their hash, `looked_up` the blocks that were looked up by name, `rewritten` those stored again.
    """

    def __init__(self, source: Image, draft: BlockDraft, stored: StoredImage) -> None:
        self.read = 0
        self.looked_up = 0
        self.rewritten = 0
        self._is_missing = False
        self._source = source
        self._draft = draft
        self._stored = stored
        self._lock = threading.Lock()

    def run(self, now: datetime, *, is_complete: bool) -> None:
        """Look up names, and read a few blocks of the disk and a few that were written.

        Reads all blocks with `is_complete`, or if one has no name any more. Raises DamagedError
        that names the block if one cannot be read although it was stored again.
        """
        index = self._stored.index
        self._is_missing = not self._has_all_names()
        if not is_complete and not self._is_missing:
            self._check_all(sorted({*sample(index, now), *self._draft.written}))
        if is_complete or self._is_missing:
            self._check_all(range(index.blocks))

    def _check_all(self, numbers: Iterable[int]) -> None:
        steps = ((number,) for number in numbers)
        in_parallel(steps, self._check, self._stored.block_size)

    def _has_all_names(self) -> bool:
        """Look up the blocks, from any of them on, until all are found or the time is over."""
        index, until = self._stored.index, time.monotonic() + _LOOK_UP_SECONDS
        start = random.randrange(index.blocks)  # noqa: S311 - it keeps nothing secret
        zero = islice(index.find([index.codec.zero_digest(index.block_size)]), 1)
        data = chain(data_blocks(index, start, index.blocks), data_blocks(index, 0, start))
        for number in chain(data, (number for number, _ in zero)):  # a search without data is slow
            if (is_stored := self._stored.is_stored(number)) is None:
                break
            if not is_stored:
                return False
            self.looked_up += 1
            if time.monotonic() > until:
                break
        return True

    def _check(self, step: tuple[int], buffer: memoryview) -> None:
        [number] = step
        block = buffer[: self._stored.index.length_of(number)]
        try:
            self._stored.readinto(number * self._stored.block_size, block)
        except StoreError as error:
            if not error.is_damage:
                raise
            self._is_missing |= self._stored.is_stored(number) is False
            self._store_again(number, block)
        with self._lock:
            self.read += len(block)

    def _store_again(self, number: int, block: memoryview) -> None:
        index, start = self._stored.index, number * self._stored.block_size
        self._source.readinto(start, block)
        if index.codec.digest(block) == index.digest(number):
            self._stored.repair(number, block)
        else:  # the source has no snapshot, and was written to
            self._draft.write(start, block)
        try:
            self._stored.readinto(start, block)
        except StoreError as error:
            why = f"block {number} was stored again, but cannot be read back: {error.message}"
            raise DamagedError(why) from error
        with self._lock:
            self.rewritten += 1


def sample(index: Index, now: datetime) -> Iterable[int]:
    """Blocks with data at equal distances, which move through the disk in 30 days."""
    stride = -(-index.blocks // _SAMPLE)
    first = index.blocks * int(now.timestamp()) // PERIOD_SECONDS % stride
    for number in range(first, index.blocks, stride):
        end = min(number + stride, index.blocks)
        yield next(data_blocks(index, number, end), number)
