"""A restore that its repository remembers: when, of what, where to, who asked, and how it ended."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from backy.image.progress import Watcher, warned
from backy.model.revision import Revision, id_for, whole_seconds
from backy.operations.restore import RestoredDisk, RestoreOptions, RestoreResult, restore_job
from backy.operations.site import Site
from backy.repository.restores import DONE, RestoreRecord, keep_restore
from backy.system.process import asker
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
    disks: list[RestoredDisk] = []  # that are complete, also where the next one fails

    def keep(record: RestoreRecord) -> None:
        with warned(watcher, "this restore is not in backy history"):
            keep_restore(repository, record)
            kept.append(record)

    def begin(revision: Revision, words: Mapping[str, str]) -> None:
        now = whole_seconds(datetime.now(UTC))
        targets = " ".join([options.typed, *(f"{disk}={word}" for disk, word in words.items())])
        name = id_for(now, secrets.token_hex(2))
        keep(RestoreRecord(name, now, revision.id, targets.strip(), asker()))

    def hear(disk: RestoredDisk) -> None:
        disks.append(disk)
        on_disk(disk)

    def end(result: str) -> None:
        seconds = round(time.monotonic() - began, 3)
        data, written = sum(disk.read for disk in disks), sum(disk.written for disk in disks)
        for record in kept[:]:
            keep(replace(record, data=data, written=written, seconds=seconds, result=result))

    try:
        done = restore_job(
            site, job, target, options, watcher=watcher, on_start=begin, on_disk=hear
        )
    except BaseException as error:
        end(getattr(error, "message", repr(error)))
        raise
    end(f"{counted(done.lost, 'range')} lost" if done.lost else DONE)
    return done
