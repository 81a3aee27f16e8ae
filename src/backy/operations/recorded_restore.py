"""A restore that its repository remembers: when, of what, where to, who asked, and how it ended."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from backy.errors import StoreError
from backy.image.progress import Watcher
from backy.model.revision import Revision, id_for, whole_seconds
from backy.operations.restore import RestoredDisk, RestoreOptions, RestoreResult, restore_job
from backy.operations.site import Site
from backy.repository.restores import DONE, RestoreRecord, keep_restore
from backy.system.asker import asker
from backy.units import counted


def restore_recorded(
    site: Site,
    job: str,
    target: str | Mapping[str, str],
    options: RestoreOptions,
    *,
    watcher: Watcher,
    on_disk: Callable[[RestoredDisk], None],
) -> RestoreResult:
    """As `restore_job`, which see. One that passed the checks is recorded when it starts and ends.

    Where the record cannot be written, the watcher is warned, and the restore goes on.
    """
    began = time.monotonic()
    repository = site.repository(job)
    kept: list[RestoreRecord] = []

    def keep(record: RestoreRecord) -> None:
        try:
            keep_restore(repository, record)
            kept.append(record)
        except StoreError as error:
            watcher.warn(f"this restore is not in backy history: {error.message}")

    def begin(revision: Revision, words: Mapping[str, str]) -> None:
        now = whole_seconds(datetime.now(UTC))
        targets = " ".join(f"{disk}={word}" for disk, word in words.items())
        name = id_for(now, secrets.token_hex(2))
        keep(RestoreRecord(name, now, revision.id, targets, asker()))

    def end(result: str, data: int = 0, written: int = 0) -> None:
        seconds = round(time.monotonic() - began, 3)
        for record in kept[:]:
            keep(replace(record, data=data, written=written, seconds=seconds, result=result))

    try:
        done = restore_job(
            site, job, target, options, watcher=watcher, on_start=begin, on_disk=on_disk
        )
    except BaseException as error:
        end(getattr(error, "message", repr(error)))
        raise
    data, written = (
        sum(getattr(disk, name) for disk in done.disks) for name in ("read", "written")
    )
    end(f"{counted(done.lost, 'range')} lost" if done.lost else DONE, data, written)
    return done
