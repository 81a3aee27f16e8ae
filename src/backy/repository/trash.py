"""Removing revisions, getting them back, and freeing the space at last.

remove  renames revisions/REV to trash/BATCH/REV, one batch a command
undo    renames the newest batch back
purge   renames trash/BATCH/REV to trash/.REV, deletes that, then drops chunks nobody names
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backy.errors import BusyError, NotFoundError, StoreError, translated
from backy.model.revision import ID_TIME, Revision, id_for, is_id, time_for, time_of
from backy.repository.manifest import read_revision
from backy.repository.repository import Repository
from backy.stores.index import Index
from backy.system import folders
from backy.system.place import Place

_GONE = ".gone"  # ends the hidden name of a repository that is being deleted


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge did. `kept` are revisions in the trash: too young, or somebody reads them."""

    revisions: tuple[str, ...]
    kept: tuple[str, ...]
    freed: int


def remove(repository: Repository, revisions: list[Revision]) -> None:
    """Move revisions to the trash, as one batch. Raises NotFoundError where one is gone already."""
    trash = repository.root / "trash"
    with repository.history_lock(), translated(StoreError, f"{repository.name}: removing"):
        batches = [name for name in folders.list_folder(trash) if is_id(name)]
        for revision in revisions:
            if not repository.folder_of(revision).exists():
                why = f"{repository.name}: revision {revision.id} was removed already"
                raise NotFoundError(why)
        batch = trash / _new_batch(batches)
        folders.make_folder(batch)
        for revision in revisions:
            folders.rename(repository.folder_of(revision), batch / revision.id)
        _sync(repository, batch)


def _new_batch(batches: list[str]) -> str:
    newest = time_of(batches[-1]) if batches else None
    return id_for(time_for(datetime.now(UTC), newest), secrets.token_hex(2))


def _sync(repository: Repository, batch: Place) -> None:
    for folder in (batch, batch.parent, repository.root / "revisions", repository.root):
        folders.sync_folder(folder)


def undo(repository: Repository) -> list[str]:
    """Bring the newest batch back; give the ids. Raises NotFoundError where the trash is empty."""
    trash = repository.root / "trash"
    with repository.history_lock(), translated(StoreError, f"{repository.name}: undoing"):
        for name in filter(is_id, reversed(folders.list_folder(trash))):
            ids = [each for each in folders.list_folder(trash / name) if is_id(each)]
            for each in ids:
                folders.rename(trash / name / each, repository.root / "revisions" / each)
            if ids:
                _sync(repository, trash / name)
                return ids
    raise NotFoundError(f"{repository.name}: the trash is empty", "A purge cannot be undone.")


def purge(repository: Repository, older_than_seconds: int = 0) -> Purged:
    """Delete what was removed at least so many seconds ago, then every chunk that nobody names.

    Chunks that failed backups left go, too. Raises BusyError while a backup or another purge
    runs, and DamagedError, before any chunk is touched, where it cannot be sure what is in use.
    """
    with repository.exclusive("purge"):
        with translated(StoreError, f"{repository.name}: emptying the trash"):
            with repository.history_lock():
                purged, kept = _hide_old(repository, older_than_seconds)
            folders.remove_hidden(repository.root / "trash")
        freed = sweep(repository)
    return Purged(tuple(purged), tuple(kept), freed)


def oldest(repository: Repository) -> datetime | None:
    """When the revision was removed that is in the trash for longest; None where it is empty.

    Raises StoreError where the trash cannot be listed.
    """
    with translated(StoreError, f"{repository.name}: listing the trash"):
        names = folders.list_folder(repository.root / "trash")
    return min((time_of(name) for name in names if is_id(name)), default=None)


def erase(repository: Repository) -> None:
    """Delete a whole repository for good. Raises BusyError where somebody backs it up or reads it.

    Killed in the middle, it is gone from all lists; the next `erase` of any job deletes the rest.
    """
    base, revisions = repository.folder.parent, repository.root / "revisions"
    what = f"{repository.name}: deleting it"
    with repository.exclusive("purge"), translated(StoreError, what), repository.history_lock():
        for name in filter(is_id, folders.list_folder(revisions)):
            try:
                folders.locked(revisions / name).close()
            except BlockingIOError:
                raise BusyError(f"{what}: somebody reads {name}", "Try again later.") from None
        folders.rename(repository.folder, base / f".{repository.name}{_GONE}")
        folders.sync_folder(base)
    with translated(StoreError, what):
        folders.remove_hidden(base, _GONE)


def sweep(repository: Repository) -> int:
    """Drop every chunk that no revision names, in the history or the trash; give the bytes freed.

    The caller holds `exclusive`, so nobody publishes; the history lock keeps revisions from
    moving between history and trash unseen while they are marked.
    """
    with translated(StoreError, f"{repository.name}: dropping chunks that nobody names"):
        return repository.store.collect(_indexes(repository))


def _hide_old(repository: Repository, older_than_seconds: int) -> tuple[list[str], list[str]]:
    trash = repository.root / "trash"
    # Batches are at least a second apart, so that one may bear a time that has yet to come.
    before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    newest = f"{before:{ID_TIME}}" if older_than_seconds else "a"
    purged: list[str] = []
    kept: list[str] = []
    for name in filter(is_id, folders.list_folder(trash)):
        for each in filter(is_id, folders.list_folder(trash / name)):
            is_hidden = name < newest and _hide(trash / name / each, trash / f".{each}")
            (purged if is_hidden else kept).append(each)
        if not folders.list_folder(trash / name):
            folders.remove_empty_folder(trash / name)
    return purged, kept


def _hide(folder: Place, hidden: Place) -> bool:
    """Take a removed revision from undo's reach, unless somebody is still reading it."""
    try:
        with folders.locked(folder):
            folders.rename(folder, hidden)
            folders.sync_folder(hidden.parent)
            folders.sync_folder(folder.parent)
    except BlockingIOError:
        return False
    return True


def _indexes(repository: Repository) -> Iterator[Index]:
    """Every index there is; the history stands still until the last one was taken."""
    with repository.history_lock():
        for folder in repository.folders():
            revision = read_revision(folder / "revision.json", repository.settings.block_size)
            for name, each in revision.disks.items():
                with repository.store.open_index(folder, name, each) as index:
                    yield index
