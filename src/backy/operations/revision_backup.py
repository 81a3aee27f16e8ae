"""Make one revision: take a snapshot, copy the changes of each disk to a draft, publish it."""

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any

from backy.errors import BackyError, DamagedError, FullError, SourceError, StoreError, translated
from backy.image.image import LARGEST, SIZE_HINT
from backy.image.progress import Watcher, warned
from backy.model.names import check_disk_name
from backy.model.revision import NEWEST_FORMAT, Consistency, Disk, Revision, Trust
from backy.operations.disk_backup import DiskBackup
from backy.operations.hooks import Runner
from backy.operations.snapshot_hooks import Around, around_snapshot
from backy.repository import backup_status, status, trash
from backy.repository.create import renew_script
from backy.repository.draft import RevisionDraft, draft_revision
from backy.repository.records import revision_record
from backy.repository.repository import Repository
from backy.sources import Request, Snapshot, Source
from backy.stores.data import data_bytes
from backy.system import folders
from backy.system.files import Cache
from backy.system.signals import shielded
from backy.units import format_size

_SUSPICIOUS_FACTOR = 2  # warn if the parent has more than this many times as much data
# Revisions that are tried as parent: each that cannot be used is a warning in the new one, whose
# revision.json must stay below 1 MiB.
_MOST_TRIED = 500


@dataclass
class RevisionBackup:
    """One backup of one repository. The caller holds the repository's lock.

    `is_verified`: every stored block is read back before that. `published` is the revision when it
    is published, None before.
    """

    repository: Repository
    source: Source
    tags: tuple[str, ...]
    hooks: Runner | None
    watcher: Watcher
    now: datetime | None
    remember: dict[str, Any]
    is_verified: bool = False
    published: Revision | None = None
    warnings: list[str] = field(default_factory=list)

    def run(self) -> Revision:
        """Make and publish the revision, with the newest parent that can be used."""
        while True:
            self.warnings = []
            parent = self._usable_parent()
            try:
                return self._make(parent)
            except FullError:
                with suppress(BackyError):  # the user must see that the store is full
                    trash.sweep(self.repository)
                raise
            except DamagedError:
                # The parent may have been removed before it was opened: use another one.
                if not parent or self.repository.has(parent.id):
                    raise

    def _make(self, parent: Revision | None) -> Revision:
        if renew_script(self.repository):
            self.warnings.append("restore.sh differed from this version's and was replaced")
        # Killed backups may have left something in the source.
        self.source.remove_all_except([parent.id] if parent else [])
        with ExitStack() as stack:
            draft = stack.enter_context(draft_revision(self.repository, self.now))
            hooks = around_snapshot(self.hooks, draft.id) if self.hooks else nullcontext(Around())
            with hooks as around:
                request = Request(draft.id, parent, is_frozen=around.consistency is not None)
                taken = stack.enter_context(self.source.snapshot(request))
            self.warnings += around.failures
            snapshot = stack.enter_context(taken.open())
            disks = self._copy_disks(draft, parent, snapshot)
            _write_files(draft, snapshot)
            settings = self.repository.settings
            if settings.format != NEWEST_FORMAT:  # which older versions of backy refuse
                self.repository.change_settings(replace(settings, format=NEWEST_FORMAT))
                why = "from now on; versions of backy that know only format 1 refuse it"
                self.warnings.append(f"the repository has format {NEWEST_FORMAT} {why}")
            self.warnings += self.repository.store.pages.take_notes()
            self.warnings += snapshot.warnings()
            for warning in self.warnings:
                self.watcher.warn(warning)
            consistency = _reached(snapshot.consistency, around.consistency)
            revision = Revision(
                id=draft.id,
                time=draft.time,
                parent=parent.id if parent else None,
                seconds=0,
                consistency=consistency,
                disks=disks,
                tags=self.tags,
                warnings=tuple(self.warnings),
            )
            # No signal can interrupt between the two.
            with draft.published(revision) as revision:
                self.published = revision
                self._record_success(revision)
            snapshot.keep_checkpoint()
        # If that fails, the next backup tries again.
        with warned(self.watcher, "the source was not cleaned up", SourceError):
            self.source.remove_all_except([revision.id])
        return revision

    def _copy_disks(
        self, draft: RevisionDraft, parent: Revision | None, snapshot: Snapshot
    ) -> dict[str, Disk]:
        for name, image in snapshot.disks.items():
            if image.size > LARGEST:
                raise SourceError(f"disk {name} has {format_size(image.size)}", SIZE_HINT)
        self.watcher.begin(sum(image.size for image in snapshot.disks.values()))
        self.warnings += _differences(parent, snapshot)
        disk_backup = DiskBackup(draft, parent, self.watcher, self.warnings, self.is_verified)
        return {check_disk_name(name): disk_backup.copy(name, snapshot) for name in snapshot.disks}

    def _record_success(self, revision: Revision) -> None:
        doubt = _suspicion(self.repository, revision)
        if doubt:
            self.watcher.warn(doubt)
        folder = self.repository.folder
        with warned(self.watcher, f"{revision.id} is published, but not recorded"):
            status.update(folder, lambda old: backup_status.succeeded(old, revision, doubt))
            if self.remember:
                self.repository.remember_source(self.remember)
            trash.keep_reserve(self.repository)

    def run_hooks_after(self, revision: Revision) -> None:
        """Run the hooks after the backup; record whether any hook of this backup failed."""
        if not self.hooks:
            return
        try:
            self.hooks.run("after-backup", revision.id, record=revision_record(revision))
        finally:
            failures = self.hooks.failures
            error = failures[-1] if failures else ""
            with shielded(), suppress(StoreError):  # the next backup records it
                folder = self.repository.folder
                status.update(folder, lambda old: backup_status.hooks_ended(old, error))

    def _usable_parent(self) -> Revision | None:
        """The newest revision that can be the parent: its index and image are complete.

        A distrusted revision can be the parent if it says which ranges are damaged; the backup
        stores those again.
        """
        for revision_id, revision in islice(self.repository.newest_first(), _MOST_TRIED):
            why = "it is distrusted"
            if isinstance(revision, DamagedError):
                why = revision.message
            elif revision.trust is not Trust.DISTRUSTED or revision.damaged:
                try:
                    with ExitStack() as stack:
                        for name in revision.disks:
                            opened = self.repository.store.open(revision, name, Cache.USE)
                            stack.enter_context(opened)
                except DamagedError as error:
                    why = error.message
                else:
                    return revision
            self.warnings.append(f"revision {revision_id} is not used as parent: {why}")
        return None


