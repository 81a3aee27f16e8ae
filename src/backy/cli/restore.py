"""backy restore and history: restore a disk, or all disks; and what was restored before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, Job, Rate, Spec, app
from backy.cli.output import answer, format_rate, print_json, print_lines, table, warn
from backy.cli.progress import meter
from backy.errors import DamagedError, UsageError
from backy.model.answers import HistoryAnswer, KeptRestore
from backy.model.messages import RestoreFinished
from backy.targets import STREAM
from backy.units import counted, format_duration, format_size

if TYPE_CHECKING:
    from backy.operations.restore import RestoredDisk, RestoreResult
    from backy.repository.restores import RestoreRecord


_TARGET = "A file, device or folder, rbd:POOL/IMAGE, qcow2:PATH, an NBD URI, libvirt:DOMAIN, or -."
Target = Annotated[str | None, Argument(parser=values.target, metavar="TARGET", help=_TARGET)]
_DISKS = "Which disk; or a target for each: --disk vda=TARGET --disk vdb=TARGET."
Disks = Annotated[list[str] | None, Option("--disk", metavar="NAME[=TARGET]", help=_DISKS)]
OverSource = Annotated[bool, Option("--over-source", help="Allow the source itself as the target.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Allow a file that exists.")]
_WHOLE = "Write all data, also what the target has already."
Whole = Annotated[bool, Option("--whole", help=_WHOLE)]
_VERIFY = "Then read the target from its medium, and compare it with the index."
Verify = Annotated[bool, Option("--verify", help=_VERIFY)]
_DRY = "Only say what would be written where; reads what is there, unless --whole."
DryRun = Annotated[bool, Option("--dry-run", help=_DRY)]
_KEEP_GOING = "Write zeroes for lost ranges, and list them."
KeepGoing = Annotated[bool, Option("--keep-going", help=_KEEP_GOING)]


@app.command(epilog="Example: backy restore vm1 /images/vm1-restored.img -r 2026-11-23")
def restore(
    context: Context,
    job: Job,
    target: Target = None,
    spec: Spec = "latest",
    disks: Disks = None,
    overwrite: Overwrite = False,
    over_source: OverSource = False,
    keep_going: KeepGoing = False,
    whole: Whole = False,
    verify: Verify = False,
    rate: Rate = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Restore one disk, or all disks of a revision.

    A file, a block device or standard output gets one disk; a folder gets all disks, and the files
    that were saved beside them. The hash of every block is checked. Zeroes become holes. A damaged
    block is taken from another revision or from the source, if it still has the right hash there.
    Where the target has the right bytes already, nothing is read from the repository, and nothing
    written. So a restore that was interrupted continues if it is run again.
    """
    from backy.operations.differential import Differential, count_differences, verify_target
    from backy.operations.recorded_restore import restore_recorded
    from backy.operations.restore import RestoreOptions, restore_job

    wanted, disk = _wanted(target or "", disks or [])
    words = [wanted] if isinstance(wanted, str) else list(wanted.values())
    if as_json and STREAM in words and not dry_run:
        why = "--json and the disk cannot both go to standard output"
        raise UsageError(why, "Leave out --json.")
    options = RestoreOptions(
        spec,
        disk,
        over_source,
        keep_going,
        overwrite,
        differ=None if whole else Differential,
        verify=verify_target if verify and not dry_run else None,
        rate=rate,
        dry_run=count_differences if dry_run else None,
    )
    done: list[RestoredDisk] = []
    pace = _known_rate(context, job, rate) if dry_run else 0.0
    run: Callable[..., RestoreResult] = restore_job if dry_run else restore_recorded
    if isinstance(wanted, str) and wanted.startswith("libvirt:"):
        from backy.operations.restore_domain import restore_domain

        run = partial(restore_domain, run)
    with ExitStack() as stack:
        # It is printed after the progress bar is gone, even after an error.
        stack.callback(_print_disks, job, dry_run, pace, done)
        shown = stack.enter_context(meter(job, as_json=as_json))
        tell = partial(_print_record, job, dry_run, pace) if as_json else done.append
        result = run(context.obj, job, wanted, options, watcher=shown, on_disk=tell)
    for path in result.files:
        warn(f"{job}: {result.revision.id}: {path.name} restored to {path}")
    _raise_lost(job, ", ".join(words), result)


