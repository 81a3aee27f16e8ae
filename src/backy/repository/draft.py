"""A revision while it is written, and the one rename that publishes it."""

from __future__ import annotations

import secrets
import string
import time
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from backy.errors import StoreError, translated
from backy.model.revision import Revision, id_for, time_for, time_of
from backy.repository.manifest import (
    encode_revision,
)
from backy.system import files, folders

if TYPE_CHECKING:
    from backy.repository.repository import Repository

_SUFFIX = string.ascii_lowercase + string.digits


class RevisionDraft:
    """A revision while it is written: a hidden folder in revisions/."""

    def __init__(self, repository: Repository, newest: str | None, now: datetime) -> None:
        self.repository = repository
        self.time = time_for(now, time_of(newest) if newest else None)
        self.id = id_for(self.time, "".join(secrets.choice(_SUFFIX) for _ in range(4)))
        self.folder = repository.root / "revisions" / f".{self.id}"
        self._started = time.monotonic()
        self._is_settled = False
        folders.make_folder(self.folder)
        # Opened before the first write, so that the barrier hears of every failed write-back.
        self.anchor = files.open_to_read(repository.root / "lock")

    def settle(self) -> None:
        """Return when all that was written is durable. Nothing may be written afterwards.

        May take as long as the file system has to write out. Raises StoreError where some of it
        may be lost.
        """
        with translated(StoreError, f"{self.repository.name}: publishing {self.id}"):
            self.anchor.barrier()
        self._is_settled = True

    def publish(self, revision: Revision) -> Revision:
        """Make the revision exist, durably: barrier, revision.json, rename, fsync of the parent.

        `revision` has this draft's id; its `seconds` become the draft's age. Raises StoreError
        where a step fails; the history is then the old one, or, where only the last fsync
        failed, the new one.
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
