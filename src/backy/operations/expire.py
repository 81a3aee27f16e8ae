"""Expire: drop the tags, and remove to the trash the revisions, that the schedule lets go."""

from __future__ import annotations

from datetime import UTC, datetime

from backy.config.settings import Schedule
from backy.errors import ConfigError
from backy.operations.site import Site
from backy.policy.retention import Expiry, expiries
from backy.repository import trash
from backy.repository.repository import Repository


def expire_job(site: Site, job: str, *, is_dry: bool = False) -> list[Expiry]:
    """Expire a job of a site by its schedule; `is_dry`: only say what would go.

    Raises NotFoundError if there is no such job, ConfigError if it is not configured.
    """
    site.require(job)
    config = site.config_of(job)
    if not config:
        raise ConfigError(f"{job}: it is not configured, so nothing of it expires", "backy jobs")
    repository, minimum = site.repository(job), config.jobs[job].minimum
    return expire(repository, config.intervals(job), datetime.now(UTC), minimum, is_dry=is_dry)


def expire(
    repository: Repository, schedule: Schedule, now: datetime, minimum: int, *, is_dry: bool = False
) -> list[Expiry]:
    """Do what retention says, and give it; `is_dry`: only give it.

    Revisions go to the trash as one batch, so one `undo` brings them back. Raises StoreError.
    """
    found = expiries(repository.history().revisions, schedule, now, minimum)
    if is_dry:
        return found
    for each in found:
        if not each.is_removed:
            repository.retag([each.revision], add=set(), drop=set(each.drop))
    if removed := [each.revision for each in found if each.is_removed]:
        trash.remove(repository, removed)
    return found
