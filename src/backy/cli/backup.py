"""backy backup: make one revision of a VM."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer, summary
from backy.cli.progress import Meter, meter
from backy.errors import ConfigError
from backy.model.names import check_job, check_tag
from backy.repository import status
from backy.repository.manifest import Settings, revision_record
from backy.repository.repository import DEFAULT_BLOCK, Repository, create
from backy.units import parse_size

if TYPE_CHECKING:
    from backy.config.settings import Config
    from backy.operations.hooks import Runner


_NEW = "For a new repository: "
Sources = Annotated[
    list[str] | None,
    Option(
        metavar="[DISK=]PATH", help="A file or block device; reject_unsafe. Again for more disks."
    ),
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
        hooks = hooks_of(config, root, shown)
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
    from backy.sources import reject_unsafe

    found = None
    if config:
        found = config.jobs[root.name].source
    elif (root / "repository.json").exists():
        found = dict(reject_unsafe(Repository(root).settings.source))
    if not found:
        hint = f"Say backy backup {root.name} --source PATH."
        raise ConfigError(f"{root.name}: no source is known", hint)
    return found


def _tags_due(config: Config | None, repository: Repository) -> Iterable[str]:
    """What a backup by hand is tagged with: what its schedule would do next, so that it is kept."""
    if not config:
        return ()
    from backy.policy.schedule import last_by_tag, next_run, spread

    job, history = repository.name, repository.history().revisions
    schedule, now = config.intervals(job), datetime.now(UTC)
    last = last_by_tag(history)
    return next_run(schedule, spread(job, schedule), last, bool(history), now).tags


def hooks_of(config: Config | None, root: Path, shown: Meter) -> Runner | None:
    """What runs around the steps of a job; None where it is not configured."""
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
