"""backy status and top: the state of each job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from typer import Option

from backy.cli.app import AsJson, Context, app
from backy.cli.output import answer, format_rate, table
from backy.cli.selection import Failed, Names, overviews
from backy.errors import CancelledError, visible
from backy.operations.site import Site
from backy.system import signals
from backy.units import counted, format_duration, format_size

if TYPE_CHECKING:
    from backy.model.answers import JobOverview, PoolUse, StatusAnswer


_REFRESH_SECONDS = 1.0
Once = Annotated[bool, Option("--once", help="Show it once, even on a terminal.")]


@app.command(epilog="Example: backy status --json")
def status(
    context: Context,
    names: Names = None,
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

    def is_shown(job: JobOverview) -> bool:
        return (not names or job["job"] in names) and (not failed or is_bad(job))

    _show(context.obj, is_shown, once=once, as_json=as_json)


@app.command(epilog="Example: backy top")
def top(context: Context, once: Once = False, as_json: AsJson = False) -> None:
    """Show what runs, what waits, and how many slots are in use."""
    states = {"running", "waiting"}
    _show(context.obj, lambda job: job["state"] in states, once=once, as_json=as_json)


def _show(
    site: Site, is_shown: Callable[[JobOverview], bool], *, once: bool, as_json: bool
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


def _state(site: Site, is_shown: Callable[[JobOverview], bool]) -> StatusAnswer:
    """The state from the daemon, or from the repositories if it does not run."""
    from backy.clients import daemon_client
    from backy.monitoring.overview import urgency

    has_daemon = not site.path or site.globals.daemon
    state = daemon_client.status(site.globals.socket) if site.path and has_daemon else None
    if not state:
        problem = daemon_client.NO_DAEMON if has_daemon else ""
        state = {"jobs": list(overviews(site)), "problem": problem}
    state["jobs"] = sorted(filter(is_shown, state["jobs"]), key=urgency)
    return state


def _lines(state: StatusAnswer) -> Iterator[str]:
    from backy.monitoring.overview import tally

    headings = ("job", "state", "last (UTC)", "next (UTC)", "overdue", "took", "now")
    yield from table(headings, map(_cells, state["jobs"]))
    yield ""
    yield tally(state["jobs"])
    if pools := state.get("pools"):
        yield _pool_line("fast", pools["fast"])
        yield _pool_line("slow", pools["slow"])
    if problem := state["problem"]:
        yield visible(problem)


def _pool_line(name: str, pool: PoolUse) -> str:
    slots = counted(pool["slots"], "slot")
    return f"{name}: {pool['in_use']} of {slots} in use, {pool['queued']} waiting"


def _cells(job: JobOverview) -> list[str]:
    state = " ".join(filter(None, (job["state"], job.get("verb"), job.get("pool"))))
    times = ((time or "-").replace("T", " ").rstrip("Z") for time in (job["last"], job["next"]))
    overdue, took = job["overdue_seconds"], job["seconds"]
    spans = (format_duration(span) if span else "-" for span in (overdue, took))
    failure = f"{job['errors']} failed: {job['error']}" if job["errors"] else job["error"]
    what = "; ".join(filter(None, (_progress(job) or failure, job["damage"])))
    return [job["job"], state, *times, *spans, what or "-"]


def _progress(job: JobOverview) -> str:
    if not (total := job.get("total")):
        return format_duration(job["running_seconds"]) if "running_seconds" in job else ""
    share = f"{100 * job.get('done', 0) / total:.0f} % of {format_size(total)}"
    return f"{share}, {format_rate(job.get('rate', 0), 1)}"
