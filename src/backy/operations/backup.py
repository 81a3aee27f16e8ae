"""Backup: take a snapshot, copy what changed into a draft, publish it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from backy.errors import (
    BackyError,
    BusyError,
    CancelledError,
    DamagedError,
    FullError,
    NotFoundError,
    SourceError,
    StoreError,
    translated,
)
from backy.image.copy import copy
from backy.image.image import Image
from backy.image.progress import SILENCE, Watcher
from backy.model.names import check_disk_name
from backy.model.revision import Consistency, Disk, Revision, Trust
from backy.operations.hooks import Around, Runner
from backy.operations.tracking_check import Claims, due
from backy.repository import status, trash
from backy.repository.draft import RevisionDraft
from backy.repository.repository import Repository
from backy.sources import Request, Snapshot, Source
from backy.system import folders
from backy.system.files import Cache
from backy.units import format_size

_SUSPICIOUS = 2  # times less data than the parent's is worth a warning


def backup(
    repository: Repository,
    source: Source,
    *,
    tags: tuple[str, ...] = (),
    hooks: Runner | None = None,
    watcher: Watcher = SILENCE,
    now: datetime | None = None,
) -> Revision:
    """Make one revision of all disks of `source` and give it, published; `now` is its time.

    What `watcher` is warned of the revision says, too. Raises BusyError where the job is
    being backed up, SourceError, StoreError, FullError, or HookError where a required hook failed;
    the history is then what it was. Where the store is full, what this backup wrote is dropped
    again.
    """
    with repository.exclusive("backup"):
        while True:
            warnings: list[str] = []
            parent = _usable_parent(repository, warnings)
            try:
                return _backup(repository, source, tags, hooks, watcher, now, parent, warnings)
            except FullError:
                with suppress(BackyError):  # that the store is full is what the user must hear
                    trash.sweep(repository)
                raise
            except DamagedError:
                # Somebody may have removed the parent before it was opened: take another one.
                if not parent or repository.folder_of(parent).exists():
                    raise


@contextmanager
def recorded(root: Path, hooks: Runner | None, *, is_configured: bool) -> Iterator[None]:
    """Record in status.json, and tell the hooks, that the backup in the body failed.

    One that was told to stop, or skipped, did not fail; and a name that is no job yet is no job
    because of a mistyped command.
    """
    try:
        yield
    except BusyError:
        raise
    except BaseException as error:
        if hooks:
            hooks.run("on-failure", error=str(error))
        if not isinstance(error, CancelledError) and (is_configured or root.exists()):
            note = partial(status.failed, error=str(error), now=datetime.now(UTC))
            with suppress(StoreError):  # that the backup failed is what the user must hear
                status.update(root, note)
        raise


def _backup(  # noqa: PLR0917 - called once, above
    repository: Repository,
    source: Source,
    tags: tuple[str, ...],
    hooks: Runner | None,
    watcher: Watcher,
    now: datetime | None,
    parent: Revision | None,
    warnings: list[str],
) -> Revision:
    if repository.renew_script():
        warnings.append("restore.sh was not the one of this version; it was written anew")
    source.remove_all_except([parent.id] if parent else [])  # what killed backups left behind
    with ExitStack() as stack:
        draft = stack.enter_context(repository.draft(now))
        with hooks.around_snapshot(draft.id) if hooks else nullcontext(Around()) as around:
            request = Request(draft.id, parent, is_frozen=around.consistency is not None)
            snapshot = stack.enter_context(source.snapshot(request))
        warnings += around.failures
        watcher.begin(sum(image.size for image in snapshot.disks.values()))
        warnings += _differences(parent, snapshot)
        making = _Making(draft, parent, watcher, warnings)
        made = {
            check_disk_name(name): making.copy(
                name, image, snapshot.full_read_reasons.get(name, "")
            )
            for name, image in snapshot.disks.items()
        }
        _write_files(draft, snapshot)
        warnings += snapshot.warnings()
        for warning in warnings:
            watcher.warn(warning)
        revision = draft.publish(
            Revision(
                id=draft.id,
                time=draft.time,
                parent=parent.id if parent else None,
                seconds=0,
                consistency=_reached(snapshot.consistency, around.consistency),
                disks=made,
                tags=tags,
                warnings=tuple(warnings),
            )
        )
        snapshot.keep_checkpoint()
    try:
        source.remove_all_except([revision.id])
    except SourceError as error:  # the next backup tries again
        watcher.warn(f"the source keeps more than it needs: {error.message}")
    return revision


def _reached(seen: Consistency, hooked: Consistency | None) -> Consistency:
    """What a snapshot and the hooks around it reach: hooks can better only a point in time."""
    if seen is Consistency.NONE or not hooked:
        return seen
    return min(seen, hooked, key=list(Consistency).index)


def _usable_parent(repository: Repository, warnings: list[str]) -> Revision | None:
    """The newest revision of which is known what is good of it: its index and image are in place.

    A distrusted one serves where it says which ranges are damaged; they are stored anew.
    """
    history = repository.history()
    warnings += [f"ignored a revision: {error.message}" for error in history.unreadable.values()]
    for revision in reversed(history.revisions):
        if revision.trust is Trust.DISTRUSTED and not revision.damaged:
            warnings.append(f"revision {revision.id} is distrusted; it is not built upon")
            continue
        try:
            with ExitStack() as stack:
                for name in revision.disks:
                    stack.enter_context(repository.store.open(revision, name, Cache.USE))
        except DamagedError as error:
            warnings.append(f"revision {revision.id} is not built upon: {error.message}")
        else:
            return revision
    return None


def _differences(parent: Revision | None, snapshot: Snapshot) -> Iterator[str]:
    """What became of the parent's disks, and why all of one is read."""
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


