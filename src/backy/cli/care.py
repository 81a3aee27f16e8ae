"""verify and scrub: the commands that read what is stored, and heal it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from backy.cli.app import AsJson, Context, Job, Spec, app, each_job, open_repository
from backy.cli.output import answer, print_json, total, warn
from backy.cli.progress import Meter, meter
from backy.errors import ConfigError, DamagedError, NotFoundError
from backy.model.selector import select
from backy.repository import status
from backy.repository.repository import Repository, jobs
from backy.system import process
from backy.units import format_duration, format_rate, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from backy.operations.heal import Damage
    from backy.operations.scrub import Coverage, Limits

_SLOWEST = 1 << 20  # bytes a second
Jobs = Annotated[list[str] | None, Argument(metavar="JOB", help="Only these jobs.")]
Box = Annotated[str | None, Option(metavar="DURATION", help="Begin nothing more after it: 30m.")]
Within = Annotated[str, Option(metavar="DURATION", help="How often each byte is to be read.")]
Rate = Annotated[str | None, Option(metavar="SIZE", help="Read no more than this in a second.")]


@app.command(epilog="Example: backy verify vm1 -r latest")
def verify(context: Context, job: Job, spec: Spec = "all", as_json: AsJson = False) -> None:
    """Read every stored byte again and compare it with its hash.

    What is damaged comes back from another revision or the source, where they still have it.
    What does not is named, range by range, with every revision that has it, and the exit code
    is 6. A revision is verified or distrusted afterwards.
    """
    from backy.operations.verify import verify as run

    repository = open_repository(context, job)
    revisions = sorted(select(spec, repository.history()), key=lambda revision: revision.id)
    if not revisions and not repository.damaged:
        raise NotFoundError(f"{job}: {spec!r} names no revision", f"backy list {job}")
    with meter(job, as_json=as_json) as shown:
        found = _show(repository, run(repository, revisions, watcher=shown), shown)
    lost = _lost(found) + (len(repository.damaged) if spec == "all" else 0)
    size = sum(total(each, "size") for each in revisions)
    if as_json:
        done = {"job": job, "revisions": [revision.id for revision in revisions]}
        sums = {"damaged": lost, "healed": len(found) - _lost(found), "size": size}
        print_json({"event": "finished"} | done | sums | {"seconds": shown.seconds})
    _raise_damaged(job, lost, len(revisions))
    if not as_json:
        verified = f"{len(revisions)} revisions, {format_size(size)} verified"
        typer.echo(f"{job}: {verified}{_ending(found, size, shown.seconds)}")


def _show(repository: Repository, damages: Iterable[Damage], shown: Meter) -> list[Damage]:
    """Name what cannot be read, and each damaged range as it is found."""
    for error in repository.damaged:
        shown.warn(error.message)
    found = []
    for damage in damages:
        found.append(damage)
        end = damage.start + damage.length
        where = f"{damage.revision} {damage.disk} bytes {damage.start} to {end}"
        what = f"healed from {damage.healed}" if damage.healed else "damaged"
        event = {"event": "damage", "job": repository.name, **asdict(damage)}
        shown.warn(f"{what}: {where}: {damage.reason}", event)
    return found


def _lost(found: list[Damage]) -> int:
    return sum(not each.healed for each in found)


def _ending(found: list[Damage], read: int, seconds: float) -> str:
    healed = len(found) - _lost(found)
    note = f", {healed} damaged ranges healed" if healed else ""
    return f"{note}, {seconds:.1f} s, {format_rate(read, seconds)}"


def _raise_damaged(job: str, count: int, revisions: int) -> None:
    if count:
        raise DamagedError(
            f"{job}: {count} damaged ranges in {revisions} revisions",
            f"Run backy backup {job}: what the source still has is stored anew. "
            "backy reports lists what was kept of it.",
        )


@app.command(epilog="Example: backy scrub --max-duration 30m --rate 100MiB")
def scrub(
    context: Context,
    names: Jobs = None,
    max_duration: Box = None,
    within: Within = "30d",
    rate: Rate = None,
    as_json: AsJson = False,
) -> None:
    """Read what is stored, a share at each run, and heal what is damaged.

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
    _, failed = each_job(context, wanted, lambda each: _scrub(each, within, limits, as_json))
    for _, error in failed[1:]:
        warn(f"backy: {error.message}")
    for _, error in failed:
        raise error


def _scrub(repository: Repository, within: str, limits: Limits, as_json: bool) -> None:
    from backy.operations.scrub import Scrub

    job = repository.name
    with meter(job, as_json=as_json) as shown:
        run = Scrub(repository, timedelta(seconds=parse_duration(within)))
        found = _show(repository, run.run(limits, watcher=shown), shown)
    covered = run.coverage()
    _record(repository, covered)
    lost = _lost(found) + len(repository.damaged)
    sums = {"read": run.bytes, "damaged": lost, "healed": len(found) - _lost(found)}
    age = covered.oldest.total_seconds() if covered.oldest is not None else None
    promised = {"total": covered.total, "within": covered.read, "oldest_seconds": age}
    record = {"event": "finished", "job": job, **sums, **promised, "seconds": shown.seconds}
    read = f"read {format_size(run.bytes)}{_ending(found, run.bytes, shown.seconds)}"
    answer(as_json, record, f"{job}: {_covered(covered, within)}; {read}")
    _raise_damaged(job, lost, len(repository.history()))


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
