"""daemon, status, top, jobs, run, pause, resume: the service, and talking to it.

All but `daemon` work without it, too: then they tell what the repositories and the configuration
say, and `run` does the backup itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from backy.cli.app import AsJson, Context, Job, Site, app
from backy.cli.output import answer, print_json, print_lines, printable, table, warn
from backy.errors import CancelledError, NotFoundError
from backy.model.names import check_job
from backy.repository import status as statuses
from backy.repository.repository import jobs
from backy.repository.summary import facts
from backy.system import signals
from backy.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from backy.config.settings import Config
    from backy.monitoring.overview import Row

_REFRESH_SECONDS = 1.0
_NO_DAEMON = "the daemon is not running"
LogJson = Annotated[bool, Option("--log-json", help="Log a JSON object a line, not text.")]
Once = Annotated[bool, Option("--once", help="Show it once, also on a terminal.")]


@app.command(epilog="Example: backy daemon --log-json")
def daemon(context: Context, log_json: LogJson = False) -> None:
    """Run all jobs as they are configured, until SIGTERM; SIGHUP reads the configuration again.

    It stays in the foreground: systemd, or another supervisor, starts it.
    """
    import asyncio

    from backy.daemon.daemon import Daemon
    from backy.daemon.log import open_log

    site: Site = context.obj
    asyncio.run(Daemon(site.needed_path(), site.asked, open_log(as_json=log_json)).run())


@app.command(epilog="Example: backy status --json")
def status(context: Context, once: Once = False, as_json: AsJson = False) -> None:
    """Show each job: its state, its last and next backup, what is overdue, and what runs.

    On a terminal the table is renewed each second until Ctrl-C.
    """
    _show(context.obj, lambda _: True, once=once, as_json=as_json)


@app.command(epilog="Example: backy top")
def top(context: Context, once: Once = False, as_json: AsJson = False) -> None:
    """Show what runs and what waits, and how full the pools are."""
    states = {"running", "waiting"}
    _show(context.obj, lambda row: row["state"] in states, once=once, as_json=as_json)


def _show(site: Site, is_wanted: Callable[[Row], bool], *, once: bool, as_json: bool) -> None:
    if as_json or once or not sys.stdout.isatty():
        picture = _picture(site, is_wanted)
        answer(as_json, picture, _lines(picture))
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with suppress(CancelledError), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            lines = list(_lines(_picture(site, is_wanted)))[: console.height]
            live.update(Text("\n".join(lines), no_wrap=True), refresh=True)
            signals.sleep(_REFRESH_SECONDS)


def _picture(site: Site, is_wanted: Callable[[Row], bool]) -> dict[str, Any]:
    """What the daemon says, or without it the repositories."""
    reply = site.ask(do="status") if site.path else None
    if not reply:
        reply = {"jobs": list(_rows_without(site)), "problem": _NO_DAEMON}
    return reply | {"jobs": [row for row in reply["jobs"] if is_wanted(row)]}


def _rows_without(site: Site) -> Iterable[Row]:
    from backy.monitoring.overview import row

    config = site.loaded.config if site.path else None
    now = datetime.now(UTC)
    for job in config.jobs if config else jobs(site.base):
        yield row(facts(site.base, job), config.intervals(job) if config else None, now)


def _lines(picture: dict[str, Any]) -> Iterator[str]:
    headings = ("job", "state", "last (UTC)", "next (UTC)", "overdue", "took", "now")
    yield from table(headings, map(_cells, picture["jobs"]))
    yield ""
    for pool, each in picture.get("pools", {}).items():
        yield f"{pool}: {each['in_use']} of {each['slots']} slots, {each['queued']} waiting"
    if problem := picture.get("problem"):
        yield printable(problem)


def _cells(row: Row) -> list[str]:
    state = " ".join(filter(None, (row["state"], row.get("verb"), row.get("pool"))))
    times = ((row[name] or "-").replace("T", " ").rstrip("Z") for name in ("last", "next"))
    overdue, took = row["overdue_seconds"], row["seconds"]
    spans = (format_duration(each) if each else "-" for each in (overdue, took))
    failure = f"{row['errors']} failed: {row['error']}" if row["error"] else "-"
    return [row["job"], state, *times, *spans, _progress(row) or failure]


def _progress(row: Row) -> str:
    if not row.get("total"):
        return format_duration(row["running_seconds"]) if "running_seconds" in row else ""
    share = f"{100 * row['done'] / row['total']:.0f} % of {format_size(row['total'])}"
    return f"{share}, {format_rate(row.get('rate', 0), 1)}"


@app.command("jobs", epilog="Example: backy jobs")
def list_jobs(context: Context, as_json: AsJson = False) -> None:
    """Show the configured jobs, and the repositories that no job has."""
    site: Site = context.obj
    config = site.loaded.config
    left = sorted(set(jobs(site.base)) - config.jobs.keys()) if site.base.exists() else []
    if as_json:
        records = {name: each.model_dump(mode="json") for name, each in config.jobs.items()}
        print_json({"jobs": records, "not_configured": left})
    else:
        rows = [_job_cells(config, name) for name in config.jobs]
        rows += [[name, "-", "not configured", "-", "-"] for name in left]
        print_lines(table(("job", "schedule", "intervals", "source", "limits"), rows))
    for problem in site.loaded.problems:
        warn(f"backy: warning: {problem}")


def _job_cells(config: Config, name: str) -> list[str]:
    job = config.jobs[name]
    intervals = (
        f"{tag} {format_duration(each.interval)} x{each.keep}"
        for tag, each in config.intervals(name).items()
    )
    return [
        name, job.schedule, ", ".join(intervals), str(job.source.get("type")),
        ", ".join(job.limits) or "-",
    ]  # fmt: skip


@app.command(epilog="Example: backy run vm1")
def run(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Have the daemon back up a job now, before all others; without a daemon, do it here."""
    from backy.cli.transfer import backup

    if context.obj.ask(do="run", job=check_job(job)):
        text = f"{job}: goes first; backy status shows it"
        answer(as_json, {"job": job, "state": "waiting"}, text)
    else:
        warn(f"backy: {_NO_DAEMON}; backing up here")
        backup(context, job, as_json=as_json)


@app.command(epilog="Example: backy pause vm1")
def pause(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Start nothing for a job until backy resume; backy check warns of it. What runs goes on."""
    _pause(context.obj, job, datetime.now(UTC).replace(microsecond=0))
    answer(as_json, {"job": job, "state": "paused"}, f"{job}: paused")


@app.command(epilog="Example: backy resume vm1")
def resume(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Go on with a job that backy pause stopped; what was missed is caught up with."""
    _pause(context.obj, job, None)
    answer(as_json, {"job": job, "state": "resumed"}, f"{job}: resumed")


def _pause(site: Site, job: str, since: datetime | None) -> None:
    root = site.base / check_job(job)
    if not site.config_of(job) and not root.exists():
        raise NotFoundError(f"there is no job {job!r}", "backy jobs lists them.")
    statuses.update(root, lambda old: replace(old, paused=since and (old.paused or since)))
    if site.path:
        site.ask(do="look", job=job)