def _wanted(target: str, disks: list[str]) -> tuple[str | dict[str, str], str | None]:
    """The target, or that of each disk by its name; and the name of the only disk, if one is."""
    if target and len(disks) <= 1 and not any("=" in each for each in disks):
        return target, disks[0] if disks else None
    mapped = {name: word for name, _, word in (each.partition("=") for each in disks)}
    if target or not mapped or len(mapped) < len(disks) or not all(mapped.values()):
        hint = "Write: backy restore JOB TARGET, or backy restore JOB --disk vda=TARGET …"
        raise UsageError("a restore needs one target, or one for each disk", hint)
    return mapped, None


def _known_rate(context: Context, job: str, limit: int | None) -> float:
    """The bytes of data a second that a restore of a job will take; 0 if nobody knows."""
    from backy.repository.restores import rate_of, read_restores

    with suppress(DamagedError):
        known = rate_of(read_restores(context.obj.repository(job).root))
        return min(known, limit or known)
    return 0.0


def _print_record(job: str, dry_run: bool, pace: float, done: RestoredDisk) -> None:
    record = {"event": "finished", "job": job, "dry_run": dry_run} | asdict(done)
    if dry_run:
        record["seconds"] = done.read / pace if pace else None
    print_json(cast("RestoreFinished", record))


def _print_disks(job: str, dry_run: bool, pace: float, disks: list[RestoredDisk]) -> None:
    for done in disks:
        size, read, written = map(format_size, (done.size, done.read, done.written))
        if dry_run:
            time = f"about {format_duration(done.read / pace)}" if pace else "nobody knows how long"
            what, rest = "would go", f"; {written} would be written, {time}"
        else:
            differed = f" and {written} differed" if done.written != done.read else ""
            rate = format_rate(done.read, done.seconds)
            what, rest = "restored", f"{differed}, {done.seconds:.1f} s, {rate}"
        disk = f"{job}: {done.revision}: {done.disk}"
        text = f"{disk} {what} to {done.target}: {size}, of which {read} are data{rest}"
        if done.target == STREAM and not dry_run:
            warn(text)
        else:
            print_lines([text])


def _raise_lost(job: str, target: str, result: RestoreResult) -> None:
    """Raise DamagedError if ranges are lost."""
    if result.lost:
        names = ", ".join(restored.disk for restored in result.disks)
        are_lost = f"{counted(result.lost, 'range is', 'ranges are')} lost"
        rest = f"Everything else is in {target}"
        hints = [*result.unasked, rest, "Try an older revision for the lost ranges."]
        message = f"{job}: {result.revision.id} {names}: {are_lost}"
        raise DamagedError(message, ". ".join(hints))


@app.command(epilog="Example: backy history vm1")
def history(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Show the restores of a job: what, where to, who asked, and how they ended."""
    from backy.repository.records import json_of
    from backy.repository.restores import read_restores

    records = read_restores(context.obj.repository(job).root)
    kept = [cast("KeptRestore", json_of(record)) for record in records]
    headings = ("time (UTC)", "revision", "data", "written", "took", "result", "targets", "by")
    rows = table(headings, map(_row, records))
    answer(as_json, HistoryAnswer(job=job, restores=kept), rows)


def _row(record: RestoreRecord) -> tuple[str, ...]:
    sizes = map(format_size, (record.data, record.written))
    began, took = f"{record.time:%Y-%m-%d %H:%M:%S}", format_duration(record.seconds)
    ended = record.result, record.targets, record.asked_by
    return began, record.revision, *sizes, took, *ended