def _reached(seen: Consistency, hooked: Consistency | None) -> Consistency:
    """The consistency of a snapshot and the hooks around it. Hooks cannot improve NONE."""
    if seen is Consistency.NONE or not hooked:
        return seen
    return min(seen, hooked, key=list(Consistency).index)


def _differences(parent: Revision | None, snapshot: Snapshot) -> Iterator[str]:
    """Warnings: how the disks differ from the parent's, and why a disk is read in full."""
    disks = parent.disks if parent else {}
    yield from (f"disk {name} is gone" for name in disks if name not in snapshot.disks)
    for name, image in snapshot.disks.items():
        old, size = disks.get(name), image.size
        if parent and not old:
            yield f"disk {name} is new; all of it was read"
        elif old and old.size != size:
            change = "grew" if size > old.size else "shrank"
            sizes = f"from {format_size(old.size)} to {format_size(size)}"
            yield f"disk {name} {change} {sizes} ({old.size} to {size} bytes)"
        if why := snapshot.full_read_reasons.get(name):
            yield f"all of disk {name} was read: {why}"


def _write_files(draft: RevisionDraft, snapshot: Snapshot) -> None:
    for name, content in snapshot.files.items():
        path = draft.folder / check_disk_name(name)
        if path.exists() or path.name == "revision.json":
            raise SourceError(f"the source saves a file {name!r}, a name that backy uses itself")
        with translated(StoreError, f"writing {path}"):
            folders.write_file(path, content)


def _suspicion(repository: Repository, revision: Revision) -> str:
    """Why a new revision may be wrong: it has far less data than its parent, or lacks a disk.

    "" if it seems fine, or if the parent cannot be read. This warns of backups that succeed, but
    of an emptied disk or of the wrong one.
    """
    with suppress(BackyError):
        if revision.parent:
            parent = repository.revision(revision.parent)
            return next(_losses(repository, revision, parent), "")
    return ""


def _losses(repository: Repository, revision: Revision, parent: Revision) -> Iterator[str]:
    for name, old in parent.disks.items():
        new = revision.disks.get(name)
        if not new:
            yield f"disk {name} is gone"
        elif new.changed or new.size < old.size:
            # More than this cannot be gone, so a parent with much more data needs no counting.
            gone = new.changed + max(0, old.size - new.size)
            most = gone * _SUSPICIOUS_FACTOR // (_SUSPICIOUS_FACTOR - 1)
            before = _data_bytes(repository, parent, name, most)
            if before > most:
                continue
            now = _data_bytes(repository, revision, name)
            if now * _SUSPICIOUS_FACTOR < before:
                yield f"disk {name} has {format_size(now)} of data, it had {format_size(before)}"


def _data_bytes(
    repository: Repository, revision: Revision, name: str, enough: int | None = None
) -> int:
    with repository.store.open_index(revision, name) as index:
        return data_bytes(index, enough)
