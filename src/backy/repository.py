"""One VM's folder: its settings, its history, its locks, and the one rename that publishes.

Which operations wait for which, and why nothing else is needed, is the locking table in
ARCHITECTURE.md; the crash rules are there, too.
"""

from __future__ import annotations

import re
import secrets
import string
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from backy import disk, process, status
from backy.errors import BusyError, ConfigError, DamagedError, NotFoundError, StoreError, translated
from backy.records import (
    Settings,
    check_settings,
    encode_revision,
    encode_settings,
    read_revision,
    read_settings,
)
from backy.revision import Revision, check_tag, id_for, is_id, time_for, time_of
from backy.stores import Store, store_class
from backy.units import MiB
from backy.words import select_one

DEFAULT_BLOCK = MiB  # bytes; docs/decisions/0002-block-size.md
_LONGEST_NAME = 128  # bytes; half of what a file system takes, so that a suffix fits
_NAME = re.compile(r"[^\W_][\w.@+-]*")
_SUFFIX = string.ascii_lowercase + string.digits
_PATIENCE = 30  # seconds to wait for the history lock, which nobody holds for longer than a moment


def check_job(name: str) -> str:
    """Give `name` back. Raises ConfigError where it cannot safely be the name of a folder."""
    fine = _NAME.fullmatch(name) and unicodedata.is_normalized("NFC", name)
    if not fine or len(name.encode(errors="replace")) > _LONGEST_NAME:
        hint = "Use letters, digits and . _ @ + -, a letter or digit first, at most 128 bytes."
        raise ConfigError(f"{name!r} cannot be the name of a job", hint)
    return name


def jobs(base: Path) -> list[str]:
    """The names of all repositories in a base directory, sorted."""
    with translated(StoreError, f"listing {base}"):
        names = disk.list_folder(base)
        return [name for name in names if (base / name / "repository.json").exists()]


def create(base: Path, job: str, settings: Settings) -> Repository:
    """Make the repository of `job`: its folders, restore.sh, and last of all repository.json.

    A store called "auto" becomes images where the file system can share extents, else chunks.
    Raises ConfigError where a setting is impossible, StoreError where the folder cannot be made.
    """
    root = base / check_job(job)
    check_settings(settings)
    with translated(StoreError, f"{job}: making {root}", "May you write there?"):
        disk.make_folder(root)
        disk.make_folder(root / "revisions")
        if settings.store == "auto":
            settings = replace(settings, store="images" if _shares_extents(root) else "chunks")
        store_class(settings.store)
        with disk.locked(root / "revisions", patience_seconds=_PATIENCE):
            if not (root / "repository.json").exists():  # somebody else may have been faster
                disk.write_file(root / "restore.sh", _script(), mode=0o755)
                disk.write_file(root / "repository.json", encode_settings(settings))
                disk.sync_folder(base)
    return Repository(root)


def _script() -> bytes:
    return files("backy").joinpath("restore.sh").read_bytes()


def _shares_extents(folder: Path) -> bool:
    try:
        with disk.create_unnamed(folder) as origin, disk.create_unnamed(folder) as clone:
            origin.write(0, bytes(disk.PAGE))
            return clone.clone(origin)
    except OSError:
        return False


