"""verify and scrub: the commands that read what is stored, and heal it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from backy import process, status
from backy.cli.app import AsJson, Context, Job, Spec, app, open_repository
from backy.cli.output import print_json, printable
from backy.cli.progress import Meter, meter
from backy.errors import BackyError, CancelledError, ConfigError, DamagedError, NotFoundError
from backy.repository import Repository, jobs
from backy.units import format_duration, format_rate, format_size, parse_duration, parse_size
from backy.words import select

if TYPE_CHECKING:
    from backy.heal import Damage
    from backy.scrub import Coverage, Limits

_SLOWEST = 1 << 20  # bytes a second


@app.command(epilog="Example: backy verify vm1 -r latest")
def verify(
    context: Context,
    job: Job,
    spec: Spec = "all",
    as_json: AsJson = False,
) -> None:
    """Read every stored byte again and compare it with its hash.

    What is damaged comes back from another revision or the source, where they still have it.
    What does not is named, range by range, with every revision that has it, and the exit code
    is 6. A revision is verified or distrusted afterwards.
    """
    from backy.verify import verify as run

    repository = open_repository(context, job)
    revisions = sorted(select(spec, repository.history()), key=lambda revision: revision.id)
    if not revisions and not repository.damaged:
        raise NotFoundError(f"{job}: {spec!r} names no revision", f"backy list {job}")
    unreadable = len(repository.damaged) if spec == "all" else 0
    with meter(job, as_json=as_json) as shown:
        _warn_of_unreadable(repository, shown)
        found = _show(job, run(repository, revisions, watcher=shown), shown, as_json=as_json)
    lost = sum(not each.healed for each in found)
    size = sum(disk.size for each in revisions for disk in each.disks.values())
    if as_json:
        done = {"job": job, "revisions": [revision.id for revision in revisions]}
        sums = {"damaged": lost + unreadable, "healed": len(found) - lost, "size": size}
        print_json({"event": "finished"} | done | sums | {"seconds": shown.seconds})
    _raise_damaged(job, lost + unreadable, len(revisions))
    if not as_json:
        typer.echo(
            f"{job}: {len(revisions)} revisions, {format_size(size)} verified"
            f"{_healed_note(found)}, {shown.seconds:.1f} s, {format_rate(size, shown.seconds)}"
        )


def _warn_of_unreadable(repository: Repository, shown: Meter) -> None:
    for error in repository.damaged:
        shown.warn(error.message)


def _show(job: str, damages: Iterable[Damage], shown: Meter, *, as_json: bool) -> list[Damage]:
    """Name each damaged range as it is found."""
    found = []
    for damage in damages:
        found.append(damage)
        if as_json:
            print_json({"event": "damage", "job": job, **asdict(damage)})
            continue
        end = damage.start + damage.length
        where = f"{damage.revision} {damage.disk} bytes {damage.start} to {end}"
        what = f"healed from {damage.healed}" if damage.healed else "damaged"
        shown.warn(f"{what}: {where}: {damage.reason}")
    return found


def _healed_note(found: list[Damage]) -> str:
    healed = sum(bool(each.healed) for each in found)
    return f", {healed} damaged ranges healed" if healed else ""


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
    names: Annotated[
        list[str] | None, typer.Argument(metavar="JOB", help="Only these jobs.")
    ] = None,
    max_duration: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Begin nothing more after it: 30m.")
    ] = None,
    within: Annotated[
        str, typer.Option(metavar="DURATION", help="How often each byte is to be read.")
    ] = "30d",
    rate: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Read no more than this in a second.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read what is stored, a share at each run, and heal what is damaged.

    New blocks come first, then those read longest ago; what was read in the last half of the
    promised time can wait. The next run goes on where this one ends. All other processes go first.
    """
    from backy.scrub import Limits, longest_ago

    if not parse_duration(within):
        raise ConfigError(f"nothing can be read within {within}", "Use --within 30d.")
    bytes_a_second = parse_size(rate) if rate else None
    if bytes_a_second is not None and bytes_a_second < _SLOWEST:
        raise ConfigError(f"a rate of {rate} is too low", "Use 1MiB or more.")
    until = time.monotonic() + parse_duration(max_duration) if max_duration else None
    limits = Limits(until, bytes_a_second)
    process.be_idle()
    failed: list[BackyError] = []
    for job in longest_ago(context.obj.base, names or jobs(context.obj.base)):
        try:
            _scrub(open_repository(context, job), within, limits, as_json=as_json)
        except CancelledError:
            raise
        except BackyError as error:
            failed.append(error)
    for each in failed[1:]:
        typer.echo(f"backy: {printable(each.message)}", err=True)
    if failed:
        raise failed[0]


def _scrub(repository: Repository, within: str, limits: Limits, *, as_json: bool) -> None:
    from backy.scrub import Scrub

    job = repository.name
    with meter(job, as_json=as_json) as shown:
        run = Scrub(repository, timedelta(seconds=parse_duration(within)))
        _warn_of_unreadable(repository, shown)
        found = _show(job, run.run(limits, watcher=shown), shown, as_json=as_json)
    covered = run.coverage()
    _record(repository, covered)
    lost = sum(not each.healed for each in found) + len(repository.damaged)
    if as_json:
        age = covered.oldest.total_seconds() if covered.oldest is not None else None
        promised = {"total": covered.total, "within": covered.read, "oldest_seconds": age}
        sums = {
            "read": run.bytes,
            "damaged": lost,
            "healed": sum(bool(each.healed) for each in found),
        }
        print_json({"event": "finished", "job": job, **sums, **promised, "seconds": shown.seconds})
    else:
        typer.echo(
            f"{job}: {_covered(covered, within)}; read {format_size(run.bytes)}"
            f"{_healed_note(found)}, {shown.seconds:.1f} s, {format_rate(run.bytes, shown.seconds)}"
        )
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
