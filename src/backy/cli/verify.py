"""backy verify and scrub: read stored bytes again, and report and heal damage."""

import time
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Annotated, cast

from typer import Option

from backy.cli import values
from backy.cli.app import AsJson, Context, Job, Jobs, Rate, Spec, all_jobs, app, each_job
from backy.cli.output import answer, format_rate, report
from backy.cli.progress import Meter, meter
from backy.errors import DamagedError
from backy.model.messages import DamageEvent, ScrubFinished, VerifyFinished
from backy.operations.heal import Damage
from backy.operations.scrub import Coverage, Limits, ScrubResult, longest_ago, scrub_job
from backy.operations.verify import Findings, verify_job
from backy.system.process import prioritize
from backy.units import counted, format_duration, format_size, parse_duration

_BOX = "Start no further slice after this time, such as 30m."
Box = Annotated[int | None, Option(parser=values.duration, metavar="DURATION", help=_BOX)]
_WITHIN = "The time within which each byte is to be read."
Within = Annotated[str, Option(parser=values.span, metavar="DURATION", help=_WITHIN)]


@app.command(epilog="Example: backy verify vm1 -r latest")
def verify(context: Context, job: Job, spec: Spec = "all", as_json: AsJson = False) -> None:
    """Read every stored byte again and compare it with its hash.

    A damaged block is healed from another revision or from the source, if it still has the right
    hash there. If not, each range is named with every revision that has it, and the exit code is 6.
    Afterwards each revision is verified or distrusted.
    """
    with meter(job, as_json=as_json) as shown:
        tell = partial(_show_damage, job, shown)
        result = verify_job(context.obj, job, spec, watcher=shown, on_damage=tell)
    finished = VerifyFinished(
        event="finished",
        job=job,
        revisions=[revision.id for revision in result.revisions],
        damaged=result.lost,
        healed=result.healed,
        pages=result.pages,
        size=result.size,
        seconds=shown.seconds,
    )
    if as_json or not result.lost:
        count = counted(len(result.revisions), "revision")
        verified = f"{count}, {format_size(result.size)} verified"
        rest = _ending(result, result.size, shown.seconds)
        answer(as_json, finished, f"{job}: {verified}{rest}")
    _raise_damaged(job, result, len(result.revisions))


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
    limits = Limits(time.monotonic() + max_duration if max_duration is not None else None, rate)
    prioritize(19, "idle")
    span = timedelta(seconds=parse_duration(within))

    def scrub_one(job: str) -> None:
        with meter(job, as_json=as_json) as shown:
            tell = partial(_show_damage, job, shown)
            result = scrub_job(context.obj, job, span, limits, watcher=shown, on_damage=tell)
        _say(job, result, within, shown.seconds, as_json=as_json)

    failed = each_job(longest_ago(context.obj.base, names or all_jobs(context)), scrub_one)
    for _, other in failed[1:]:
        report(other, as_json=as_json)
    for _, first in failed:
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
    read = f"read {format_size(result.read)}{_ending(result, result.read, seconds)}"
    answer(as_json, finished, f"{job}: {_covered(covered, within)}; {read}")
    _raise_damaged(job, result, result.revisions)


def _covered(covered: Coverage, within: str) -> str:
    if covered.oldest is None:
        return "nothing is stored"
    return (
        f"{100 * covered.share:.1f} % of {format_size(covered.total)} read within {within}, "
        f"oldest {format_duration(covered.oldest.total_seconds())}"
    )


def _show_damage(job: str, shown: Meter, damage: Damage) -> None:
    """Report a damaged range to the user at once."""
    end = damage.start + damage.length
    where = f"{damage.revision} {damage.disk} bytes {damage.start} to {end}"
    what = f"healed from {damage.healed}" if damage.healed else "damaged"
    event = {"event": "damage", "job": job} | asdict(damage)
    shown.warn(f"{what}: {where}: {damage.reason}", cast("DamageEvent", event))


def _ending(findings: Findings, read: int, seconds: float) -> str:
    """The end of the last line: pages that were read, healed ranges, the time and the rate."""
    healed = counted(findings.healed, "damaged range")
    note = f", {healed} healed" if findings.healed else ""
    pages = f", {format_size(findings.pages)} of indexes and pages" if findings.pages else ""
    return f"{pages}{note}, {seconds:.1f} s, {format_rate(read, seconds)}"


def _raise_damaged(job: str, findings: Findings, revisions: int) -> None:
    """Raise DamagedError if ranges stay damaged."""
    if findings.lost:
        hints = [
            *findings.unasked,
            f"Run backy backup {job}: it stores again the blocks that the source still has",
            f"backy reports {job} lists the damage.",
        ]
        ranges = counted(findings.lost, "damaged range")
        message = f"{job}: {ranges} in {counted(revisions, 'revision')}"
        raise DamagedError(message, ". ".join(hints))
