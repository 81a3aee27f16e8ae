"""Look at sources, to tell whether a backup would find its disks now."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from backy.config.settings import Config
from backy.errors import BackyError
from backy.sources import open_source


@dataclass(frozen=True, slots=True)
class SourceLook:
    """What a look at the source of a job found.

    `disks` are the disks by name; none if only a snapshot can tell, as with a program. `error` says
    why a backup would fail; "" if it would not.
    """

    job: str
    disks: Collection[str] = ()
    error: str = ""


def look_at_sources(config: Config) -> Iterator[SourceLook]:
    """Ask the source of each job for its disks, one after the other. Changes nothing."""
    for job, settings in config.jobs.items():
        try:
            yield SourceLook(job, sorted(open_source(settings.source).look()))
        except BackyError as error:
            yield SourceLook(job, error=error.message)
