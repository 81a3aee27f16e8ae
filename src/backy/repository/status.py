"""What happened to a job, beside what its revisions say: status.json in the repository.

The commands write it themselves, so that monitoring sees what ran by hand and what a daemon ran
alike. It is small, and read for each of ten thousand jobs by one `backy check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, TypeAdapter

from backy.errors import DamagedError, StoreError, translated
from backy.model.revision import Revision, Trust
from backy.repository.records import encode_record, read_record
from backy.system import folders

_LONGEST_TEXT = 500  # characters of a message that is kept
_PATIENCE = 30  # seconds to wait for another process that writes it
_HINT = "Delete it; the next backup and the next scrub begin it anew."


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What the last scrub said of its promise: bytes stored, bytes read within it.

    `oldest` is when the stored byte that was read longest ago was read; None: nothing is stored.
    """

    time: AwareDatetime
    total: int
    read: int
    oldest: AwareDatetime | None


@dataclass(frozen=True, slots=True)
class Status:
    """`errors` counts the backups that failed since the last success, `failures` all of them.

    `seconds` is what the last successful backup took, `hooks_failed` counts the backups in a row
    in which a hook failed, `suspicious` says why the newest revision may not be what it should.
    `wholes` counts the disks read whole because what told the changes was gone, `lies` those of
    which a source called blocks unchanged that had changed, the last time at `lied`.
    """

    errors: int = 0
    failures: int = 0
    error: str = ""
    failed: AwareDatetime | None = None
    seconds: float = 0
    hooks_failed: int = 0
    hook_error: str = ""
    suspicious: str = ""
    wholes: int = 0
    lies: int = 0
    lied: AwareDatetime | None = None
    paused: AwareDatetime | None = None
    distrusted: tuple[str, ...] = ()
    verified: AwareDatetime | None = None
    scrubbed: Scrubbed | None = None


_STATUS = TypeAdapter(Status)


def read_status(root: Path) -> Status:
    """What status.json in a repository says; nothing happened where there is none.

    Raises DamagedError where it is not one.
    """
    try:
        return read_record(root / "status.json", _STATUS, DamagedError, _HINT)
    except DamagedError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Status()
        raise


def update(root: Path, change: Callable[[Status], Status]) -> Status:
    """Write status.json anew, in one step, from what it says now; give what it says then.

    One that is damaged is begun anew. Makes the folder of a job that never succeeded. Raises
    StoreError where it cannot be written.
    """
    with translated(StoreError, f"{root.name}: writing {root / 'status.json'}"), _locked(root):
        try:
            old = read_status(root)
        except DamagedError:
            old = Status()
        new = change(old)
        if new != old:
            folders.write_file(root / "status.json", encode_record(_STATUS, new))
    return new


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    folders.make_folder(root)
    with folders.locked(root / ".status.lock", make=True, patience_seconds=_PATIENCE):
        yield


def succeeded(status: Status, revision: Revision, hook_error: str, suspicious: str) -> Status:
    """After a backup that was published."""
    return replace(
        status,
        errors=0,
        error="",
        seconds=round(revision.seconds, 3),
        wholes=status.wholes + sum(bool(disk.whole) for disk in revision.disks.values()),
        hooks_failed=status.hooks_failed + 1 if hook_error else 0,
        hook_error=hook_error[:_LONGEST_TEXT],
        suspicious=suspicious[:_LONGEST_TEXT],
    )


def failed(status: Status, error: str, now: datetime) -> Status:
    """After a backup that was not."""
    return replace(
        status,
        errors=status.errors + 1,
        failures=status.failures + 1,
        error=error[:_LONGEST_TEXT],
        failed=now.replace(microsecond=0),
    )


def lied(status: Status, now: datetime) -> Status:
    """After the source of a disk called blocks unchanged that had changed."""
    return replace(status, lies=status.lies + 1, lied=now)


def noted(status: Status, revision: Revision) -> Status:
    """After `revision` was written anew: whether it is distrusted, and when it was verified."""
    others = [each for each in status.distrusted if each != revision.id]
    distrusted = [revision.id] if revision.trust is Trust.DISTRUSTED else []
    times = [each for each in (status.verified, revision.verified) if each]
    return replace(
        status, distrusted=tuple(sorted(others + distrusted)), verified=max(times, default=None)
    )
