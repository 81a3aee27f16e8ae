"""Backup: take a snapshot, copy what changed into a draft, publish it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from backy import disk as disks
from backy import status, trash
from backy.disk import Cache
from backy.errors import (
    BackyError,
    BusyError,
    CancelledError,
    DamagedError,
    FullError,
    SourceError,
    StoreError,
    translated,
)
from backy.extent import Extent, Kind
from backy.hooks import Around, Runner
from backy.image import SILENCE, Image, Watcher, copy
from backy.repository import Repository, RevisionDraft
from backy.revision import Consistency, Disk, Revision, Trust, check_disk_name
from backy.sources import Snapshot, Source
from backy.units import format_size

_SUSPICIOUS = 2  # times less data than the parent's is worth a warning


def backup(
    repository: Repository,
    source: Source,
    *,
    tags: tuple[str, ...] = (),
    hooks: Runner | None = None,
    watcher: Watcher = SILENCE,
) -> Revision:
    """Make one revision of all disks of `source` and give it, published.

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
                return _backup(repository, source, tags, hooks, watcher, parent, warnings)
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
    parent: Revision | None,
    warnings: list[str],
) -> Revision:
    if repository.renew_script():
        warnings.append("restore.sh was not the one of this version; it was written anew")
    with ExitStack() as stack:
        draft = stack.enter_context(repository.draft())
        with hooks.around_snapshot(draft.id) if hooks else nullcontext(Around()) as around:
            snapshot = stack.enter_context(source.snapshot(parent))
        warnings += around.failures
        watcher.begin(sum(image.size for image in snapshot.disks.values()))
        made = {}
        for name, image in snapshot.disks.items():
            warnings += _size_warnings(parent, check_disk_name(name), image.size)
            made[name] = _copy_disk(draft, parent, name, image, watcher)
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
        snapshot.keep()
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
    warnings += [f"ignored a revision: {error.message}" for error in repository.damaged]
    for revision in reversed(history):
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


def _size_warnings(parent: Revision | None, name: str, size: int) -> Iterator[str]:
    if not parent:
        return
    old = parent.disks[name].size if name in parent.disks else None
    if old is None:
        yield f"disk {name} is new; all of it was read"
    elif old != size:
        change = "grew" if size > old else "shrank"
        sizes = f"from {format_size(old)} to {format_size(size)} ({old} to {size} bytes)"
        yield f"disk {name} {change} {sizes}"


def _copy_disk(
    draft: RevisionDraft,
    parent: Revision | None,
    name: str,
    image: Image,
    watcher: Watcher,
) -> Disk:
    repository = draft.repository
    base = parent if parent and name in parent.disks else None
    with (
        translated(StoreError, f"{repository.name}: writing the draft of {name}"),
        repository.store.draft(draft.folder, name, image.size, base) as target,
    ):
        for start, length in base.damaged.get(name, ()) if base else ():
            target.forget(start, length)
        read = copy(_Anew(image, base, name), target, watcher=watcher)
        index_hash = target.index_hash()
    return Disk(
        size=image.size,
        block_size=target.block_size,
        index_hash=index_hash,
        read=read,
        changed=target.changed,
        stored=target.stored,
    )


class _Anew:
    """A source's image that calls nothing unchanged where the parent's bytes are damaged."""

    def __init__(self, image: Image, parent: Revision | None, disk: str) -> None:
        self.size = image.size
        self.readinto = image.readinto
        self._image = image
        self._damaged = sorted(parent.damaged.get(disk, ())) if parent else ()

    def extents(self) -> Iterator[Extent]:
        """See Image."""
        for extent in self._image.extents():
            if extent.kind is not Kind.SAME:
                yield extent
                continue
            position = extent.start
            for start, length in self._damaged:
                low, high = max(start, position), min(start + length, extent.end)
                if low < high:
                    if position < low:
                        yield Extent(position, low - position, Kind.SAME)
                    yield Extent(low, high - low, Kind.DATA)
                    position = high
            if position < extent.end:
                yield Extent(position, extent.end - position, Kind.SAME)


def _write_files(draft: RevisionDraft, snapshot: Snapshot) -> None:
    for name, content in snapshot.files.items():
        path = draft.folder / check_disk_name(name)
        if path.exists() or path.name == "revision.json":
            raise SourceError(f"the source has a file {name!r}, which is a name of backy's own")
        with translated(StoreError, f"writing {path}"):
            disks.write_file(path, content)


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