class Repository:
    """The repository in the folder `root`, which exists."""

    def __init__(self, root: Path) -> None:
        """Raises NotFoundError where there is none, ConfigError where its settings are unusable."""
        self.root = root
        self.name = root.name
        path = root / "repository.json"
        with translated(StoreError, f"opening {root}", "May you read it?"):
            is_there = path.exists()
        if not is_there and (root / "revisions").is_dir():
            hint = "restore.sh in it does without this file."
            raise ConfigError(f"{path} is missing", hint)
        if not is_there:
            there = ", ".join(jobs(root.parent)[:20]) or "none"
            raise NotFoundError(f"there is no repository {root}", f"There are: {there}.")
        self.settings = read_settings(path)
        try:
            make_store = store_class(self.settings.store)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", error.hint) from error
        self.store: Store = make_store(root, self.settings.block_size, self.settings.level)
        self.configured: Callable[[], Mapping[str, object] | None] = lambda: None
        """The settings of its source that the configuration has, if any; may raise ConfigError."""
        self.damaged: list[DamagedError] = []
        self._unusable = ""  # the newest of those revisions

    def remember_source(self, source: dict[str, object]) -> None:
        """Use this source from now on, when a backup names none."""
        if source != self.settings.source:
            self.settings = replace(self.settings, source=source)
            with translated(StoreError, f"{self.name}: writing repository.json"):
                disk.write_file(self.root / "repository.json", encode_settings(self.settings))

    def renew_script(self) -> bool:
        """Whether restore.sh was not the one of this version; it is then.

        A script has no hash, so this is what tells that a bit in it changed. Raises StoreError.
        """
        path = self.root / "restore.sh"
        script = _script()
        with translated(StoreError, f"{self.name}: writing {path}"):
            with suppress(OSError):  # missing or unreadable: all the more
                if disk.read_file(path, MiB) == script:
                    return False
            disk.write_file(path, script, mode=0o755)
        return True

    def history(self) -> list[Revision]:
        """All revisions, oldest first. Those whose revision.json is unusable are in `damaged`."""
        self.damaged, self._unusable = [], ""
        found = []
        with translated(StoreError, f"{self.name}: listing revisions"):
            names = disk.list_folder(self.root / "revisions")
        for name in filter(is_id, names):
            try:
                found.append(self._read(self.root / "revisions" / name))
            except DamagedError as error:
                self.damaged.append(error)
                self._unusable = name
        return found

    def folders(self) -> Iterator[Path]:
        """Those of all revisions: in the history, and in the trash, from where they may come back.

        Raises OSError where one cannot be listed.
        """
        trash = self.root / "trash"
        for folder in (self.root / "revisions", *map(trash.joinpath, disk.list_folder(trash))):
            yield from (folder / name for name in disk.list_folder(folder) if is_id(name))

    def _read(self, folder: Path) -> Revision:
        if folder.is_symlink():
            raise DamagedError(f"{folder} is a link, not a revision", "Delete it.")
        return read_revision(folder / "revision.json", self.settings.block_size)

    def find(self, spec: str) -> Revision:
        """The one revision that a revision word names.

        Raises NotFoundError, or DamagedError where it may be one whose revision.json is unusable:
        "latest" must not quietly be an older one.
        """
        history = self.history()
        why = self.damaged[-1].message if self.damaged else ""
        try:
            found = select_one(spec, history)
        except NotFoundError as error:
            kind = DamagedError if self.damaged else NotFoundError
            message = "; ".join(filter(None, (error.message, why)))
            raise kind(f"{self.name}: {message}", error.hint) from None
        if self._unusable > found.id and not found.id.startswith(spec):
            hint = f"Name the one that you want: {found.id}, for example."
            raise DamagedError(f"{self.name}: {spec!r} may be another revision: {why}", hint)
        return found

    def folder_of(self, revision: Revision) -> Path:
        """Where a published revision lies."""
        return self.root / "revisions" / revision.id

    @contextmanager
    def exclusive(self, verb: str) -> Iterator[None]:
        """Be the only one that adds or drops stored bytes: backup and purge.

        Raises BusyError that names the holder where somebody else is.
        """
        path = self.root / "lock"
        with translated(StoreError, f"{self.name}: locking {path}"):
            try:
                lock = disk.locked(path, make=True)
            except BlockingIOError:
                holder = disk.read_file(path, MiB).decode(errors="replace").strip() or "somebody"
                hint = "Wait for it to end; the lock ends with that process at the latest."
                raise BusyError(f"{self.name}: {verb} skipped, held by {holder}", hint) from None
        with lock:
            with translated(StoreError, f"{self.name}: writing {path}"):
                now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
                lock.note(f"{process.identity()} ({verb}) since {now}\n")
            yield

    def history_lock(self) -> disk.File:
        """Be the only one that changes what revisions there are; others wait for that moment."""
        with translated(BusyError, f"{self.name}: waiting for the history", "Try again."):
            return disk.locked(self.root / "revisions", patience_seconds=_PATIENCE)

    def reading(self, revision: Revision) -> disk.File:
        """Keep purge away from a revision while it is read, even when somebody removes it.

        Raises NotFoundError where it is gone, BusyError where it is being purged.
        """
        folder = self.folder_of(revision)
        with translated(StoreError, f"{self.name}: locking {folder}"):
            try:
                return disk.locked(folder, shared=True, patience_seconds=_PATIENCE)
            except FileNotFoundError:
                raise NotFoundError(f"{self.name}: revision {revision.id} is gone") from None
            except BlockingIOError:
                raise BusyError(f"{self.name}: {revision.id} is being purged") from None

    @contextmanager
    def draft(self, now: datetime | None = None) -> Iterator[RevisionDraft]:
        """A revision to fill and publish; unpublished, nothing of it remains but unnamed chunks.

        The caller holds `exclusive`. What a killed backup left of a draft is removed first.
        """
        revisions = self.root / "revisions"
        with translated(StoreError, f"{self.name}: making a draft"):
            newest = max((folder.name for folder in self.folders()), default=None)
            for name in disk.list_folder(revisions):
                if name.startswith(".") and (revisions / name).is_dir():
                    disk.remove_tree(revisions / name)
            draft = RevisionDraft(self, newest, now or datetime.now(UTC))
        try:
            with draft.anchor:
                yield draft
        finally:
            with suppress(OSError):  # the next backup removes it, and what failed is worth more
                if draft.folder.exists():
                    disk.remove_tree(draft.folder)

    def retag(self, revisions: list[Revision], add: set[str], drop: set[str]) -> list[Revision]:
        """Add and drop tags; give the revisions as they are now."""
        for tag in add | drop:
            check_tag(tag)

        def tagged(revision: Revision) -> Revision:
            return replace(revision, tags=tuple(sorted((set(revision.tags) | add) - drop)))

        return [self.change(each, tagged) for each in revisions]

    def change(self, revision: Revision | str, update: Callable[[Revision], Revision]) -> Revision:
        """Write a revision.json anew, in one step, from what it says now; give what it says then.

        `revision` may be its id. Raises NotFoundError where the revision was removed.
        """
        revision_id = revision if isinstance(revision, str) else revision.id
        path = self.root / "revisions" / revision_id / "revision.json"
        with self.history_lock():
            if not path.parent.exists():
                raise NotFoundError(f"{self.name}: revision {revision_id} was removed")
            changed = update(self._read(path.parent))
            # First, because monitoring must not miss one that became distrusted.
            status.update(self.root, lambda known: status.noted(known, changed))
            with translated(StoreError, f"{self.name}: writing {path}"):
                disk.write_file(path, encode_revision(changed))
        return changed


