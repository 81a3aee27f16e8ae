"""backy scrub: read a share of the stored bytes again."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, all_jobs, app
from backy.cli.damage import damage_shown, ending, raise_damaged
from backy.cli.output import answer, report
from backy.cli.progress import meter
from backy.errors import BackyError, CancelledError
from backy.model.messages import ScrubFinished
from backy.system import priority
from backy.units import format_duration, format_size, parse_duration

if TYPE_CHECKING:
    from backy.operations.scrub import Coverage, ScrubResult


_JOBS = "Only these jobs."
Jobs = Annotated[list[str] | None, Argument(parser=values.job, metavar="JOB", help=_JOBS)]
_BOX = "Start no further slice after this time, such as 30m."
Box = Annotated[int | None, Option(parser=values.duration, metavar="DURATION", help=_BOX)]
_WITHIN = "The time within which each byte is to be read."
Within = Annotated[str, Option(parser=values.span, metavar="DURATION", help=_WITHIN)]
_RATE = "Read at most this much in a second."
Rate = Annotated[int | None, Option(parser=values.rate, metavar="SIZE", help=_RATE)]


@app.command(epilog="Example: backy scrub --max-duration 30m --rate 100MiB")
def scrub(
    context: Context,
    names: Jobs = None,
    max_duration: Box = None,
    within: Within = "30d",
    rate: Rate = None,
    as_json: AsJson = False,
) -> None:
    """Read a share of the stored bytes again, and heal damage.

    New blocks come first, then those that were read longest ago; those that were read in the last
    half of the promised time can wait. The next run continues where this one ends. All other
    processes have priority.
    """
    from backy.operations.scrub import Limits, longest_ago, scrub_job

    until = time.monotonic() + max_duration if max_duration is not None else None
    limits = Limits(until, rate)
    priority.be_idle()
    span = timedelta(seconds=parse_duration(within))
    failed: list[BackyError] = []
    for job in longest_ago(context.obj.base, names or all_jobs(context)):
        try:
            with meter(job, as_json=as_json) as shown:
                tell = damage_shown(job, shown)
                result = scrub_job(context.obj, job, span, limits, watcher=shown, on_damage=tell)
            _say(job, result, within, shown.seconds, as_json=as_json)
        except CancelledError:
            raise
        except BackyError as error:
            failed.append(error)
    for other in failed[1:]:
        report(other, as_json=as_json)
    for first in failed:
        raise first


def _say(job: str, result: ScrubResult, within: str, seconds: float, *, as_json: bool) -> None:
    covered = result.coverage
    finished = ScrubFinished(
        event="finished",
        job=job,
        read=result.read,
        damaged=result.lost,
        healed=result.healed,
        pages=result.pages,
        total=covered.total,
        within=covered.read,
        oldest_seconds=covered.oldest.total_seconds() if covered.oldest is not None else None,
        seconds=seconds,
    )
    read = f"read {format_size(result.read)}{ending(result, result.read, seconds)}"
    answer(as_json, finished, f"{job}: {_covered(covered, within)}; {read}")
    raise_damaged(job, result, result.revisions)


def _covered(covered: Coverage, within: str) -> str:
    if covered.oldest is None:
        return "nothing is stored"
    return (
        f"{100 * covered.share:.1f} % of {format_size(covered.total)} read within {within}, "
        f"oldest {format_duration(covered.oldest.total_seconds())}"
    )
