"""A summary of each repository, read quickly: monitoring asks for ten thousand of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from backy.errors import BackyError, StoreError, translated
from backy.model.revision import Revision, Trust, is_id, time_of
from backy.repository.manifest import read_revision
from backy.repository.status import Status, read_status
from backy.system import folders
from backy.system.place import Place


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job's repository holds.

    `revisions` are the ids of all revisions, oldest first; `newest` is the last of them, as its
    revision.json describes it. `reports` is the number of reports in quarantine. `problem` says
    why some of this could not be read; it is empty if all of it was.
    """

    job: str
    revisions: tuple[str, ...] = ()
    newest: Revision | None = None
    status: Status = field(default_factory=Status)
    reports: int = 0
    problem: str = ""

    @property
    def distrusted(self) -> set[str]:
        """The distrusted revisions that still exist, by status.json and the newest revision."""
        newest = self.newest
        own = [newest.id] if newest and newest.trust is Trust.DISTRUSTED else []
        return {*own, *self.status.distrusted}.intersection(self.revisions)

    @property
    def unread_since(self) -> datetime | None:
        """Since when some stored byte was not read by a scrub; None if nothing is stored."""
        scrubbed = self.status.scrubbed
        if scrubbed and scrubbed.oldest:
            return scrubbed.oldest
        return time_of(self.revisions[0]) if self.revisions else None


def summarize(base: Path, job: str) -> Summary:
    """The summary of the repository of `job`, which need not exist. Never raises BackyError."""
    root = Place.at(base / job)
    ids: tuple[str, ...] = ()
    reports, status, newest, problem = 0, Status(), None, ""
    try:
        with translated(StoreError, f"listing {root}"):
            names = folders.list_folder(root)  # one listing is faster than a stat for each name
            ids = tuple(filter(is_id, folders.list_folder(root / "revisions")))
            if "quarantine" in names:
                reports = sum(map(is_id, folders.list_folder(root / "quarantine")))
        if "status.json" in names:
            status = read_status(root)
        if ids:
            newest = read_revision(root / "revisions" / ids[-1] / "revision.json")
    except BackyError as error:
        problem = error.message
    return Summary(job, ids, newest, status, reports, problem)


def fingerprint(base: Path, job: str) -> tuple[int, ...]:
    """Times of modification that change whenever a revision or the status does.

    Empty if the repository does not exist or cannot be read.
    """
    root = base / job
    try:
        return root.stat().st_mtime_ns, (root / "revisions").stat().st_mtime_ns
    except OSError:
        return ()
