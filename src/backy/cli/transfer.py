"""backup, restore: the commands that move data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from backy.cli.app import AsJson, Context, Job, OneDisk, Spec, app, open_repository
from backy.cli.output import answer, summary, warn
from backy.cli.progress import Meter, meter
from backy.errors import ConfigError, DamagedError, NotFoundError
from backy.model.names import check_job, check_tag
from backy.model.revision import Revision, disk_of
from backy.repository import status
from backy.repository.manifest import Settings, revision_record
from backy.repository.repository import DEFAULT_BLOCK, Repository, create
from backy.units import format_rate, format_size, parse_size

if TYPE_CHECKING:
    from backy.config.settings import Config
    from backy.operations.hooks import Runner
    from backy.operations.restore import Restored

_NEW = "For a new repository: "
Sources = Annotated[
    list[str] | None,
    Option(metavar="[DISK=]PATH", help="A file or block device; remembered. Again for more disks."),
]
Tags = Annotated[
    list[str] | None, Option(metavar="TAG", help="A tag for the revision. Again for more.")
]
StoreName = Annotated[
    str | None, Option(help=_NEW + "chunks, images, or auto (what the file system can do).")
]
BlockSize = Annotated[
    str | None, Option(metavar="SIZE", help=_NEW + "64KiB to 16MiB; 1MiB by default.")
]
Level = Annotated[int | None, Option(help=_NEW + "zstd level, 1 to 19; 1 by default.")]
Target = Annotated[
    str,
    Argument(metavar="TARGET", help="A file, a block device, a folder, or - for standard output."),
]
OverSource = Annotated[bool, Option("--over-source", help="Allow the source itself as the target.")]
KeepGoing = Annotated[
    bool, Option("--keep-going", help="Write zeroes for what is lost, and list it.")
]


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
    from backy.operations.backup import backup as run
    from backy.operations.backup import recorded, suspicion
    from backy.sources import open_source

    root = context.obj.base / check_job(job)
    config: Config | None = context.obj.config_of(job)
    tags = {check_tag(each) for each in tag or []}
    size = parse_size(block_size) if block_size else None
    asked = {"store": store, "block_size": size, "level": level}
    settings = _file_source(source) if source else _source_of(root, config)
    with meter(job, as_json=as_json) as shown:
        hooks = _hooks(config, root, shown)
        with recorded(root, hooks, is_configured=config is not None):
            repository = _open_or_create(root, asked, config)
            due = tuple(sorted(tags or _tags_due(config, repository)))
            live = open_source(settings)
            revision = run(repository, live, tags=due, hooks=hooks, watcher=shown)
        doubt = suspicion(repository, revision, revision.parent)
        repository.remember_source(settings)
        if doubt:
            shown.warn(doubt)
        if hooks:
            hooks.run("after-backup", revision.id, record=revision_record(revision))
    error = hooks.failures[-1] if hooks and hooks.failures else ""
    status.update(root, lambda old: status.succeeded(old, revision, error, doubt))
    finished = {"event": "finished", "job": job, "seconds": shown.seconds}
    text = f"{job}: {revision.id}: {summary(revision, shown.seconds)}"
    answer(as_json, finished | {"revision": revision_record(revision)}, text)


def _source_of(root: Path, config: Config | None) -> dict[str, Any]:
    """The source that is configured, or else the one that was used last."""
    from backy.sources import remembered

    found = None
    if config:
        found = config.jobs[root.name].source
    elif (root / "repository.json").exists():
        found = dict(remembered(Repository(root).settings.source))
    if not found:
        hint = f"Say backy backup {root.name} --source PATH."
        raise ConfigError(f"{root.name}: no source is known", hint)
    return found


def _tags_due(config: Config | None, repository: Repository) -> Iterable[str]:
    """What a backup by hand is tagged with: what its schedule would do next, so that it is kept."""
    if not config:
        return ()
    from backy.policy.schedule import last_by_tag, next_run, spread

    job, history = repository.name, repository.history()
    schedule, now = config.intervals(job), datetime.now(UTC)
    last = last_by_tag(history)
    return next_run(schedule, spread(job, schedule), last, bool(history), now).tags


def _hooks(config: Config | None, root: Path, shown: Meter) -> Runner | None:
    from backy.operations.hooks import Runner

    return Runner(config.hooks_of(root.name), root.name, root, shown.note) if config else None


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


def _open_or_create(root: Path, asked: dict[str, Any], config: Config | None) -> Repository:
    """The repository in `root`; made, if need be, as asked or else as configured.

    One that is there must be as it was asked for.
    """
    wanted = {name: value for name, value in asked.items() if value is not None}
    if not (root / "repository.json").exists():
        settings: dict[str, Any] = {"store": "auto", "block_size": DEFAULT_BLOCK, "level": 1}
        if config:
            job = config.jobs[root.name]
            settings |= {name: value for name in settings if (value := getattr(job, name))}
        return create(root.parent, root.name, Settings(**(settings | wanted)))
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
    target: Target,
    spec: Spec = "latest",
    disk: OneDisk = None,
    over_source: OverSource = False,
    keep_going: KeepGoing = False,
    as_json: AsJson = False,
) -> None:
    """Bring a disk back: write it to a file, a block device or standard output.

    A folder gets all disks, and what was saved beside them. Every block's hash is checked on the
    way. Zeroes become holes. What is damaged comes from another revision or the source, where they
    still have it.
    """
    from backy.operations.restore import STREAM, restore_files
    from backy.operations.restore import restore as run

    if target == STREAM and as_json:
        raise ConfigError(
            "--json and the disk cannot both go to standard output", "Leave out --json."
        )
    repository = open_repository(context, job)
    revision = repository.find(spec)
    bring = partial(run, over_source=over_source, keep_going=keep_going)
    lost = 0
    places = _places(repository, revision, disk, target)
    for name, place in places.items():
        facts = {"revision": revision.id, "disk": name, "target": place}
        with (
            meter(f"{job} {name}", as_json=as_json) as shown,
            _hooked(context.obj.config_of(job), repository, facts, shown),
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
    config: Config | None, repository: Repository, facts: dict[str, Any], shown: Meter
) -> Iterator[None]:
    """Run the hooks before a restore, and when it ended, however that was, those after it."""
    with ExitStack() as stack:
        if hooks := _hooks(config, repository.root, shown):
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
