"""backy scrub: read what is stored, a share at each run."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from backy.cli.app import AsJson, Context, app, each_job
from backy.cli.damage import ending, lost, raise_damaged, show_damage
from backy.cli.output import answer, warn
from backy.cli.progress import meter
from backy.errors import ConfigError
from backy.operations.site import Site
from backy.repository import status
from backy.repository.repository import Repository, jobs
from backy.system import process
from backy.units import format_duration, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from backy.operations.scrub import Coverage, Limits


_SLOWEST = 1 << 20  # bytes a second
Jobs = Annotated[list[str] | None, Argument(metavar="JOB", help="Only these jobs.")]
Box = Annotated[str | None, Option(metavar="DURATION", help="Begin nothing more after it: 30m.")]
Within = Annotated[str, Option(metavar="DURATION", help="How often each byte is to be read.")]
Rate = Annotated[str | None, Option(metavar="SIZE", help="Read no more than this in a second.")]


@app.command(epilog="Example: backy scrub --max-duration 30m --rate 100MiB")
def scrub(
    context: Context,
    names: Jobs = None,
    max_duration: Box = None,
    within: Within = "30d",
    rate: Rate = None,
    as_json: AsJson = False,
) -> None:
    """Read what is stored, a share at each run, and heal damage.

    New blocks come first, then those read longest ago; what was read in the last half of the
    promised time can wait. The next run goes on where this one ends. All other processes go first.
    """
    from backy.operations.scrub import Limits, longest_ago

    if not parse_duration(within):
        raise ConfigError(f"nothing can be read within {within}", "Use --within 30d.")
    bytes_a_second = parse_size(rate) if rate else None
    if bytes_a_second is not None and bytes_a_second < _SLOWEST:
        raise ConfigError(f"a rate of {rate} is too low", "Use 1MiB or more.")
    until = time.monotonic() + parse_duration(max_duration) if max_duration else None
    limits = Limits(until, bytes_a_second)
    process.be_idle()
    wanted = longest_ago(context.obj.base, names or jobs(context.obj.base))
    _, failed = each_job(
        context, wanted, lambda each: _scrub(context.obj, each, within, limits, as_json)
    )
    for _, error in failed[1:]:
        warn(f"backy: {error.message}")
    for _, error in failed:
        raise error


def _scrub(site: Site, repository: Repository, within: str, limits: Limits, as_json: bool) -> None:
    from backy.operations.scrub import Scrub

    job = repository.name
    with meter(job, as_json=as_json) as shown:
        run = Scrub(repository, timedelta(seconds=parse_duration(within)))
        origins = site.origins(repository)
        damages = run.run(limits, origins=origins, watcher=shown)
        found = show_damage(job, run.history, damages, shown)
    covered = run.coverage()
    _record(repository, covered)
    damaged = lost(found) + len(run.history.unreadable)
    sums = {"read": run.bytes, "damaged": damaged, "healed": len(found) - lost(found)}
    age = covered.oldest.total_seconds() if covered.oldest is not None else None
    promised = {"total": covered.total, "within": covered.read, "oldest_seconds": age}
    record = {"event": "finished", "job": job, **sums, **promised, "seconds": shown.seconds}
    read = f"read {format_size(run.bytes)}{ending(found, run.bytes, shown.seconds)}"
    answer(as_json, record, f"{job}: {_covered(covered, within)}; {read}")
    raise_damaged(job, damaged, len(run.history.revisions), origins)


def _record(repository: Repository, covered: Coverage) -> None:
    """For `backy check`, which cannot read what each scrub of ten thousand jobs remembers."""
    now = datetime.now(UTC).replace(microsecond=0)
    oldest = (now - covered.oldest).replace(microsecond=0) if covered.oldest is not None else None
    scrubbed = status.Scrubbed(now, covered.total, covered.read, oldest)
    status.update(repository.root, lambda old: replace(old, scrubbed=scrubbed))


def _covered(covered: Coverage, within: str) -> str:
    if covered.oldest is None:
        return "nothing is stored"
    return (
        f"{100 * covered.share:.1f} % of {format_size(covered.total)} read within {within}, "
        f"oldest {format_duration(covered.oldest.total_seconds())}"
    )
