"""backy backup: make one revision of a VM."""

from typing import Annotated

from typer import Option

from backy.cli import values
from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer, summary
from backy.cli.progress import meter
from backy.cli.values import DiskPlace
from backy.model.messages import BackupFinished
from backy.repository.records import revision_record

_NEW = "For a new repository: "
_SOURCE = "For the first backup: a file, a block device, or KIND:PLACE. Repeat it for more disks."
Sources = Annotated[
    list[DiskPlace] | None, Option(parser=values.disk_place, metavar="[DISK=]PLACE", help=_SOURCE)
]
_TAG = "A tag for the revision. Repeat it for more."
Tags = Annotated[list[str] | None, Option(parser=values.tag, metavar="TAG", help=_TAG)]
_STORE = _NEW + "chunks, images, or auto, which depends on the file system."
StoreName = Annotated[str | None, Option(parser=values.store, metavar="NAME", help=_STORE)]
_VERIFY = "Read every block of the new revision back before it is published, not a sample."
Verify = Annotated[bool, Option("--verify", help=_VERIFY)]
_SIZE = _NEW + "64KiB to 16MiB; 1MiB by default."
BlockSize = Annotated[int | None, Option(parser=values.block_size, metavar="SIZE", help=_SIZE)]
_LEVEL = _NEW + "zstd level, 1 to 19; 1 by default."
Level = Annotated[int | None, Option(parser=values.level, metavar="LEVEL", help=_LEVEL)]


@app.command(epilog="Example: backy backup vm1 --source /images/vm1.img")
def backup(
    context: Context,
    job: Job,
    source: Sources = None,
    tag: Tags = None,
    store: StoreName = None,
    verify: Verify = False,
    block_size: BlockSize = None,
    level: Level = None,
    as_json: AsJson = False,
) -> None:
    """Back up a VM: make one revision of all its disks.

    The first backup makes the repository. Later ones need no --source, and store only what
    changed.
    """
    # Imported here, because most commands need neither zstandard nor sources.
    from backy.operations.backup import BackupOptions, backup_job
    from backy.sources.typed import typed_source

    options = BackupOptions(
        source=typed_source(source) if source else None,
        tags=tuple(sorted({*(tag or [])})),
        is_verified=verify,
        store=store,
        block_size=block_size,
        level=level,
    )
    with meter(job, as_json=as_json) as shown:
        revision = backup_job(context.obj, job, options, watcher=shown)
    seconds, record = shown.seconds, revision_record(revision)
    finished = BackupFinished(event="finished", job=job, seconds=seconds, revision=record)
    answer(as_json, finished, f"{job}: {revision.id}: {summary(revision, seconds)}")
