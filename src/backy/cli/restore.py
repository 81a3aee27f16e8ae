"""backy restore: restore a disk, or all disks."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, Job, OneDisk, Spec, app
from backy.cli.output import print_json, print_lines, warn
from backy.cli.progress import meter
from backy.errors import DamagedError, UsageError
from backy.model.messages import RestoreFinished
from backy.units import counted, format_rate, format_size

if TYPE_CHECKING:
    from backy.operations.restore import RestoredDisk, RestoreResult


_TARGET = "A file, a block device, a folder, or - for standard output."
Target = Annotated[str, Argument(parser=values.target, metavar="TARGET", help=_TARGET)]
OverSource = Annotated[bool, Option("--over-source", help="Allow the source itself as the target.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Allow a file that exists.")]
KeepGoing = Annotated[
    bool, Option("--keep-going", help="Write zeroes for lost ranges, and list them.")
]


@app.command(epilog="Example: backy restore vm1 /images/vm1-restored.img -r 2026-11-23")
def restore(
    context: Context,
    job: Job,
    target: Target,
    spec: Spec = "latest",
    disk: OneDisk = None,
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

    if as_json and target == STREAM:
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
        result = restore_job(context.obj, job, target, options, watcher=shown, on_disk=tell)
    for path in result.files:
        warn(f"{job}: {result.revision.id}: {path.name} restored to {path}")
    _raise_lost(job, target, result)


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
