"""Expire: drop tags, and move revisions to the trash, as the retention rules say."""

from __future__ import annotations

from datetime import UTC, datetime

from backy.config.settings import Schedule
from backy.errors import ConfigError
from backy.operations.site import Site
from backy.policy.retention import Expiry, expiries
from backy.repository import trash
from backy.repository.repository import Repository


def expire_job(site: Site, job: str, *, is_dry: bool = False) -> list[Expiry]:
    """Expire a job by its schedule; return what was done, or with `is_dry` what would be done.

    Raises NotFoundError if there is no such job, ConfigError if it is not configured.
    """
    site.require(job)
    config = site.config_of(job)
    if not config:
        raise ConfigError(f"{job}: it is not configured, so nothing expires", "backy jobs")
    repository, minimum = site.repository(job), config.jobs[job].minimum
    return expire(repository, config.intervals(job), datetime.now(UTC), minimum, is_dry=is_dry)


def expire(
    repository: Repository, schedule: Schedule, now: datetime, minimum: int, *, is_dry: bool = False
) -> list[Expiry]:
    """Apply the retention rules; return what was done, or with `is_dry` what would be done.

    Revisions go to the trash as one batch, so one `undo` brings them back. Raises StoreError.
    """
    expired = expiries(repository.history().revisions, schedule, now, minimum)
    if is_dry:
        return expired
    for expiry in expired:
        if not expiry.is_removed:
            repository.retag([expiry.revision], add=set(), drop=set(expiry.drop))
    if removed := [expiry.revision for expiry in expired if expiry.is_removed]:
        trash.remove(repository, removed)
    return expired
