"""backy check: the plug-in for Nagios."""

import gc
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from backy.cli.app import Context, app
from backy.clients import daemon_client
from backy.errors import ConfigError, NotFoundError, StoreError, UsageError
from backy.monitoring import overview
from backy.monitoring.health import Judge, Promise, Server
from backy.monitoring.space import space
from backy.operations.site import Site
from backy.repository.base import NotMountedError, jobs, require_base
from backy.repository.summary import summarize

_SLA = "Age allowed for the newest revision, in intervals."


@app.command(epilog="Example: backy check --job '^vm'")
def check(
    context: Context,
    job: Annotated[str, Option(metavar="REGEX", help="Only jobs whose names match.")] = "",
    sla: Annotated[float, Option(min=0.01, help=_SLA)] = 1.5,
    failed: Annotated[int, Option(min=1, help="Warn after this many failures in a row.")] = 3,
    free_warning: Annotated[float, Option(help="Warn below this percentage of free space.")] = 10,
    free_critical: Annotated[float, Option(help="The same for critical.")] = 3,
    days_warning: Annotated[float, Option(help="Warn if the space is used up in fewer days.")] = 14,
    days_critical: Annotated[float, Option(help="The same for critical.")] = 3,
) -> None:
    """Check the backups, as a plug-in for Nagios, Icinga or Checkmk.

    It prints one line with performance data, then a line for each bad job. The exit codes are 0 OK,
    1 WARNING, 2 CRITICAL and 3 UNKNOWN. It is OK only if everything could be checked.
    """
    gc.disable()  # the values of ten thousand jobs hold no garbage worth looking for
    try:
        pattern = re.compile(job)
    except re.error as error:
        why = f"--job {job!r} is not a regular expression: {error}"
        raise UsageError(why, "Write --job '^vm[0-9]+$', for example.") from error
    now = datetime.now(UTC)
    judge = Judge(now, sla, failed, free_warning, free_critical, days_warning, days_critical)
    try:
        promises, server, base = _ask(context.obj)
    except NotMountedError as error:
        typer.echo(f"BACKY CRITICAL - {error.message}")
        raise typer.Exit(2) from error
    wanted = {name: promise for name, promise in promises.items() if pattern.search(name)}
    code, text = judge.report((summarize(base, name, now) for name in wanted), wanted, server)
    typer.echo(text, nl=False)
    raise typer.Exit(code)


def _ask(site: Site) -> tuple[dict[str, Promise], Server, Path]:
    """The promises of each job from the daemon, or from the configuration without one."""
    reply, problem, is_running = None, "", None
    try:
        has_daemon = site.globals.daemon
        reply = daemon_client.promises(site.globals.socket) if has_daemon else None
        is_running = reply is not None or not has_daemon
    except (ConfigError, NotFoundError, StoreError) as error:
        problem = error.message
    if not reply:
        problem = problem or "; ".join(map(str, site.loaded.problems))
        promised = overview.promised(site.loaded.config)
        reply = {"jobs": promised, "problem": problem, "base": str(site.base)}
    base = Path(reply["base"])
    promises = {job: Promise(*promise) for job, promise in reply["jobs"].items()}
    left = None
    with suppress(StoreError):
        left = space(base)
    if is_running:
        require_base(base)  # which the daemon has marked
    unknown = jobs(base, known=promises) if base.exists() else []
    told = (reply.get("broken", {}), reply.get("slow", {}))
    return promises, Server(is_running, left, reply["problem"], unknown, *told), base
