"""backup, restore, verify: the commands that move data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from backy.cli.app import AsJson, Context, DiskName, Job, Spec, app, open_repository
from backy.cli.output import print_json, summary
from backy.cli.progress import meter
from backy.errors import ConfigError, DamagedError
from backy.records import revision_record
from backy.repository import DEFAULT_BLOCK, Repository, check_job, create
from backy.revision import check_tag, disk_of
from backy.units import format_rate, format_size, parse_size
from backy.words import select


@app.command(epilog="Example: backy backup vm1 --source /images/vm1.img")
def backup(  # noqa: PLR0913 - one parameter an option
    context: Context,
    job: Job,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="[DISK=]PATH", help="A file or block device; remembered. Again for more disks."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag for the revision; may be given again.")] = None,
    store: Annotated[
        str | None, typer.Option(help="For a new repository: chunks, images, or auto (what the disk can do).")
    ] = None,
    block_size: Annotated[
        str | None, typer.Option(help="For a new repository: 64KiB to 16MiB; 1MiB by default.")
    ] = None,
    level: Annotated[int | None, typer.Option(help="For a new repository: zstd level 1 to 19.")] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Back up a VM: make one revision of all its disks.

    Makes the repository at first use. Later backups need no --source and store only what
    changed.
    """
    from backy.backup import backup as run  # noqa: PLC0415 - zstandard and blake3 only where needed
    from backy.sources import open_source  # noqa: PLC0415

    for each in tag or []:
        check_tag(each)
    asked = {"store": store, "block_size": parse_size(block_size) if block_size else None, "level": level}
    settings = _file_source(source) if source else None
    if settings:
        open_source(settings)
    repository = _open_or_create(context.obj, job, settings, asked)
    used = settings or repository.settings.source
    with meter(job, as_json=as_json) as measured:
        revision = run(
            repository,
            open_source(used),
            tags=tuple(sorted(set(tag or []))),
            begin=measured.begin,
            progress=measured.advance,
            warn=measured.warn,
        )
        repository.remember_source(used)
    if as_json:
        print_json({"event": "finished", "job": job, "seconds": measured.seconds} | {"revision": revision_record(revision)})
        return
    disks = revision.disks.values()
    read, changed, stored = (sum(getattr(d, name) for d in disks) for name in ("read", "changed", "stored"))
    typer.echo(f"{job}: {revision.id}: {summary(read, changed, stored, measured.seconds)}")


def _file_source(paths: list[str]) -> dict[str, object]:
    """What --source says: paths, each with the name of its disk before "=", or vda, vdb, …"""
    disks = {}
    for number, text in enumerate(paths):
        name, separator, path = text.partition("=")
        if not separator or "/" in name:
            name, path = f"vd{chr(ord('a') + number)}", text
        if name in disks:
            raise ConfigError(f"two sources for disk {name}", "Name them: --source vda=… --source vdb=…")
        disks[name] = str(Path(path).absolute())
    return {"type": "file", "disks": disks}


def _open_or_create(
    base: Path, job: str, source: dict[str, object] | None, asked: dict[str, object]
) -> Repository:
    from backy.records import Settings  # noqa: PLC0415

    wanted = {name: value for name, value in asked.items() if value is not None}
    if (base / check_job(job) / "repository.json").exists() or not source:
        repository = Repository(base / job)
        for name, value in wanted.items():
            has = getattr(repository.settings, name)
            if value not in {has, "auto"}:
                why = f"{job}: the repository has {name.replace('_', ' ')} {has}, not {value}"
                raise ConfigError(why, "That is chosen once; back up to a new job to change it.")
        if not source and not repository.settings.source:
            raise ConfigError(f"{job}: no source is known", f"backy backup {job} --source PATH")
        return repository
    defaults: dict[str, object] = {"store": "auto", "block_size": DEFAULT_BLOCK, "level": 1}
    return create(base, job, Settings(**(defaults | wanted), source=source))  # type: ignore[arg-type]


@app.command(epilog="Example: backy restore vm1 /images/vm1-restored.img -r 2026-11-23")
def restore(
    context: Context,
    job: Job,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A file, a block device, or - for standard output.")],
    spec: Spec = "latest",
    disk: DiskName = None,
    over_source: Annotated[  # noqa: FBT002
        bool, typer.Option("--over-source", help="Allow the source itself as the target.")
    ] = False,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Bring a disk back: write it to a file, a block device or standard output.

    Every block's hash is checked on the way. Zeroes become holes.
    """
    from backy.restore import STREAM, restore as run  # noqa: PLC0415

    if target == STREAM and as_json:
        raise ConfigError("--json and the disk cannot both go to standard output", "Leave out --json.")
    repository = open_repository(context, job)
    revision = repository.find(spec)
    name = disk_of(revision, disk)
    size = revision.disks[name].size
    with meter(f"{job} {name}", as_json=as_json) as measured:
        measured.begin(size)
        read = run(repository, revision, name, target, over_source=over_source, progress=measured.advance)
    seconds = measured.seconds
    if as_json:
        done = {"job": job, "revision": revision.id, "disk": name, "target": target}
        print_json({"event": "finished", **done, "size": size, "read": read, "seconds": seconds})
        return
    typer.echo(
        f"{job}: {revision.id}: {name} restored to {target}: {format_size(size)}, of which "
        f"{format_size(read)} are data, {seconds:.1f} s, {format_rate(read, seconds)}",
        file=sys.stderr if target == STREAM else sys.stdout,
    )


@app.command(epilog="Example: backy verify vm1 -r latest")
def verify(
    context: Context,
    job: Job,
    spec: Spec = "all",
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Read every stored byte again and compare it with its hash.

    Names each damaged range and revision and ends with exit code 6 where there is any. A
    revision is verified or distrusted afterwards; backups do not build upon a distrusted one.
    """
    from backy.verify import verify as run, work  # noqa: PLC0415

    repository = open_repository(context, job)
    revisions = sorted(select(spec, repository.history()), key=lambda revision: revision.id)
    damaged = [error.message for error in repository.damaged] if spec == "all" else []
    count = len(damaged)
    with meter(job, as_json=as_json) as measured:
        measured.begin(work(revisions))
        for message in damaged:
            measured.warn(message)
        for damage in run(repository, revisions, progress=measured.advance):
            count += 1
            where = f"{damage.revision} {damage.disk}: bytes {damage.start} to {damage.start + damage.length}"
            if as_json:
                fields = ("revision", "disk", "start", "length", "reason")
                print_json({"event": "damage"} | {field: getattr(damage, field) for field in fields})
            else:
                measured.warn(f"damaged: {where}: {damage.reason}")
    size = work(revisions)
    if as_json:
        done = {"job": job, "revisions": [revision.id for revision in revisions], "damaged": count}
        print_json({"event": "finished", **done, "size": size, "seconds": measured.seconds})
    if count:
        raise DamagedError(
            f"{job}: {count} damaged ranges in {len(revisions)} revisions",
            "Run backy backup: what the source still has is stored anew.",
        )
    if not as_json:
        rate = format_rate(size, measured.seconds)
        typer.echo(f"{job}: {len(revisions)} revisions, {format_size(size)} verified, {measured.seconds:.1f} s, {rate}")
