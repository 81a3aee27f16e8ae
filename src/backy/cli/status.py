"""backy status and top: how each job is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from backy.cli.app import NO_DAEMON, AsJson, Context, app, ask_daemon
from backy.cli.output import answer, printable, table
from backy.errors import CancelledError
from backy.operations.site import Site
from backy.repository.repository import jobs
from backy.repository.summary import summarize
from backy.system import signals
from backy.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from backy.monitoring.overview import Row


_REFRESH_SECONDS = 1.0
Once = Annotated[bool, Option("--once", help="Show it once, also on a terminal.")]


@app.command(epilog="Example: backy status --json")
def status(context: Context, once: Once = False, as_json: AsJson = False) -> None:
    """Show the state of each job, its backups, and what runs now.

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
    reply = ask_daemon(site, do="status") if site.path else None
    if not reply:
        reply = {"jobs": list(_rows_without(site)), "problem": NO_DAEMON}
    return reply | {"jobs": [row for row in reply["jobs"] if is_wanted(row)]}


def _rows_without(site: Site) -> Iterable[Row]:
    from backy.monitoring.overview import row

    config = site.loaded.config if site.path else None
    now = datetime.now(UTC)
    for job in config.jobs if config else jobs(site.base):
        yield row(summarize(site.base, job), config.intervals(job) if config else None, now)


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
