"""list, diff, find: the commands that only look."""

from __future__ import annotations

from typing import Annotated

import typer

from backy.cli.app import AsJson, Context, DiskName, Job, Spec, app, open_repository
from backy.cli.output import (
    REVISION_HEADINGS,
    print_json,
    print_table,
    printable,
    revision_row,
)
from backy.errors import BackyError, NotFoundError
from backy.records import revision_record
from backy.repository import Repository, jobs
from backy.revision import disk_of
from backy.units import format_size


@app.command("list", epilog="Example: backy list vm1")
def list_(
    context: Context,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Only this job, with its revisions.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the revisions of a job, or all jobs."""
    unusable: dict[str, BackyError] = {}
    if job:
        repositories = [open_repository(context, job)]
    else:
        repositories, unusable = _all(context)
    if as_json:
        listed = [_job_json(repository) for repository in repositories]
        errors = [{"job": name, "error": error.message} for name, error in unusable.items()]
        print_json({"jobs": listed, "unusable": errors})
    elif job:
        print_table(REVISION_HEADINGS, map(revision_row, repositories[0].history()))
    else:
        print_table(
            ("job", "store", "revisions", "newest (UTC)", "size"), map(_job_row, repositories)
        )
    for repository in repositories:
        for error in repository.damaged:
            typer.echo(f"{repository.name}: warning: {printable(error.message)}", err=True)
    for reason in unusable.values():
        raise reason


def _all(context: Context) -> tuple[list[Repository], dict[str, BackyError]]:
    """Every repository in the base directory, and why those that cannot be opened cannot."""
    usable: list[Repository] = []
    unusable: dict[str, BackyError] = {}
    for name in jobs(context.obj.base):
        try:
            usable.append(open_repository(context, name))
        except BackyError as error:
            unusable[name] = error
    return usable, unusable


def _job_json(repository: Repository) -> dict[str, object]:
    revisions = [revision_record(revision) for revision in repository.history()]
    damaged = [error.message for error in repository.damaged]
    settings = {"store": repository.settings.store, "block_size": repository.settings.block_size}
    return {"job": repository.name, **settings, "revisions": revisions, "damaged": damaged}


def _job_row(repository: Repository) -> list[str]:
    history = repository.history()
    if not history:
        return [repository.name, repository.settings.store, "0", "never", "-"]
    size = sum(disk.size for disk in history[-1].disks.values())
    newest = f"{history[-1].time:%Y-%m-%d %H:%M:%S}"
    return [
        repository.name,
        repository.settings.store,
        str(len(history)),
        newest,
        format_size(size),
    ]


@app.command(epilog="Example: backy diff vm1 1 latest")
def diff(
    context: Context,
    job: Job,
    old: Annotated[str, typer.Argument(metavar="REV", help="Revision words for the older one.")],
    new: Annotated[str, typer.Argument(metavar="REV", help="Revision words for the newer one.")],
    as_json: AsJson = False,
) -> None:
    """Show which ranges of its disks changed between two revisions, in whole blocks."""
    from backy.diff import diff as run

    repository = open_repository(context, job)
    before, after = repository.find(old), repository.find(new)
    changes = run(repository, before, after)
    if as_json:
        extents = [
            {
                "disk": name,
                "start": extent.start,
                "length": extent.length,
                "kind": extent.kind.value,
            }
            for name, extent in changes
        ]
        print_json({"job": job, "old": before.id, "new": after.id, "extents": extents})
        return
    rows = [
        (name, str(extent.start), str(extent.length), extent.kind.value) for name, extent in changes
    ]
    print_table(("disk", "start", "length", "kind"), rows)


@app.command(epilog='Example: cp --sparse=always "$(backy find vm1 -r latest)" disk.img')
def find(
    context: Context,
    job: Job,
    spec: Spec = "latest",
    disk: DiskName = None,
    as_json: AsJson = False,
) -> None:
    """Print where a disk's plain image (store images) or index (store chunks) is, for scripts."""
    repository = open_repository(context, job)
    revision = repository.find(spec)
    name = disk_of(revision, disk)
    path = repository.store.plain_path(revision, name).absolute()
    if not path.exists():
        raise NotFoundError(f"{job}: {path} is missing", f"Run backy verify {job}.")
    if as_json:
        store = repository.settings.store
        print_json(
            {"job": job, "revision": revision.id, "disk": name, "store": store, "path": str(path)}
        )
    else:
        typer.echo(path)
