"""The repository of one job: a folder with its settings, its history and its locks.

The locking table in ARCHITECTURE.md says which operations wait for which. The rules for crashes are
there, too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from backy.errors import BusyError, ConfigError, DamagedError, NotFoundError, StoreError, translated
from backy.model.revision import Revision, is_id
from backy.model.selector import select_one
from backy.repository import status
from backy.repository.known_revisions import KnownRevisions
from backy.repository.records import Settings, encode_record, read_revision, read_settings
from backy.stores import Store, store_class
from backy.stores.codec import Codec
from backy.system import files, folders, process
from backy.system.place import Place
from backy.units import MiB

DEFAULT_BLOCK = MiB  # bytes; docs/decisions/0002-block-size.md
_MOST_RECORDS = 64 * MiB  # of revision.json in a history: 3,000 with 20 KiB each
_FEW = 64  # revisions that cannot have more, and are read again in no time
PATIENCE = 30  # seconds to wait for the locks that are only held for moments: history, reports


def is_repository(root: Path) -> bool:
    """Whether there is a repository in the folder `root`. Raises StoreError if that is unknown."""
    path = Place.at(root) / "repository.json"
    with translated(StoreError, f"looking for {path}", "Check its permissions."):
        return path.exists()


def codec_for(settings: Settings) -> Codec:
    """The codec of a repository with these settings: it hashes and compresses blocks."""
    # Imported here, because commands that read no blocks need neither blake3 nor zstandard.
    from backy.stores.zstd import ZstdCodec  # noqa: PLC0415

    return ZstdCodec(settings.level)


@dataclass(frozen=True, slots=True)
class History:
    """The published `revisions`, oldest first; and by id, why others are `unreadable`."""

    revisions: list[Revision]
    unreadable: dict[str, DamagedError]

    def explained(self, error: NotFoundError) -> NotFoundError | DamagedError:
        """The error of a word that names none; DamagedError if it may name an unreadable one.

        If no revision can be read, its hint says how to get at the data all the same.
        """
        if not self.unreadable:
            return error
        newest = self.unreadable[max(self.unreadable)]
        hint = error.hint if self.revisions else newest.hint
        return DamagedError(f"{error.message}; {newest.message}", hint)

    @property
    def problems(self) -> list[str]:
        """Why some are unreadable; what many have in common is said once."""
        return list(dict.fromkeys(error.message for error in self.unreadable.values()))


class Repository:
    """The repository in the folder `folder`, which exists.

    Its files are opened relative to `root`, a descriptor of the folder that is opened once.
    """

    def __init__(self, folder: Path, make_codec: Callable[[Settings], Codec] = codec_for) -> None:
        """Raises NotFoundError if there is none, ConfigError if its settings are unusable."""
        self._make_codec = make_codec
        self.folder = folder
        self.name = folder.name
        self.root = root = Place.at(folder)
        path = root / "repository.json"
        with translated(StoreError, f"opening {root}", "Check its permissions."):
            is_there = path.exists()
            is_cut = not is_there and (root / "revisions").is_folder()
        if is_cut:
            raise ConfigError(f"{path} is missing", "restore.sh in that folder works without it.")
        if not is_there and not folder.parent.exists():
            hint = "Is the name right, and the file system mounted? backy init makes the folder."
            raise StoreError(f"there is no folder {folder.parent}", hint)
        if not is_there:
            raise NotFoundError(f"there is no repository {folder}", "backy list shows all jobs.")
        self.settings = read_settings(path)
        try:
            self._make_store = store_class(self.settings.store)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", error.hint) from error

    @cached_property
    def codec(self) -> Codec:
        """Hashes and compresses its blocks."""
        return self._make_codec(self.settings)

    @cached_property
    def store(self) -> Store:
        """Keeps the blocks of its disks."""
        return self._make_store(self.root, self.settings.block_size, self.codec)

    def remember_source(self, source: dict[str, object]) -> None:
        """Save the settings of a source, for backups that name none. Raises StoreError."""
        if source != self.settings.source:
            self.change_settings(replace(self.settings, source=source))

    def change_settings(self, settings: Settings) -> None:
        """Replace repository.json durably. Raises StoreError."""
        with translated(StoreError, f"{self.name}: writing repository.json"):
            folders.write_file(self.root / "repository.json", encode_record(settings))
        self.settings = settings

    def history(self, known: KnownRevisions | None = None) -> History:
        """All revisions that are published now. Raises StoreError if they cannot be listed.

        If there are many, those in `known` are not read again, and the others are added to it.
        """
        revisions, unreadable = list[Revision](), dict[str, DamagedError]()
        for name, read in self.newest_first(known):
            if isinstance(read, Revision):
                revisions.append(read)
            else:
                unreadable[name] = read
        return History(revisions[::-1], dict(reversed(unreadable.items())))

    def newest_first(
        self, known: KnownRevisions | None = None
    ) -> Iterator[tuple[str, Revision | DamagedError]]:
        """Each id of the history, newest first, with the revision, or why it is unreadable.

        Reads only as far as it is asked. Beyond 64 MiB of revision.json, which take some 150 MiB
        of memory, older revisions are unreadable: who can write to one repository must not stop
        the backups of all others. Raises StoreError if they cannot be listed.
        """
        with translated(StoreError, f"{self.name}: listing revisions"):
            folder = self.root / "revisions"
            ids = [*filter(is_id, folders.list_folder(folder))]
            folder = folder.as_root() if ids else folder  # which may be missing
        block_size, left = self.settings.block_size, _MOST_RECORDS
        why = "older revisions are not read, because all revision.json together exceed 64 MiB"
        for name in reversed(ids):
            path, file = folder / name / "revision.json", None
            if len(ids) > _FEW:
                with suppress(OSError):
                    file = path.status()
                    left -= min(file.st_size, MiB)
            if left < 0:
                yield name, DamagedError(f"{why}; remove revisions that nobody needs")
                continue
            try:
                if known and file:
                    yield name, known.revision(path, file, block_size)
                else:
                    yield name, read_revision(path, block_size)
            except DamagedError as error:
                yield name, error

    def revision(self, revision_id: str) -> Revision:
        """The published revision with this id, read alone. Raises DamagedError."""
        path = self.root / "revisions" / revision_id / "revision.json"
        return read_revision(path, self.settings.block_size)

    def find(self, spec: str) -> Revision:
        """The one revision that a revision word names.

        Raises NotFoundError if there is none, and DamagedError if the word may mean a revision
        whose revision.json is unusable: "latest" must not silently choose an older one.
        """
        history = self.history()
        try:
            revision = select_one(spec, history.revisions)
        except NotFoundError as error:
            why = history.explained(error)
            raise type(why)(f"{self.name}: {why.message}", why.hint) from None
        newest = max(history.unreadable, default="")
        if newest > revision.id and not revision.id.startswith(spec):
            hint = f"Name the one that you want: {revision.id}, for example."
            message = history.unreadable[newest].message
            raise DamagedError(f"{self.name}: {spec!r} may be another revision: {message}", hint)
        return revision

    def has(self, revision_id: str) -> bool:
        """Whether a revision is published now. Raises StoreError if that is unknown."""
        path = self.root / "revisions" / revision_id
        with translated(StoreError, f"{self.name}: looking for {path}"):
            return path.exists()

    def folder_of(self, revision: Revision) -> Place:
        """The folder of a published revision."""
        return self.root / "revisions" / revision.id

    @contextmanager
    def exclusive(self, verb: str) -> Iterator[None]:
        """Hold the lock of the operations that add or delete blocks, such as backup and purge.

        `verb` names the operation in the lock file, and in the BusyError that others get. Raises
        BusyError, which names the holder, if the lock is taken.
        """
        path = self.root / "lock"
        with translated(StoreError, f"{self.name}: locking {path}"):
            try:
                lock = folders.locked(path, make=True)
            except BlockingIOError:
                with files.open_to_read(path) as file:
                    note = file.read_bytes(0, 200).decode(errors="replace")
                holder = note.strip() or "somebody"
                hint = "Wait for it to end; the lock ends with that process at the latest."
                raise BusyError(f"{self.name}: {verb} skipped, held by {holder}", hint) from None
        with lock:
            now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            lock.note(f"{process.identity()} ({verb}) since {now}\n")
            yield

    def history_lock(self) -> files.File:
        """The lock of everything that changes which revisions there are; waits up to 30 s for it.

        The caller closes it. Raises BusyError if another process holds it for longer.
        """
        with translated(BusyError, f"{self.name}: waiting for the history", "Try again."):
            return folders.locked(self.root / "revisions", patience_seconds=PATIENCE)

    def reading(self, revision: Revision) -> files.File:
        """A lock that keeps purge from deleting a revision while it is read, even from the trash.

        The caller closes it. Raises NotFoundError if the revision is gone, BusyError if it is
        being purged.
        """
        folder = self.folder_of(revision)
        with translated(StoreError, f"{self.name}: locking {folder}"):
            try:
                return folders.locked(folder, shared=True, patience_seconds=PATIENCE)
            except FileNotFoundError:
                raise NotFoundError(f"{self.name}: revision {revision.id} is gone") from None
            except BlockingIOError:
                raise BusyError(f"{self.name}: {revision.id} is being purged") from None

    def change(self, revision: Revision | str, update: Callable[[Revision], Revision]) -> Revision:
        """Replace a revision.json atomically by what `update` makes of it; return that.

        `revision` may be its id. Raises NotFoundError if the revision was removed, and StoreError.
        """
        revision_id = revision if isinstance(revision, str) else revision.id
        path = self.root / "revisions" / revision_id / "revision.json"
        with self.history_lock():
            if not self.has(revision_id):
                raise NotFoundError(f"{self.name}: revision {revision_id} was removed")
            changed = update(self.revision(revision_id))
            # First, so that monitoring never misses a revision that became distrusted.
            status.update(self.folder, lambda old: status.revision_changed(old, changed))
            with translated(StoreError, f"{self.name}: writing {path}"):
                folders.write_file(path, encode_record(changed))
        return changed
