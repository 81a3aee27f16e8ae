"""Expire: drop tags, and move revisions to the trash, as the retention rules say."""

import os
from datetime import UTC, datetime

from backy.config.settings import Schedule
from backy.errors import ConfigError, StoreError, translated
from backy.model.revision import Revision
from backy.operations.site import Site
from backy.policy.retention import Expiry, expiries
from backy.repository import trash
from backy.repository.repository import Repository
from backy.repository.tags import retag
from backy.units import KiB, MiB

_FILES = 64  # inodes that a revision needs beside its chunks and pages, at most
_PAGE = 16 * KiB  # the space of a page


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

    Revisions go to the trash as one batch, so one `undo` brings them back. If there is no space for
    another revision, they are deleted at once. Raises StoreError.
    """
    history = repository.history().revisions
    expired = expiries(history, schedule, now, minimum)
    if is_dry:
        return expired
    if removed := [expiry.revision for expiry in expired if expiry.is_removed]:
        if _is_full(repository, history[-1]):
            trash.purge(repository, only=removed)
        else:
            trash.remove(repository, removed)
    for expiry in expired:  # last, because it needs space
        if not expiry.is_removed:
            retag(repository, [expiry.revision], add=set(), drop=set(expiry.drop))
    return expired


def _is_full(repository: Repository, newest: Revision) -> bool:
    """Whether another revision like the newest one would not fit."""
    stored = sum(disk.stored + disk.pages for disk in newest.disks.values())
    pages = sum(disk.pages for disk in newest.disks.values()) // _PAGE
    files = stored // repository.settings.block_size + pages + _FILES
    with translated(StoreError, f"{repository.name}: asking for the free space"):
        now = os.statvfs(repository.folder)
    is_short_of_files = now.f_files > 0 and now.f_favail < files
    return now.f_bavail * now.f_frsize < stored + MiB or is_short_of_files