class _Making:
    """The disks of one revision while they are made."""

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
                target.forget(start, length)
            claims = Claims(image, target.block_size, damaged)
            read = copy(claims, target, watcher=self._watcher)
            if base and claims.same:
                sampled = due(claims.same, target.index, base.time, self._draft.time)
                changed = target.changed
                compared = copy(claims.rest(sampled), target)
                if target.changed != changed:
                    self._distrust(base, name)
                    read += copy(claims.rest(claims.same), target)
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
        status.update(self._repository.root, lambda known: status.tracking_failed(known, now))


def _write_files(draft: RevisionDraft, snapshot: Snapshot) -> None:
    for name, content in snapshot.files.items():
        path = draft.folder / check_disk_name(name)
        if path.exists() or path.name == "revision.json":
            raise SourceError(f"the source has a file {name!r}, which is a name of backy's own")
        with translated(StoreError, f"writing {path}"):
            folders.write_file(path, content)


def suspicion(repository: Repository, revision: Revision, parent_id: str | None) -> str:
    """Why a new revision may not hold what it should: it has far less data than its parent.

    "" where it seems fine, or where nobody can tell. A disk that was emptied, or a source that
    names the wrong one, makes a backup that succeeds.
    """
    with suppress(BackyError):
        if parent_id:
            return next(_losses(repository, revision, repository.find(parent_id)), "")
    return ""


def _losses(repository: Repository, revision: Revision, parent: Revision) -> Iterator[str]:
    for name, old in parent.disks.items():
        new = revision.disks.get(name)
        if not new:
            yield f"disk {name} is gone"
        elif new.changed or new.size < old.size:
            before, now = (_data(repository, each, name) for each in (parent, revision))
            if now * _SUSPICIOUS < before:
                yield f"disk {name} has {format_size(now)} of data, it had {format_size(before)}"


def _data(repository: Repository, revision: Revision, name: str) -> int:
    with repository.store.open(revision, name, Cache.USE) as image:
        return image.index.data()
