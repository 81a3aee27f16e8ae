"""check: what monitoring asks."""

from __future__ import annotations

import gc
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from backy.cli.app import Context, app
from backy.errors import BackyError, StoreError
from backy.operations.site import Site
from backy.repository.repository import jobs
from backy.repository.summary import summarize

if TYPE_CHECKING:
    from backy.model.answers import PromisesReply
    from backy.monitoring.health import Promise, Server


@app.command(epilog="Example: backy check --job '^vm'")
def check(
    context: Context,
    job: Annotated[str, Option(metavar="REGEX", help="Only jobs whose name it is found in.")] = "",
    sla: Annotated[
        float, Option(min=0.01, help="How old the newest revision may be, in intervals.")
    ] = 1.5,
    failed: Annotated[int, Option(min=1, help="Failures in a row that are worth a warning.")] = 3,
    free_warning: Annotated[float, Option(help="Percent of space left: warn below.")] = 10,
    free_critical: Annotated[float, Option(help="Percent of space left: critical.")] = 3,
    days_warning: Annotated[float, Option(help="Days until it is full: warn below.")] = 14,
    days_critical: Annotated[float, Option(help="Days until it is full: critical.")] = 3,
) -> None:
    """Tell Nagios, Icinga or Checkmk how the backups are.

    It prints one line with perfdata, then a line for each bad job. Exit codes are theirs: 0 OK,
    1 WARNING, 2 CRITICAL, 3 UNKNOWN. What cannot be told is never OK.
    """
    gc.disable()  # among the values of ten thousand jobs there is no garbage to look for
    from backy.monitoring.health import Judge, unknown

    try:
        pattern = re.compile(job)
        judge = Judge(
            datetime.now(UTC), sla, failed, free_warning, free_critical, days_warning, days_critical
        )
        promises, server, base = _ask(context.obj)
        wanted = {name: each for name, each in promises.items() if pattern.search(name)}
        code, text = judge.report((summarize(base, name) for name in wanted), wanted, server)
    except re.error as error:
        code, text = unknown(f"--job {job!r} is no regular expression: {error}")
    except BackyError as error:
        code, text = unknown(f"{error.message} {error.hint}")
    except Exception as error:  # noqa: BLE001 - monitoring must hear of a bug, too
        code, text = unknown(f"a bug: {error!r}")
    typer.echo(text, nl=False)
    raise typer.Exit(code)


def _ask(site: Site) -> tuple[dict[str, Promise], Server, Path]:
    """The promises of each job, by the daemon; without a daemon, by the configuration."""
    from backy.clients import daemon as client
    from backy.monitoring.health import Promise, Server
    from backy.monitoring.space import space

    reply, problem, is_running = None, "", None
    try:
        reply = client.promises(site.globals.socket)
        is_running = reply is not None
    except StoreError as error:
        problem = error.message
    if not reply:
        reply = _configured(site, problem)
    base = Path(reply["base"])
    promises = {job: Promise(*promise) for job, promise in reply["jobs"].items()}
    left = None
    with suppress(StoreError):
        left = space(base)
    unknown = sorted(set(jobs(base)) - promises.keys())
    return promises, Server(is_running, left, reply["problem"], unknown), base


def _configured(site: Site, problem: str) -> PromisesReply:
    """What the daemon would reply if it read the configuration now."""
    from backy.monitoring.overview import promised

    loaded = site.loaded
    problem = problem or "; ".join(map(str, loaded.problems))
    return {"jobs": promised(loaded.config), "problem": problem, "base": str(site.base)}