class RevisionDraft:
    """A revision while it is written: a hidden folder in revisions/."""

    def __init__(self, repository: Repository, newest: str | None, now: datetime) -> None:
        self.repository = repository
        self.time = time_for(now, time_of(newest) if newest else None)
        self.id = id_for(self.time, "".join(secrets.choice(_SUFFIX) for _ in range(4)))
        self.folder = repository.root / "revisions" / f".{self.id}"
        self._started = time.monotonic()
        disk.make_folder(self.folder)
        # Opened before the first write, so that the barrier hears of every failed write-back.
        self.anchor = disk.open_to_read(repository.root / "lock")

    def publish(self, revision: Revision) -> Revision:
        """Make the revision exist, durably: barrier, revision.json, rename, fsync of the parent.

        `revision` has this draft's id; its `seconds` become the draft's age. Raises StoreError
        where a step fails; the history is then the old one, or, where only the last fsync
        failed, the new one.
        """
        revisions = self.folder.parent
        with translated(StoreError, f"{self.repository.name}: publishing {self.id}"):
            self.anchor.barrier()
            revision = replace(revision, seconds=round(time.monotonic() - self._started, 3))
            disk.write_file(self.folder / "revision.json", encode_revision(revision))
            with self.repository.history_lock():
                disk.rename(self.folder, revisions / self.id)
                disk.sync_folder(revisions)
        return revision
