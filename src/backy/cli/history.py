"""list, diff, find: the commands that only look."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from backy.cli.app import AsJson, Context, Job, OneDisk, Spec, app, each_job, open_repository
from backy.cli.output import answer, print_json, print_lines, revision_table, table, total, warn
from backy.errors import NotFoundError
from backy.model.revision import disk_of
from backy.repository.manifest import revision_record
from backy.repository.repository import Repository, jobs
from backy.units import format_size

Listed = Annotated[str | None, Argument(metavar="[JOB]", help="Only this job, with its revisions.")]
Old = Annotated[str, Argument(metavar="REV", help="Revision words for the older one.")]
New = Annotated[str, Argument(metavar="REV", help="Revision words for the newer one.")]


@app.command("list", epilog="Example: backy list vm1")
def list_(context: Context, job: Listed = None, as_json: AsJson = False) -> None:
    """Show the revisions of a job, or all jobs."""
    names = [job] if job else jobs(context.obj.base)
    repositories, unusable = each_job(context, names, lambda each: each)
    if job and unusable:
        raise unusable[0][1]
    if as_json:
        errors = [{"job": name, "error": error.message} for name, error in unusable]
        print_json({"jobs": list(map(_job_json, repositories)), "unusable": errors})
    elif job:
        print_lines(revision_table(repositories[0].history()))
    else:
        headings = ("job", "store", "revisions", "newest (UTC)", "size")
        print_lines(table(headings, map(_job_row, repositories)))
    for repository in repositories:
        for damage in repository.damaged:
            warn(f"{repository.name}: warning: {damage.message}")
    for _, error in unusable:
        raise error


def _job_json(repository: Repository) -> dict[str, object]:
    revisions = [revision_record(revision) for revision in repository.history()]
    damaged = [error.message for error in repository.damaged]
    settings = {"store": repository.settings.store, "block_size": repository.settings.block_size}
    return {"job": repository.name, **settings, "revisions": revisions, "damaged": damaged}


def _job_row(repository: Repository) -> tuple[object, ...]:
    history, store = repository.history(), repository.settings.store
    if not history:
        return repository.name, store, 0, "never", "-"
    newest, size = history[-1], format_size(total(history[-1], "size"))
    return repository.name, store, len(history), f"{newest.time:%Y-%m-%d %H:%M:%S}", size


@app.command(epilog="Example: backy diff vm1 1 latest")
def diff(context: Context, job: Job, old: Old, new: New, as_json: AsJson = False) -> None:
    """Show which ranges of its disks changed between two revisions, in whole blocks."""
    from backy.operations.diff import diff as run

    repository = open_repository(context, job)
    before, after = repository.find(old), repository.find(new)
    headings = ("disk", "start", "length", "kind")
    rows = [
        (name, extent.start, extent.length, extent.kind.value)
        for name, extent in run(repository, before, after)
    ]
    extents = [dict(zip(headings, row, strict=True)) for row in rows]
    record = {"job": job, "old": before.id, "new": after.id, "extents": extents}
    answer(as_json, record, table(headings, rows))


@app.command(epilog='Example: cp --sparse=always "$(backy find vm1 -r latest)" disk.img')
def find(
    context: Context, job: Job, spec: Spec = "latest", disk: OneDisk = None, as_json: AsJson = False
) -> None:
    """Print where a disk's plain image (store images) or index (store chunks) is, for scripts."""
    repository = open_repository(context, job)
    revision = repository.find(spec)
    name = disk_of(revision, disk)
    path = repository.store.plain_path(revision, name).absolute()
    if not path.exists():
        raise NotFoundError(f"{job}: {path} is missing", f"Run backy verify {job}.")
    found = {"job": job, "revision": revision.id, "disk": name}
    answer(as_json, found | {"store": repository.settings.store, "path": str(path)}, str(path))
