"""backy backup: make one revision of a VM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer, summary
from backy.cli.progress import meter
from backy.errors import UsageError
from backy.model.names import check_tag
from backy.repository.manifest import revision_record
from backy.units import parse_size

if TYPE_CHECKING:
    pass


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
    from backy.operations.backup import BackupOptions, backup_job

    options = BackupOptions(
        source=_file_source(source) if source else None,
        tags=tuple(sorted({check_tag(each) for each in tag or []})),
        store=store,
        block_size=parse_size(block_size) if block_size else None,
        level=level,
    )
    with meter(job, as_json=as_json) as shown:
        revision = backup_job(context.obj, job, options, watcher=shown)
    finished = {"event": "finished", "job": job, "seconds": shown.seconds}
    text = f"{job}: {revision.id}: {summary(revision, shown.seconds)}"
    answer(as_json, finished | {"revision": revision_record(revision)}, text)


def _file_source(paths: list[str]) -> dict[str, object]:
    """What --source says: paths, each with its disk's name before "=", or else vda, vdb and on."""
    disks = {}
    for number, text in enumerate(paths):
        name, separator, path = text.partition("=")
        if not separator or "/" in name:
            name, path = f"vd{chr(ord('a') + number)}", text
        if name in disks:
            raise UsageError(
                f"two sources for disk {name}", "Name them: --source vda=… --source vdb=…"
            )
        disks[name] = str(Path(path).absolute())
    return {"type": "file", "disks": disks}
