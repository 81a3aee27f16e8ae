"""What is on disk of a job, read quickly: for monitoring ten thousand of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from backy.errors import BackyError, StoreError, translated
from backy.model.revision import Revision, Trust, is_id, time_of
from backy.repository.manifest import read_revision
from backy.repository.status import Status, read_status
from backy.system import folders


@dataclass(frozen=True, slots=True)
class Facts:
    """`revisions` are the ids of all, oldest first; `newest` is the last of them, read.

    `reports` counts what lies in quarantine. `problem` says why any of this could not be read.
    """

    job: str
    revisions: tuple[str, ...] = ()
    newest: Revision | None = None
    status: Status = field(default_factory=Status)
    reports: int = 0
    problem: str = ""

    @property
    def distrusted(self) -> set[str]:
        """The distrusted revisions that still exist; the newest one is asked itself."""
        newest = self.newest
        own = [newest.id] if newest and newest.trust is Trust.DISTRUSTED else []
        return {*own, *self.status.distrusted}.intersection(self.revisions)

    @property
    def unread_since(self) -> datetime | None:
        """Since when some stored byte has not been read by a scrub; None where none is stored."""
        scrubbed = self.status.scrubbed
        if scrubbed and scrubbed.oldest:
            return scrubbed.oldest
        return time_of(self.revisions[0]) if self.revisions else None


def facts(base: Path, job: str) -> Facts:
    """Look at the repository of `job`, which may not exist. Never raises BackyError."""
    root = base / job
    ids: tuple[str, ...] = ()
    reports, status, newest, problem = 0, Status(), None, ""
    try:
        with translated(StoreError, f"listing {root}"):
            there = folders.list_folder(root)  # asking for what is not there takes longer
            ids = tuple(filter(is_id, folders.list_folder(root / "revisions")))
            if "quarantine" in there:
                reports = sum(map(is_id, folders.list_folder(root / "quarantine")))
        if "status.json" in there:
            status = read_status(root)
        if ids:
            newest = read_revision(Path(f"{root}/revisions/{ids[-1]}/revision.json"))
    except BackyError as error:
        problem = error.message
    return Facts(job, ids, newest, status, reports, problem)


def times(base: Path, job: str) -> tuple[int, ...]:
    """What changes when a revision comes or goes, or a status is written; () where none did yet."""
    root = base / job
    try:
        return root.stat().st_mtime_ns, (root / "revisions").stat().st_mtime_ns
    except OSError:
        return ()
