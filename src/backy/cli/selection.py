"""Which jobs a command shows: those that are named, and those that somebody has to look after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from backy.cli import values
from backy.operations.site import Site

if TYPE_CHECKING:
    from backy.model.answers import JobOverview

_NAMES = "Only these jobs."
Names = Annotated[list[str] | None, Argument(parser=values.job, metavar="JOB", help=_NAMES)]
_FAILED = "Only jobs that are late, failed, damaged or unreadable."
Failed = Annotated[bool, Option("--failed", help=_FAILED)]


def overviews(site: Site) -> Iterator[JobOverview]:
    """Each configured job, or each repository if there is no configuration, as the disk has it."""
    from backy.monitoring.overview import overview
    from backy.repository.listing import jobs
    from backy.repository.summary import summarize

    config = site.loaded.config if site.path else None
    now = datetime.now(UTC)
    for job in config.jobs if config else jobs(site.base):
        schedule = config.intervals(job) if config else None
        yield overview(summarize(site.base, job, now), schedule, now)


def chosen(site: Site, names: Sequence[str] | None, *, failed: bool) -> Callable[[str], bool]:
    """Whether a job is to be shown. Raises NotFoundError if one of `names` does not exist."""
    from backy.monitoring.overview import is_bad

    for name in names or []:
        site.require(name)
    bad = {each["job"] for each in overviews(site) if is_bad(each)} if failed else set()
    return lambda job: (not names or job in names) and (not failed or job in bad)
