"""What a backup changes in status.json: pure functions for `status.update`."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from backy.model.revision import Revision
from backy.repository.status import Status

_LONGEST_TEXT = 500  # characters of a message that is kept


def succeeded(status: Status, revision: Revision, suspicious: str) -> Status:
    """The status after a backup was published; `suspicious` says why it may be wrong."""
    return replace(
        status,
        errors=0,
        error="",
        seconds=round(revision.seconds, 3),
        full_reads=status.full_reads + sum(bool(disk.whole) for disk in revision.disks.values()),
        suspicious=suspicious[:_LONGEST_TEXT],
    )


def hooks_ended(status: Status, error: str) -> Status:
    """The status after all hooks of a published backup; `error` is "" if none of them failed."""
    return replace(
        status,
        hooks_failed=status.hooks_failed + 1 if error else 0,
        hook_error=error[:_LONGEST_TEXT],
    )


def failed(status: Status, error: str, now: datetime) -> Status:
    """The status after a backup that failed."""
    return replace(
        status,
        errors=status.errors + 1,
        failures=status.failures + 1,
        error=error[:_LONGEST_TEXT],
        failed=now.replace(microsecond=0),
    )


def tracking_failed(status: Status, now: datetime) -> Status:
    """The status after the source of a disk reported changed blocks as unchanged."""
    return replace(status, tracking_errors=status.tracking_errors + 1, tracking_error_at=now)
