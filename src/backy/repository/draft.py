"""Drafts of revisions: a folder that a backup fills, and the rename that publishes it."""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

from backy.errors import StoreError, translated
from backy.model.new_time import time_for
from backy.model.revision import Revision, id_for, is_id, time_of, whole_seconds
from backy.repository.manifest import encode_revision
from backy.repository.repository import Repository
from backy.repository.trash import all_folders
from backy.system import files, folders
from backy.system.signals import shielded

_SUFFIX = string.ascii_lowercase + string.digits


@contextmanager
def draft_revision(repository: Repository, now: datetime | None = None) -> Iterator[RevisionDraft]:
    """A draft to fill and publish. If it is not published, only unused chunks remain of it.

    The caller holds `exclusive`. The drafts of killed backups are deleted first.
    """
    revisions = repository.root / "revisions"
    with translated(StoreError, f"{repository.name}: making a draft"):
        newest = max((folder.name for folder in all_folders(repository.root)), default=None)
        folders.remove_hidden(revisions, is_id)
        draft = RevisionDraft(repository, newest, now or datetime.now(UTC))
    try:
        with draft.anchor:
            yield draft
    finally:
        with suppress(OSError):  # the next backup deletes it; an error of the body matters more
            if draft.folder.exists():
                folders.remove_tree(draft.folder)


class RevisionDraft:
    """A revision that is being written, in a hidden folder in revisions/.

    The new folder belongs to the draft. `draft_revision` deletes it if it is not published.
    """

    def __init__(self, repository: Repository, newest: str | None, now: datetime) -> None:
        self.repository = repository
        self.time = whole_seconds(now)
        ascending = time_for(now, time_of(newest) if newest else None)
        self.id = id_for(ascending, "".join(secrets.choice(_SUFFIX) for _ in range(4)))
        self.folder = repository.root / "revisions" / f".{self.id}"
        self._started = time.monotonic()
        folders.make_folder(self.folder)
        # Opened before the first write, so that the barrier reports every failed write-back.
        self.anchor = files.open_to_read(repository.root / "lock")

    @contextmanager
    def published(self, revision: Revision) -> Iterator[Revision]:
        """Make the revision exist, durably: barrier, revision.json, rename, fsync of the parent.

        Gives `revision`, which has this draft's id, with the draft's age as its `seconds`. Signals
        can interrupt what may take long, the barrier and the wait for the history; not the body.

        Raises StoreError if a step fails, and BusyError if another process holds the history for
        too long. The revision is then not published, unless only the last fsync failed.
        """
        publishing = f"{self.repository.name}: publishing {self.id}"
        with translated(StoreError, publishing):
            self.anchor.barrier()  # the file system writes all its dirty pages
            revision = replace(revision, seconds=round(time.monotonic() - self._started, 3))
            folders.write_file(self.folder / "revision.json", encode_revision(revision))
        with self.repository.history_lock() as history, shielded():
            with translated(StoreError, publishing):
                folders.rename(self.folder, self.folder.parent / self.id)
                folders.sync_folder(self.folder.parent)
            history.close()
            yield revision
