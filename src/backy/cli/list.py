"""backy list: jobs, and the revisions of one."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from backy.cli import values
from backy.cli.app import AsJson, Context, all_jobs, app, each_job
from backy.cli.output import print_json, print_lines, revision_table, table, total, warn
from backy.model.answers import ListAnswer, ListedJob, UnusableJob
from backy.repository.manifest import revision_record
from backy.repository.repository import History, Repository
from backy.units import format_size

Listed = Annotated[
    str | None,
    Argument(parser=values.job, metavar="JOB", help="Only this job, with its revisions."),
]


@app.command("list", epilog="Example: backy list vm1")
def list_(context: Context, job: Listed = None, as_json: AsJson = False) -> None:
    """Show the revisions of a job, or all jobs."""
    names = [job] if job else all_jobs(context)
    repositories, unusable = each_job(context, names, lambda repository: repository)
    if job and unusable:
        raise unusable[0][1]
    histories = [(repository, repository.history()) for repository in repositories]
    if not names:
        warn(f"backy: there is no repository in {context.obj.base}")
    if as_json:
        listed = [_listed(*pair) for pair in histories]
        errors = [UnusableJob(job=name, error=error.message) for name, error in unusable]
        print_json(ListAnswer(jobs=listed, unusable=errors))
    elif job:
        print_lines(revision_table(histories[0][1].revisions))
    else:
        headings = ("job", "store", "revisions", "newest (UTC)", "size")
        print_lines(table(headings, (_job_row(*pair) for pair in histories)))
    for repository, history in histories:
        for damage in history.unreadable.values():
            warn(f"{repository.name}: warning: {damage.message}")
        if history.unreadable and not history.revisions:
            warn(f"  {next(iter(history.unreadable.values())).hint}")
    for _, error in unusable:
        raise error


def _listed(repository: Repository, history: History) -> ListedJob:
    return ListedJob(
        job=repository.name,
        store=repository.settings.store,
        block_size=repository.settings.block_size,
        revisions=[revision_record(revision) for revision in history.revisions],
        damaged=[error.message for error in history.unreadable.values()],
    )


def _job_row(repository: Repository, history: History) -> tuple[object, ...]:
    revisions, store = history.revisions, repository.settings.store
    if not revisions:
        return repository.name, store, 0, "never", "-"
    newest, size = revisions[-1], format_size(total(revisions[-1], "size"))
    return repository.name, store, len(revisions), f"{newest.time:%Y-%m-%d %H:%M:%S}", size
