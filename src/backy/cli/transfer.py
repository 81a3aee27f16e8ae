"""backup, restore: the commands that move data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backy.cli.app import AsJson, Context, DiskName, Job, Spec, app, open_repository
from backy.cli.output import print_json, summary
from backy.cli.progress import meter
from backy.errors import ConfigError, DamagedError, NotFoundError
from backy.records import Settings, revision_record
from backy.repository import DEFAULT_BLOCK, Repository, check_job, create
from backy.revision import Revision, check_tag, disk_of
from backy.units import format_rate, format_size, parse_size

if TYPE_CHECKING:
    from backy.restore import Restored

_NEW = "For a new repository: "
Sources = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[DISK=]PATH", help="A file or block device; remembered. Again for more disks."
    ),
]
Tags = Annotated[
    list[str] | None, typer.Option(metavar="TAG", help="A tag for the revision. Again for more.")
]
StoreName = Annotated[
    str | None, typer.Option(help=_NEW + "chunks, images, or auto (what the file system can do).")
]
BlockSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help=_NEW + "64KiB to 16MiB; 1MiB by default.")
]
Level = Annotated[int | None, typer.Option(help=_NEW + "zstd level, 1 to 19; 1 by default.")]


@app.command(epilog="Example: backy backup vm1 --source /images/vm1.img")
def backup(
    context: Context,
    job: Job,
    source: Sources = None,
    tag: Tags = None,
    store: StoreName = None,
    block_size: BlockSize = None,
    level: Level = None,
    as_json: AsJson = False,
) -> None:
    """Back up a VM: make one revision of all its disks.

    Makes the repository at first use. Later backups need no --source and store only what
    changed.
    """
    # Imported here, because the commands that only look need neither zstandard nor sources.
    from backy.backup import backup as run
    from backy.sources import open_source

    tags = tuple(sorted({check_tag(each) for each in tag or []}))
    size = parse_size(block_size) if block_size else None
    if not source and not (context.obj / check_job(job) / "repository.json").exists():
        raise ConfigError(f"{job}: no source is known", f"Say backy backup {job} --source PATH.")
    repository = _open_or_create(
        context.obj / check_job(job), {"store": store, "block_size": size, "level": level}
    )
    settings = _file_source(source) if source else repository.settings.source
    if not settings:
        raise ConfigError(f"{job}: no source is known", f"Say backy backup {job} --source PATH.")
    with meter(job, as_json=as_json) as shown:
        revision = run(repository, open_source(settings), tags=tags, watcher=shown)
    repository.remember_source(settings)
    if as_json:
        finished = {"event": "finished", "job": job, "seconds": shown.seconds}
        print_json(finished | {"revision": revision_record(revision)})
    else:
        typer.echo(f"{job}: {revision.id}: {summary(revision, shown.seconds)}")


def _file_source(paths: list[str]) -> dict[str, object]:
    """What --source says: paths, each with its disk's name before "=", or else vda, vdb and on."""
    disks = {}
    for number, text in enumerate(paths):
        name, separator, path = text.partition("=")
        if not separator or "/" in name:
            name, path = f"vd{chr(ord('a') + number)}", text
        if name in disks:
            raise ConfigError(
                f"two sources for disk {name}", "Name them: --source vda=… --source vdb=…"
            )
        disks[name] = str(Path(path).absolute())
    return {"type": "file", "disks": disks}


def _open_or_create(root: Path, asked: dict[str, Any]) -> Repository:
    """The repository in `root`, made if need be; one that is there must be as it was asked for."""
    wanted = {name: value for name, value in asked.items() if value is not None}
    if not (root / "repository.json").exists():
        defaults: dict[str, Any] = {"store": "auto", "block_size": DEFAULT_BLOCK, "level": 1}
        return create(root.parent, root.name, Settings(**(defaults | wanted)))
    repository = Repository(root)
    for name, value in wanted.items():
        has = getattr(repository.settings, name)
        if value not in {has, "auto"}:
            raise ConfigError(
                f"{root.name}: the repository has {name.replace('_', ' ')} {has}, not {value}",
                "That is chosen once; back up to a new job to change it.",
            )
    return repository


@app.command(epilog="Example: backy restore vm1 /images/vm1-restored.img -r 2026-11-23")
def restore(
    context: Context,
    job: Job,
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A file, a block device, or - for standard output."),
    ],
    spec: Spec = "latest",
    disk: DiskName = None,
    over_source: Annotated[
        bool, typer.Option("--over-source", help="Allow the source itself as the target.")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Write zeroes for what is lost, and list it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a disk back: write it to a file, a block device or standard output.

    Every block's hash is checked on the way. Zeroes become holes. What is damaged comes from
    another revision or the source, where they still have it.
    """
    from backy.restore import STREAM
    from backy.restore import restore as run

    if target == STREAM and as_json:
        raise ConfigError(
            "--json and the disk cannot both go to standard output", "Leave out --json."
        )
    repository = open_repository(context, job)
    revision = repository.find(spec)
    name = _disk_of(repository, revision, disk)
    size = revision.disks[name].size
    with meter(f"{job} {name}", as_json=as_json) as shown:
        restored = run(
            repository,
            revision,
            name,
            target,
            over_source=over_source,
            keep_going=keep_going,
            watcher=shown,
        )
        for start, length in restored.healed:
            shown.warn(f"bytes {start} to {start + length} were damaged; they came from elsewhere")
        for start, length in restored.lost:
            shown.warn(f"bytes {start} to {start + length} are lost; the target has zeroes there")
    done = {"job": job, "revision": revision.id, "disk": name, "target": target, "size": size}
    _say_restored(done, restored, shown.seconds, as_json=as_json)
    if restored.lost:
        raise DamagedError(
            f"{job}: {revision.id} {name}: {len(restored.lost)} ranges are lost",
            f"All the rest is in {target}. Try an older revision for them.",
        )


def _disk_of(repository: Repository, revision: Revision, disk: str | None) -> str:
    """The disk that was asked for. Raises DamagedError where only its index says that it exists."""
    try:
        return disk_of(revision, disk)
    except NotFoundError as error:
        if disk not in {path.stem for path in repository.folder_of(revision).glob("*.blocks")}:
            raise
        message = f"{repository.name}: {error.message}, but the index of one"
        raise DamagedError(message, "restore.sh and docs/restore-by-hand.md may help.") from error


def _say_restored(
    done: dict[str, Any], restored: Restored, seconds: float, *, as_json: bool
) -> None:
    read = restored.read
    if as_json:
        ranges = {"lost": restored.lost, "healed": restored.healed}
        print_json({"event": "finished", **done, "read": read, "seconds": seconds, **ranges})
        return
    typer.echo(
        f"{done['job']}: {done['revision']}: {done['disk']} restored to {done['target']}: "
        f"{format_size(done['size'])}, of which {format_size(read)} are data, {seconds:.1f} s, "
        f"{format_rate(read, seconds)}",
        file=sys.stderr if done["target"] == "-" else sys.stdout,
    )
