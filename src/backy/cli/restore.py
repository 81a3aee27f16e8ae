"""backy restore: bring a disk, or all disks, back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from backy.cli.app import AsJson, Context, Job, OneDisk, Spec, app
from backy.cli.output import answer, warn
from backy.cli.progress import Meter, meter
from backy.errors import DamagedError, NotFoundError, UsageError
from backy.model.revision import Revision, disk_of
from backy.operations.site import Site
from backy.repository.repository import Repository
from backy.units import format_rate, format_size

if TYPE_CHECKING:
    from backy.operations.restore import Restored


Target = Annotated[
    str,
    Argument(metavar="TARGET", help="A file, a block device, a folder, or - for standard output."),
]
OverSource = Annotated[bool, Option("--over-source", help="Allow the source itself as the target.")]
KeepGoing = Annotated[
    bool, Option("--keep-going", help="Write zeroes for what is lost, and list it.")
]


@app.command(epilog="Example: backy restore vm1 /images/vm1-restored.img -r 2026-11-23")
def restore(
    context: Context,
    job: Job,
    target: Target,
    spec: Spec = "latest",
    disk: OneDisk = None,
    over_source: OverSource = False,
    keep_going: KeepGoing = False,
    as_json: AsJson = False,
) -> None:
    """Restore one disk, or all disks of a revision.

    A file, a block device or standard output gets one disk; a folder gets all disks, and what was
    saved beside them. Every block's hash is checked on the
    way. Zeroes become holes. What is damaged comes from another revision or the source, where they
    still have it.
    """
    from backy.operations.restore import STREAM, restore_files
    from backy.operations.restore import restore as run

    if target == STREAM and as_json:
        raise UsageError(
            "--json and the disk cannot both go to standard output", "Leave out --json."
        )
    repository = context.obj.repository(job)
    revision = repository.find(spec)
    origins = context.obj.origins(repository)
    bring = partial(run, origins=origins, over_source=over_source, keep_going=keep_going)
    lost = 0
    places = _places(repository, revision, disk, target)
    for name, place in places.items():
        facts = {"revision": revision.id, "disk": name, "target": place}
        with (
            meter(f"{job} {name}", as_json=as_json) as shown,
            _hooked(context.obj, repository, facts, shown),
        ):
            restored = bring(repository, revision, name, place, watcher=shown)
            _warn_of_damage(restored, shown)
        done = {"job": job, **facts, "size": revision.disks[name].size}
        _say_restored(done, restored, shown.seconds, as_json)
        lost += len(restored.lost)
    if _is_folder(target):
        for path in restore_files(repository, revision, Path(target)):
            warn(f"{job}: {revision.id}: {path.name} restored to {path}")
    if lost:
        raise DamagedError(
            f"{job}: {revision.id} {', '.join(places)}: {lost} ranges are lost",
            f"All the rest is in {target}. Try an older revision for them.",
        )


def _places(
    repository: Repository, revision: Revision, disk: str | None, target: str
) -> dict[str, str]:
    """Where each disk goes: to `target`, or where that is a folder, into it under its name."""
    if not _is_folder(target):
        return {_disk_of(repository, revision, disk): target}
    names = [_disk_of(repository, revision, disk)] if disk else revision.disks
    return {name: str(Path(target, f"{name}.img")) for name in names}


def _is_folder(target: str) -> bool:
    with suppress(OSError):  # what is wrong with it, the restore says
        return Path(target).is_dir()
    return False


@contextmanager
def _hooked(
    site: Site, repository: Repository, facts: dict[str, Any], shown: Meter
) -> Iterator[None]:
    """Run the hooks before a restore, and when it ended, however that was, those after it."""
    with ExitStack() as stack:
        if hooks := site.hooks(repository.name, shown.note):
            stack.callback(hooks.run, "after-restore", **facts)
            hooks.run("before-restore", **facts)
        yield


def _disk_of(repository: Repository, revision: Revision, disk: str | None) -> str:
    """The disk that was asked for. Raises DamagedError where only its index says that it exists."""
    try:
        return disk_of(revision, disk)
    except NotFoundError as error:
        if disk not in {path.stem for path in repository.folder_of(revision).glob("*.blocks")}:
            raise
        message = f"{repository.name}: {error.message}, but the index of one"
        raise DamagedError(message, "restore.sh and docs/restore-by-hand.md may help.") from error


def _warn_of_damage(restored: Restored, shown: Meter) -> None:
    for start, length in restored.healed:
        shown.warn(f"bytes {start} to {start + length} were damaged; they came from elsewhere")
    for start, length in restored.lost:
        shown.warn(f"bytes {start} to {start + length} are lost; the target has zeroes there")


def _say_restored(done: dict[str, Any], restored: Restored, seconds: float, as_json: bool) -> None:
    read = restored.read
    ranges = {"read": read, "seconds": seconds, "lost": restored.lost, "healed": restored.healed}
    text = (
        f"{done['job']}: {done['revision']}: {done['disk']} restored to {done['target']}: "
        f"{format_size(done['size'])}, of which {format_size(read)} are data, {seconds:.1f} s, "
        f"{format_rate(read, seconds)}"
    )
    if done["target"] == "-":
        warn(text)
    else:
        answer(as_json, {"event": "finished"} | done | ranges, text)
