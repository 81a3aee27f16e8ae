"""Back up one disk: copy what changed into a draft, and check what the source calls unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from backy.errors import NotFoundError, StoreError, translated
from backy.image.copy import copy
from backy.image.image import Image
from backy.image.progress import Watcher
from backy.model.extent import Extent
from backy.model.revision import Disk, Revision, Trust
from backy.operations.tracking_check import TrackedImage, blocks_to_check
from backy.repository import status
from backy.repository.draft import RevisionDraft


class DiskBackup:
    """Makes the disks of one revision. `warnings` gets what the revision is to say of them."""

    def __init__(
        self,
        draft: RevisionDraft,
        parent: Revision | None,
        watcher: Watcher,
        warnings: list[str],
    ) -> None:
        self._draft = draft
        self._repository = draft.repository
        self._parent = parent
        self._watcher = watcher
        self._warnings = warnings

    def copy(self, name: str, image: Image, whole: str) -> Disk:
        """Make a disk; `whole` says why its source does not know what changed."""
        base = self._parent if self._parent and name in self._parent.disks else None
        damaged = base.damaged.get(name, ()) if base else ()
        compared = 0
        with (
            translated(StoreError, f"{self._repository.name}: writing the draft of {name}"),
            self._repository.store.draft(self._draft.folder, name, image.size, base) as target,
        ):
            for start, length in damaged:
                target.discard(start, length)
            tracked = TrackedImage(SourceImage(image, name), target.block_size, damaged)
            read = copy(tracked, target, watcher=self._watcher)
            if base and tracked.unchanged:
                checked = blocks_to_check(
                    tracked.unchanged, target.index, base.time, self._draft.time
                )
                changed = target.changed
                compared = copy(tracked.only(checked), target)
                if target.changed != changed:
                    self._distrust(base, name)
                    read += copy(tracked.only(tracked.unchanged), target)
            index_hash = target.index_hash()
        return Disk(
            size=image.size,
            block_size=target.block_size,
            index_hash=index_hash,
            read=read + compared,
            changed=target.changed,
            stored=target.stored,
            compared=compared,
            whole=whole,
        )

    def _distrust(self, parent: Revision, name: str) -> None:
        """Record at once that the source lied, whatever becomes of this backup."""
        why = f"the source called blocks of disk {name} unchanged that had changed"
        self._warnings.append(f"{why} since {parent.id}; all of it was read")
        why = f"{why}, which {self._draft.id} found"

        def doubt(parent: Revision) -> Revision:
            warnings = (*parent.warnings, why)
            return replace(parent, trust=Trust.DISTRUSTED, warnings=warnings)

        with suppress(NotFoundError):  # somebody removed it
            self._repository.change(parent, doubt)
        now = self._draft.time
        status.update(self._repository.folder, lambda known: status.tracking_failed(known, now))


class SourceImage:
    """An image of a source. What is no BackyError in it is a bug of the source, and named so.

    An OSError of a plug-in would else count as one of the store that is written to at the time.
    """

    def __init__(self, image: Image, disk: str) -> None:
        self.size = image.size
        self._image = image
        self._disk = disk

    def extents(self) -> Iterator[Extent]:
        """See Image."""
        with self._named("telling its extents"):
            yield from self._image.extents()

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image."""
        with self._named(f"reading {len(buffer)} bytes at byte {offset}"):
            self._image.readinto(offset, buffer)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RuntimeError(f"the source of disk {self._disk}, {what}: {error!r}") from error
