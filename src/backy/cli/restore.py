"""backy restore: restore a disk, or all disks."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, Job, Spec, app
from backy.cli.output import print_json, print_lines, warn
from backy.cli.progress import meter
from backy.errors import DamagedError, UsageError
from backy.model.messages import RestoreFinished
from backy.units import counted, format_rate, format_size

if TYPE_CHECKING:
    from backy.operations.restore import RestoredDisk, RestoreResult


_TARGET = "A file, a block device, a folder, or - for standard output."
Target = Annotated[str | None, Argument(parser=values.target, metavar="TARGET", help=_TARGET)]
_DISKS = "Which disk; or a target for each: --disk vda=TARGET --disk vdb=TARGET."
Disks = Annotated[list[str] | None, Option("--disk", metavar="NAME[=TARGET]", help=_DISKS)]
OverSource = Annotated[bool, Option("--over-source", help="Allow the source itself as the target.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Allow a file that exists.")]
KeepGoing = Annotated[
    bool, Option("--keep-going", help="Write zeroes for lost ranges, and list them.")
]


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
    as_json: AsJson = False,
) -> None:
    """Restore one disk, or all disks of a revision.

    A file, a block device or standard output gets one disk; a folder gets all disks, and the files
    that were saved beside them. The hash of every block is checked. Zeroes become holes. A damaged
    block is taken from another revision or from the source, if it still has the right hash there.
    """
    from backy.operations.restore import RestoreOptions, restore_job
    from backy.targets import STREAM

    wanted, disk = _wanted(target or "", disks or [])
    words = [wanted] if isinstance(wanted, str) else list(wanted.values())
    if as_json and STREAM in words:
        raise UsageError(
            "--json and the disk cannot both go to standard output", "Leave out --json."
        )
    options = RestoreOptions(spec, disk, over_source, keep_going, overwrite)
    done: list[RestoredDisk] = []
    with ExitStack() as stack:
        # It is printed after the progress bar is gone, even after an error.
        stack.callback(_print_restored, job, done)
        shown = stack.enter_context(meter(job, as_json=as_json))
        tell = partial(_print_record, job) if as_json else done.append
        result = restore_job(context.obj, job, wanted, options, watcher=shown, on_disk=tell)
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


def _print_record(job: str, done: RestoredDisk) -> None:
    finished = RestoreFinished(
        event="finished",
        job=job,
        revision=done.revision,
        disk=done.disk,
        target=done.target,
        size=done.size,
        read=done.read,
        seconds=done.seconds,
        lost=done.lost,
        healed=done.healed,
    )
    print_json(finished)


def _print_restored(job: str, disks: list[RestoredDisk]) -> None:
    from backy.targets import STREAM

    for done in disks:
        text = (
            f"{job}: {done.revision}: {done.disk} restored to {done.target}: "
            f"{format_size(done.size)}, of which {format_size(done.read)} are data, "
            f"{done.seconds:.1f} s, {format_rate(done.read, done.seconds)}"
        )
        if done.target == STREAM:
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
