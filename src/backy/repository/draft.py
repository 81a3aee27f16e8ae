"""Drafts of revisions: a folder that a backup fills, and the rename that publishes it."""

from __future__ import annotations

import secrets
import string
import time
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from backy.errors import StoreError, translated
from backy.model.revision import Revision, id_for, time_for, time_of
from backy.repository.manifest import encode_revision
from backy.system import files, folders

if TYPE_CHECKING:
    from backy.repository.repository import Repository

_SUFFIX = string.ascii_lowercase + string.digits


class RevisionDraft:
    """A revision that is being written, in a hidden folder in revisions/.

    The new folder belongs to the draft. `Repository.draft` deletes it if it is not published.
    """

    def __init__(self, repository: Repository, newest: str | None, now: datetime) -> None:
        self.repository = repository
        self.time = time_for(now, time_of(newest) if newest else None)
        self.id = id_for(self.time, "".join(secrets.choice(_SUFFIX) for _ in range(4)))
        self.folder = repository.root / "revisions" / f".{self.id}"
        self._started = time.monotonic()
        self._is_settled = False
        folders.make_folder(self.folder)
        # Opened before the first write, so that the barrier reports every failed write-back.
        self.anchor = files.open_to_read(repository.root / "lock")

    def settle(self) -> None:
        """Return when everything written so far is durable. Nothing may be written afterwards.

        May take long: the file system writes all its dirty pages. Raises StoreError if some of
        the data may be lost.
        """
        with translated(StoreError, f"{self.repository.name}: publishing {self.id}"):
            self.anchor.barrier()
        self._is_settled = True

    def publish(self, revision: Revision) -> Revision:
        """Make the revision exist, durably: barrier, revision.json, rename, fsync of the parent.

        Returns `revision`, which has this draft's id, with the draft's age as its `seconds`.
        Raises StoreError if a step fails. The revision is then not published, unless only the
        last fsync failed.
        """
        revisions = self.folder.parent
        if not self._is_settled:
            self.settle()
        with translated(StoreError, f"{self.repository.name}: publishing {self.id}"):
            revision = replace(revision, seconds=round(time.monotonic() - self._started, 3))
            folders.write_file(self.folder / "revision.json", encode_revision(revision))
            with self.repository.history_lock():
                folders.rename(self.folder, revisions / self.id)
                folders.sync_folder(revisions)
        return revision
