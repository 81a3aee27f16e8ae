"""The commands that show which jobs there are, how they are, and the revisions of one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from typer import Option

from backy.cli import output
from backy.cli.app import AsJson, Context, Jobs, all_jobs, app, each_job
from backy.cli.output import answer, print_lines, table, warn
from backy.errors import CancelledError, visible
from backy.model import answers
from backy.operations.site import Site
from backy.repository import base as base_directory
from backy.repository.records import revision_record
from backy.repository.repository import History, Repository
from backy.system import signals
from backy.units import counted, format_duration, format_size

if TYPE_CHECKING:
    from backy.config.settings import Config

_NAMED = {3600: "hourly", 86400: "daily", 604800: "weekly"}
_UNITS = {86400: "d", 3600: "h", 60: "min", 1: "s"}
_REFRESH_SECONDS = 1.0
_FAILED = "Only jobs that are late, failed, damaged or unreadable."
Failed = Annotated[bool, Option("--failed", help=_FAILED)]
Once = Annotated[bool, Option("--once", help="Show it once, even on a terminal.")]


@app.command("list", epilog="Example: backy list vm1")
def list_(
    context: Context, jobs: Jobs = None, failed: Failed = False, as_json: AsJson = False
) -> None:
    """Show the revisions of a job, or all jobs."""
    job = jobs[0] if jobs and len(jobs) == 1 and not failed else None
    names = [job] if job else all_jobs(context)
    is_shown = _chosen(context.obj, [] if job else jobs, failed=failed)
    names = [*filter(is_shown, names)]
    items, rows = output.Listing("jobs"), list[tuple[object, ...]]()

    def show(name: str) -> None:
        repository = context.obj.repository(name)
        history = repository.history()
        for text in _warnings(repository, history):
            warn(text)
        if as_json:
            items.add(_listed(repository, history))
        elif job:
            print_lines(output.revision_table(history.revisions))
        else:
            rows.append(_list_row(repository, history))

    unusable = each_job(names, show)
    if job and unusable:
        raise unusable[0][1]
    if not names and not failed:
        warn(f"backy: there is no repository in {context.obj.base}")
    if as_json:
        items.end(
            unusable=[answers.UnusableJob(job=name, error=str(each)) for name, each in unusable]
        )
    elif not job:
        print_lines(table(("job", "store", "revisions", "newest (UTC)", "size"), rows))
    for _, error in unusable:
        raise error


def _chosen(site: Site, names: Sequence[str] | None, *, failed: bool) -> Callable[[str], bool]:
    """Whether a job is to be shown. Raises NotFoundError if one of `names` does not exist."""
    for name in names or []:
        site.require(name)
    bad = set[str]()
    if failed:
        from backy.monitoring.overview import is_bad

        bad = {each["job"] for each in _overviews(site) if is_bad(each)}
    return lambda job: (not names or job in names) and (not failed or job in bad)


def _overviews(site: Site) -> Iterator[answers.JobOverview]:
    """Each configured job, or each repository if there is no configuration, as the disk has it."""
    from backy.monitoring.overview import overview
    from backy.repository.summary import summarize

    config = site.loaded.config if site.path else None
    now = datetime.now(UTC)
    for job in config.jobs if config else base_directory.jobs(site.base):
        schedule = config.intervals(job) if config else None
        yield overview(summarize(site.base, job, now), schedule, now)


def _warnings(repository: Repository, history: History) -> Iterator[str]:
    yield from (f"{repository.name}: warning: {text}" for text in history.problems)
    if history.unreadable and not history.revisions:
        yield f"  {next(iter(history.unreadable.values())).hint}"


def _listed(repository: Repository, history: History) -> answers.ListedJob:
    return answers.ListedJob(
        job=repository.name,
        store=repository.settings.store,
        block_size=repository.settings.block_size,
        revisions=[revision_record(revision) for revision in history.revisions],
        damaged=history.problems,
    )


def _list_row(repository: Repository, history: History) -> tuple[object, ...]:
    revisions, store = history.revisions, repository.settings.store
    if not revisions:
        return repository.name, store, 0, "never", "-"
    newest, size = revisions[-1], format_size(output.total(revisions[-1], "size"))
    return repository.name, store, len(revisions), f"{newest.time:%Y-%m-%d %H:%M:%S}", size


@app.command("jobs", epilog="Example: backy jobs")
def list_jobs(
    context: Context, names: Jobs = None, failed: Failed = False, as_json: AsJson = False
) -> None:
    """Show the configured jobs, and the repositories without a job."""
    site: Site = context.obj
    config, is_shown = site.loaded.config, _chosen(site, names, failed=failed)
    left = base_directory.jobs(site.base, known=config.jobs) if site.base.exists() else []
    left, shown = [*filter(is_shown, left)], [*filter(is_shown, config.jobs)]
    records = {name: config.jobs[name].model_dump(mode="json") for name in shown}
    rows = [_configured_row(config, name) for name in shown]
    rows += [[name, "-", "not configured", "-", "-"] for name in left]
    lines = table(("job", "schedule", "intervals", "source", "limits"), rows)
    answer(as_json, answers.JobsAnswer(jobs=records, not_configured=left), lines)
    for problem in site.loaded.problems:
        warn(f"backy: warning: {problem}")


def _configured_row(config: Config, name: str) -> list[str]:
    job = config.jobs[name]
    intervals = [
        f"{_interval(tag, rule.interval)}, {rule.keep} kept"
        for tag, rule in config.intervals(name).items()
    ]
    source, limits = str(job.source.get("type")), ", ".join(job.limits) or "-"
    return [name, job.schedule, "; ".join(intervals), source, limits]


def _interval(tag: str, seconds: int) -> str:
    """The interval of a tag: "daily", "often: every 5 min"."""
    unit = next(unit for unit in _UNITS if seconds % unit == 0)
    words = _NAMED.get(seconds) or f"every {seconds // unit} {_UNITS[unit]}"
    return words if words == tag else f"{tag}: {words}"


@app.command(epilog="Example: backy status --json")
def status(
    context: Context,
    names: Jobs = None,
    failed: Failed = False,
    once: Once = False,
    as_json: AsJson = False,
) -> None:
    """Show the state of each job, its backups, and what runs now.

    The worst jobs come first. On a terminal the table is updated every second, until Ctrl-C.
    """
    from backy.monitoring.overview import is_bad

    for name in names or []:
        context.obj.require(name)

    def is_shown(job: answers.JobOverview) -> bool:
        return (not names or job["job"] in names) and (not failed or is_bad(job))

    _show(context.obj, is_shown, once=once, as_json=as_json)


@app.command(epilog="Example: backy top")
def top(context: Context, once: Once = False, as_json: AsJson = False) -> None:
    """Show what runs, what waits, and how many slots are in use."""
    states = {"running", "waiting"}
    _show(context.obj, lambda job: job["state"] in states, once=once, as_json=as_json)


def _show(
    site: Site, is_shown: Callable[[answers.JobOverview], bool], *, once: bool, as_json: bool
) -> None:
    if as_json or once or not sys.stdout.isatty():
        state = _state(site, is_shown)
        answer(as_json, state, _lines(state))
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with suppress(CancelledError), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            lines = list(_lines(_state(site, is_shown)))[: console.height]
            live.update(Text("\n".join(lines), no_wrap=True), refresh=True)
            signals.sleep(_REFRESH_SECONDS)


def _state(site: Site, is_shown: Callable[[answers.JobOverview], bool]) -> answers.StatusAnswer:
    """The state from the daemon, or from the repositories if it does not run."""
    from backy.clients import daemon_client
    from backy.monitoring.overview import urgency

    has_daemon = not site.path or site.globals.daemon
    state = daemon_client.status(site.globals.socket) if site.path and has_daemon else None
    if not state:
        problem = daemon_client.NO_DAEMON if has_daemon else ""
        state = {"jobs": list(_overviews(site)), "problem": problem}
    state["jobs"] = sorted(filter(is_shown, state["jobs"]), key=urgency)
    return state


def _lines(state: answers.StatusAnswer) -> Iterator[str]:
    from backy.monitoring.overview import tally

    headings = ("job", "state", "last (UTC)", "next (UTC)", "overdue", "took", "now")
    yield from table(headings, map(_status_row, state["jobs"]))
    yield ""
    yield tally(state["jobs"])
    if pools := state.get("pools"):
        for name, pool in (("fast", pools["fast"]), ("slow", pools["slow"])):
            slots = counted(pool["slots"], "slot")
            yield f"{name}: {pool['in_use']} of {slots} in use, {pool['queued']} waiting"
    if problem := state["problem"]:
        yield visible(problem)


def _status_row(job: answers.JobOverview) -> list[str]:
    state = " ".join(filter(None, (job["state"], job.get("verb"), job.get("pool"))))
    times = ((time or "-").replace("T", " ").rstrip("Z") for time in (job["last"], job["next"]))
    overdue, took = job["overdue_seconds"], job["seconds"]
    spans = (format_duration(span) if span else "-" for span in (overdue, took))
    failure = f"{job['errors']} failed: {job['error']}" if job["errors"] else job["error"]
    what = "; ".join(filter(None, (_progress(job) or failure, job["damage"])))
    return [job["job"], state, *times, *spans, what or "-"]


def _progress(job: answers.JobOverview) -> str:
    if not (total := job.get("total")):
        return format_duration(job["running_seconds"]) if "running_seconds" in job else ""
    share = f"{100 * job.get('done', 0) / total:.0f} % of {format_size(total)}"
    return f"{share}, {output.format_rate(job.get('rate', 0), 1)}"
