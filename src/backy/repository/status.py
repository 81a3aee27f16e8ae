"""status.json in a repository: how the last runs of a job's commands ended.

The commands write it themselves, so monitoring sees a backup by hand as it sees one of the daemon.
It is small, because one `backy check` reads it for each of ten thousand jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backy.errors import DamagedError, StoreError, translated
from backy.model.revision import Revision, Trust, is_ahead, whole_seconds
from backy.repository.records import AwareTime, encode_record, read_record
from backy.system import folders
from backy.system.files import AnyPath
from backy.system.place import Place

_PATIENCE = 30  # seconds to wait while another process writes it
_HINT = "Delete it; the next backup and the next scrub write a new one."


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """The result of the last scrub: bytes stored, and bytes read within the promised time.

    `oldest` is when the byte that was read longest ago was read; None if nothing is stored.
    """

    time: AwareTime
    total: int
    read: int
    oldest: AwareTime | None


@dataclass(frozen=True, slots=True)
class Status:
    """`errors` counts the backups that failed since the last success, `failures` all failures.

    `seconds` is the duration of the last successful backup. `hooks_failed` counts the backups in
    a row in which a hook failed. `suspicious` says why the newest revision may be wrong.
    `full_reads` counts the disks that were read in full because change tracking was lost,
    `tracking_errors` those whose source reported changed blocks as unchanged, the last time at
    `tracking_error_at`; the keys of these three in the file are "wholes", "lies" and "lied".
    """

    errors: int = 0
    failures: int = 0
    error: str = ""
    failed: AwareTime | None = None
    seconds: float = 0
    hooks_failed: int = 0
    hook_error: str = ""
    suspicious: str = ""
    full_reads: int = field(default=0, metadata={"alias": "wholes"})
    tracking_errors: int = field(default=0, metadata={"alias": "lies"})
    tracking_error_at: AwareTime | None = field(default=None, metadata={"alias": "lied"})
    paused: AwareTime | None = None
    distrusted: tuple[str, ...] = ()
    verified: AwareTime | None = None
    scrubbed: Scrubbed | None = None


def read_status(root: AnyPath) -> Status:
    """The content of status.json in the repository `root`; an empty Status without that file.

    Raises DamagedError if it cannot be read or is not valid.
    """
    place = root if isinstance(root, Place) else Place.at(root)
    try:
        return read_record(place / "status.json", Status, DamagedError, _HINT)
    except DamagedError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Status()
        raise


def update(root: Path, change: Callable[[Status], Status]) -> Status:
    """Replace status.json atomically by what `change` makes of it, and return that.

    A damaged file counts as an empty one, a time from the future as now, and a scrub in the future
    as none. Makes the folder of a job that never succeeded.
    Raises StoreError if the file cannot be written.
    """
    with (
        translated(StoreError, f"{root.name}: writing {root / 'status.json'}"),
        locked(root) as place,
    ):
        try:
            old = read_status(place)
        except DamagedError:
            old = Status()
        new = change(_dated(old, whole_seconds(datetime.now(UTC))))
        if new != old:
            folders.write_file(place / "status.json", encode_record(new))
    return new


def _dated(status: Status, now: datetime) -> Status:
    """The status without times that come from a clock that was ahead."""
    times = {each.name: getattr(status, each.name) for each in fields(status)}
    ahead: dict[str, Any] = {
        name: now
        for name, time in times.items()
        if isinstance(time, datetime) and is_ahead(time, now)
    }
    scrubbed = status.scrubbed
    if scrubbed and is_ahead(scrubbed.time, now):
        scrubbed = None
    return replace(status, scrubbed=scrubbed, **ahead)


@contextmanager
def locked(root: Path) -> Iterator[Place]:
    """The folder of a job, made if it is missing, and locked against others that write in it."""
    folders.make_folder(root)
    place = Place.at(root)
    with folders.locked(place / ".status.lock", make=True, patience_seconds=_PATIENCE):
        yield place


def revision_changed(status: Status, revision: Revision) -> Status:
    """The status after the trust of `revision` changed, or it was verified."""
    others = [other for other in status.distrusted if other != revision.id]
    distrusted = [revision.id] if revision.trust is Trust.DISTRUSTED else []
    times = [time for time in (status.verified, revision.verified) if time]
    return replace(
        status, distrusted=tuple(sorted(others + distrusted)), verified=max(times, default=None)
    )
