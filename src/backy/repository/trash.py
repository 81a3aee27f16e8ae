"""Trash: remove revisions, bring them back, or delete them for good.

remove  renames revisions/REV to trash/BATCH/REV, with one batch for each command
undo    renames the newest batch back
purge   renames trash/BATCH/REV to trash/.REV, deletes that, then deletes unused chunks

A removal needs a new folder, which a full file system refuses. So each repository keeps a folder
`reserve` with some space, which becomes a batch then; the next removal takes over the newest batch.
A purge needs no space, not even one of revisions in the history: it renames revisions/REV to
revisions/.REV.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backy.errors import FULL, BusyError, DamagedError, NotFoundError, StoreError, translated
from backy.model.revision import ID_TIME, Revision, id_for, is_ahead, is_id, time_for, time_of
from backy.repository.records import read_revision
from backy.repository.repository import Repository
from backy.stores.used import Used
from backy.system import folders
from backy.system.place import Place
from backy.units import KiB

_GONE = ".gone"  # the end of the hidden name of a repository that is being deleted
_OWN = {
    "repository.json", "restore.sh", "status.json", "status.lock", "scrub.json", "lock",
    "restores.json",
    "revisions", "trash", "quarantine", "chunks", "pages", "twins", "reserve",
}  # fmt: skip
_RESERVE = 256 * KiB  # XFS wants that much for a new folder, ext4 and btrfs want less


@dataclass(frozen=True, slots=True)
class Purged:
    """The result of a purge, in ids of revisions; `freed` is in bytes.

    `kept` stay in the trash: they were removed too recently, or are being read. `foreign` are
    paths in the repository that backy did not make; they were left alone. `unknown` says what
    could not be read; pages and blocks that only it may use were left alone, too.
    """

    revisions: tuple[str, ...]
    kept: tuple[str, ...]
    freed: int
    foreign: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def remove(repository: Repository, revisions: list[Revision]) -> None:
    """Move revisions to the trash, as one batch. Raises NotFoundError if one is not published."""
    trash = repository.root / "trash"
    with repository.history_lock(), translated(StoreError, f"{repository.name}: removing"):
        batches = _batches(trash)
        for revision in revisions:
            if not repository.folder_of(revision).exists():
                why = f"{repository.name}: revision {revision.id} was removed already"
                raise NotFoundError(why)
        batch = trash / _new_batch(batches, secrets.token_hex(2))
        try:
            _move(repository, revisions, batch)
        except OSError as error:
            if error.errno not in FULL:
                raise
            _make_room(repository, batches, batch)
            _move(repository, revisions, batch)


def keep_reserve(repository: Repository) -> None:
    """Set a folder and some space aside for a removal on a full disk, if there is room for it."""
    path = repository.root / "reserve" / "space"
    with suppress(OSError):
        if not path.exists():
            folders.make_folder(repository.root / "trash")
            folders.make_folder(path.parent)
            folders.write_file(path, bytes(_RESERVE))


def _make_room(repository: Repository, batches: list[str], batch: Place) -> None:
    """Use up the reserve. If there is none, the newest batch becomes `batch`: undo undoes both."""
    reserve = repository.root / "reserve"
    is_kept = reserve.is_folder()
    if is_kept:
        folders.remove_file(reserve / "space")
        folders.sync_folder(reserve)  # some file systems free the space only now
    if not batch.exists() and (is_kept or batches):
        folders.rename(reserve if is_kept else batch.with_name(batches[-1]), batch)


def _move(repository: Repository, revisions: list[Revision], batch: Place) -> None:
    """Move those revisions to a batch that are not there yet; durable on return."""
    folders.make_folder(batch)
    for folder in map(repository.folder_of, revisions):
        if folder.exists():
            folders.rename(folder, batch / folder.name)
    _sync(repository, batch)


def _batches(trash: Place) -> list[str]:
    """The batches, oldest first. The caller holds the history lock.

    Those from the future, which a clock made that was ahead, are renamed to now: their age is
    unknown, they would never be purged, and neither would those after them.
    """
    batches: list[str] = []
    for name in (folder.name for folder in _folders_in(trash)):
        batch = name
        if is_ahead(time_of(name), datetime.now(UTC)):
            batch = _new_batch(batches, name[-4:])
            folders.rename(trash / name, trash / batch)
        batches.append(batch)
    return batches


def _new_batch(batches: list[str], suffix: str) -> str:
    newest = time_of(batches[-1]) if batches else None
    return id_for(time_for(datetime.now(UTC), newest), suffix)


def _sync(repository: Repository, batch: Place) -> None:
    for folder in (batch, batch.parent, repository.root / "revisions", repository.root):
        folders.sync_folder(folder)


def undo(repository: Repository) -> list[str]:
    """Bring the newest batch back; return its ids. Raises NotFoundError if the trash is empty."""
    trash = repository.root / "trash"
    with repository.history_lock(), translated(StoreError, f"{repository.name}: undoing"):
        for batch in reversed(_folders_in(trash)):
            for folder in (removed := _folders_in(batch)):
                folders.rename(folder, repository.root / "revisions" / folder.name)
            if removed:
                _sync(repository, batch)
                return [folder.name for folder in removed]
    raise NotFoundError(f"{repository.name}: the trash is empty", "A purge cannot be undone.")


def purge(
    repository: Repository, older_than_seconds: int = 0, only: Iterable[Revision] | None = None
) -> Purged:
    """Delete revisions removed at least so many seconds ago, then all chunks that are not in use.

    With `only` it deletes these revisions of the history instead, those that nobody reads. It also
    deletes what failed backups left, and needs no space. Raises BusyError while a backup or another
    purge runs.
    """
    purged: list[str] = []
    kept: list[str] = []
    with repository.exclusive("purge"):
        with translated(StoreError, f"{repository.name}: deleting revisions"):
            with repository.history_lock():
                # Those of the history in the same folder, which needs no space for another name.
                hidden = repository.root / ("trash" if only is None else "revisions")
                for folder, is_due in _unwanted(repository, older_than_seconds, only):
                    is_hidden = is_due and _hide(folder, hidden / f".{folder.name}")
                    (purged if is_hidden else kept).append(folder.name)
            for name in ("trash", "revisions"):
                folders.remove_hidden(repository.root / name, is_id)
            foreign = list(_foreign(repository.root))
        freed, unknown = sweep(repository, foreign.append)
        keep_reserve(repository)
    shown = [path.path.relative_to(repository.folder) for path in foreign]
    return Purged(tuple(purged), tuple(kept), freed, tuple(map(str, shown)), tuple(unknown))


def removed(repository: Repository) -> tuple[datetime, datetime] | None:
    """When the oldest and the newest batch in the trash were removed; None if the trash is empty.

    Raises StoreError if the trash cannot be listed.
    """
    with translated(StoreError, f"{repository.name}: listing the trash"):
        batches = _folders_in(repository.root / "trash")  # undo leaves empty ones
        oldest = next(filter(_folders_in, batches), None)
        newest = next(filter(_folders_in, reversed(batches)), None)
    return (time_of(oldest.name), time_of(newest.name)) if oldest and newest else None


def erase(repository: Repository) -> None:
    """Delete a whole repository for good. Raises BusyError if a backup or a reader uses it.

    If this is killed, the job may be gone from all lists with files left over; the next `erase` of
    any job deletes them.
    """
    base, revisions = repository.folder.parent, repository.root / "revisions"
    action = f"{repository.name}: deleting it"
    with repository.exclusive("purge"), translated(StoreError, action), repository.history_lock():
        for folder in _folders_in(revisions):
            try:
                folders.locked(folder).close()
            except BlockingIOError:
                raise BusyError(f"{action}: {folder.name} is read", "Try again later.") from None
        hidden = base / f".{repository.name}{_GONE}"
        folders.rename(repository.folder, hidden)
        folders.sync_folder(base)
    with translated(StoreError, action):
        folders.remove_tree(hidden)
    with suppress(OSError):  # what is left of another job is not this one's trouble
        folders.remove_hidden(base, lambda name: name.endswith(_GONE))


def sweep(
    repository: Repository, leave: Callable[[Place], None] = lambda _: None
) -> tuple[int, list[str]]:
    """Delete all pages and chunks that no revision in the history or the trash uses.

    Returns the bytes freed, and what could not be read: what only that may use is kept. `leave`
    gets what is neither a page nor a chunk. The caller holds `exclusive`, so that no revision is
    published meanwhile.
    """
    store = repository.store
    used = Used(has_named_blocks=store.shares_blocks)
    with translated(StoreError, f"{repository.name}: deleting unused chunks"):
        # The history lock keeps revisions from moving between history and trash.
        with repository.history_lock():
            for folder in all_folders(repository.root):
                try:
                    path = folder / "revision.json"
                    revision = read_revision(path, repository.settings.block_size)
                    for name, disk in revision.disks.items():
                        with store.open_index(revision, name, folder) as index:
                            used.add(index, disk.index_hash)
                except DamagedError as error:
                    if not error.is_damage:
                        raise
                    used.add_unknown(error.message)
        return store.collect(used, leave), used.unknown


def _foreign(root: Place) -> Iterator[Place]:
    """What backy did not make in the folders of a repository; the store knows those of chunks."""
    trash = root / "trash"
    for folder in (root, root / "revisions", root / "quarantine", trash, *_folders_in(trash)):
        in_trash = folder.parts[:1] == trash.parts
        for name in folders.list_folder(folder):
            plain, path = name.removeprefix("."), folder / name
            is_own = plain.removesuffix(".new") in _OWN if folder == root else is_id(plain)
            if not is_own or (in_trash and not path.is_folder()):
                yield path


def _unwanted(
    repository: Repository, older_than_seconds: int, only: Iterable[Revision] | None
) -> Iterator[tuple[Place, bool]]:
    """The folders that `purge` is about, and whether they are due; those due may be moved away."""
    if only is not None:
        published = map(repository.folder_of, only)
        yield from ((folder, True) for folder in published if folder.exists())
        return
    trash = repository.root / "trash"
    # Batches are at least a second apart, so a batch may be named after a time in the future.
    before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    newest = f"{before:{ID_TIME}}" if older_than_seconds else "a"
    for name in _batches(trash):
        for folder in _folders_in(trash / name):
            yield folder, name < newest
        if not folders.list_folder(trash / name):
            folders.remove_empty_folder(trash / name)


def _hide(folder: Place, hidden: Place) -> bool:
    """Rename a revision, so that nobody can find it any more. False if it is still being read."""
    try:
        with folders.locked(folder):
            try:
                folders.rename(folder, hidden)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                # A full btrfs renames nothing, but deletes. revision.json makes it a revision.
                folders.remove_file(folder / "revision.json")
                folders.remove_tree(folder)
            folders.sync_folder(hidden.parent)
            folders.sync_folder(folder.parent)
    except BlockingIOError:
        return False
    return True


def all_folders(root: Place) -> Iterator[Place]:
    """The folders of all revisions of a repository: those in the history and those in the trash.

    Raises OSError if one of them cannot be listed.
    """
    yield from _revisions_in(root / "revisions")
    for batch in _folders_in(root / "trash"):  # their names are like those of revisions
        yield from _folders_in(batch)


def _revisions_in(folder: Place) -> list[Place]:
    return [folder / name for name in folders.list_folder(folder) if is_id(name)]


def _folders_in(folder: Place) -> list[Place]:
    """The same without files and links, which somebody else put there."""
    return [each for each in _revisions_in(folder) if each.is_folder()]
