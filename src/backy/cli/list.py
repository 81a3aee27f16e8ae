"""backy list: jobs, and the revisions of one."""

from __future__ import annotations

from collections.abc import Iterator

from backy.cli.app import AsJson, Context, all_jobs, app, each_job
from backy.cli.output import Listing, print_lines, revision_table, table, total, warn
from backy.cli.selection import Failed, Names, chosen
from backy.model.answers import ListedJob, UnusableJob
from backy.repository.records import revision_record
from backy.repository.repository import History, Repository
from backy.units import format_size


@app.command("list", epilog="Example: backy list vm1")
def list_(
    context: Context, jobs: Names = None, failed: Failed = False, as_json: AsJson = False
) -> None:
    """Show the revisions of a job, or all jobs."""
    job = jobs[0] if jobs and len(jobs) == 1 and not failed else None
    names = [job] if job else _names(context, jobs, failed=failed)
    listing, rows = Listing("jobs"), list[tuple[object, ...]]()

    def show(repository: Repository) -> None:
        history = repository.history()
        for text in _warnings(repository, history):
            warn(text)
        if as_json:
            listing.add(_listed(repository, history))
        elif job:
            print_lines(revision_table(history.revisions))
        else:
            rows.append(_job_row(repository, history))

    _, unusable = each_job(context, names, show)
    if job and unusable:
        raise unusable[0][1]
    if not names and not failed:
        warn(f"backy: there is no repository in {context.obj.base}")
    if as_json:
        listing.end(unusable=[UnusableJob(job=name, error=each.message) for name, each in unusable])
    elif not job:
        print_lines(table(("job", "store", "revisions", "newest (UTC)", "size"), rows))
    for _, error in unusable:
        raise error


def _names(context: Context, jobs: Names, *, failed: bool) -> list[str]:
    names = all_jobs(context)
    is_shown = chosen(context.obj, jobs, failed=failed) if jobs or failed else names.__contains__
    return list(filter(is_shown, names))


def _warnings(repository: Repository, history: History) -> Iterator[str]:
    yield from (f"{repository.name}: warning: {text}" for text in history.problems)
    if history.unreadable and not history.revisions:
        yield f"  {next(iter(history.unreadable.values())).hint}"


def _listed(repository: Repository, history: History) -> ListedJob:
    return ListedJob(
        job=repository.name,
        store=repository.settings.store,
        block_size=repository.settings.block_size,
        revisions=[revision_record(revision) for revision in history.revisions],
        damaged=history.problems,
    )


def _job_row(repository: Repository, history: History) -> tuple[object, ...]:
    revisions, store = history.revisions, repository.settings.store
    if not revisions:
        return repository.name, store, 0, "never", "-"
    newest, size = revisions[-1], format_size(total(revisions[-1], "size"))
    return repository.name, store, len(revisions), f"{newest.time:%Y-%m-%d %H:%M:%S}", size
