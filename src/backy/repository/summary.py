"""A summary of each repository, read quickly: monitoring asks for ten thousand of them at once."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from backy.errors import BackyError, CancelledError, StoreError, translated
from backy.model.revision import Revision, Trust, is_ahead, is_id, time_of
from backy.repository.records import read_revision
from backy.repository.status import Status, read_status
from backy.system import folders
from backy.system.place import Place


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job's repository holds.

    `revisions` are the ids of all revisions, oldest first; `newest` is the last of them that is not
    from the future, as its revision.json describes it, `ahead` how many after it are; `oldest` is
    the time of the first that is not. `reports` is the number of reports in quarantine. `problem`
    says why some of this could not be read; it is empty if all of it was.
    """

    job: str
    revisions: tuple[str, ...] = ()
    newest: Revision | None = None
    status: Status = field(default_factory=Status)
    reports: int = 0
    problem: str = ""
    ahead: int = 0
    oldest: datetime | None = None

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
        return scrubbed.oldest if scrubbed and scrubbed.oldest else self.oldest


def summarize(base: Path, job: str, now: datetime) -> Summary:
    """The summary of the repository of `job`, which need not exist. A bug, too, is a problem."""
    root = Place.at(base / job)
    ids: tuple[str, ...] = ()
    reports, status, newest, ahead, oldest, problem = 0, Status(), None, 0, None, ""
    try:
        with translated(StoreError, f"listing {root}"):
            names = folders.list_folder(root)  # one listing is faster than a stat for each name
            ids = tuple(filter(is_id, folders.list_folder(root / "revisions")))
            if "quarantine" in names:
                reports = sum(map(is_id, folders.list_folder(root / "quarantine")))
        if "status.json" in names:
            status = read_status(root)
        if ids:
            newest, ahead = _first_dated(root, reversed(ids), now)
            oldest = time_of(ids[0])
            if is_ahead(oldest, now):
                first, _ = _first_dated(root, ids, now)
                oldest = first.time if first else None
    except CancelledError:
        raise
    except BackyError as error:
        problem = error.message
    except Exception as error:  # noqa: BLE001 - monitoring must go on with the other jobs
        problem = f"a bug in backy: {error!r:.200}"
    return Summary(job, ids, newest, status, reports, problem, ahead, oldest)


def _first_dated(root: Place, ids: Iterable[str], now: datetime) -> tuple[Revision | None, int]:
    """The first of `ids` that is not from the future, and how many before it are."""
    ahead = 0
    for revision_id in ids:
        revision = read_revision(root / "revisions" / revision_id / "revision.json")
        if not is_ahead(revision.time, now):
            return revision, ahead
        ahead += 1
    return None, ahead


def fingerprint(base: Path, job: str) -> tuple[int, ...]:
    """Times of modification that change whenever a revision or the status does.

    Empty if the repository does not exist or cannot be read.
    """
    root = Place.at(base / job)
    try:
        return root.status().st_mtime_ns, (root / "revisions").status().st_mtime_ns
    except OSError:
        return ()
