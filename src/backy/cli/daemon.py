"""The commands that run the jobs, now or from now on, and stop that: with the daemon or without."""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from typer import Option

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer, warn
from backy.clients import daemon_client
from backy.errors import ConfigError, NotFoundError
from backy.model.answers import InitAnswer, PauseAnswer, ResumeAnswer, RunAnswer
from backy.operations.site import Site
from backy.repository import status as statuses
from backy.repository.base import MARKER, mark_base

LogJson = Annotated[bool, Option("--log-json", help="Log one JSON object a line instead of text.")]


@app.command(epilog="Example: backy init")
def init(context: Context, as_json: AsJson = False) -> None:
    """Make the base directory and the file that marks it as mounted.

    The first backup does this as well, unless base-dir-must-be-mounted is set.
    """
    base = context.obj.named_base
    mark_base(base)
    answer(as_json, InitAnswer(base=str(base), marker=MARKER), f"{base}: ready for backups")


@app.command(epilog="Example: backy daemon --log-json")
def daemon(context: Context, log_json: LogJson = False) -> None:
    """Run all configured jobs, until SIGTERM.

    SIGHUP makes it read the configuration again. It stays in the foreground, for systemd or
    another supervisor.
    """
    import asyncio

    from backy.daemon.daemon import Daemon
    from backy.daemon.log import open_log

    site: Site = context.obj
    if not site.globals.daemon:
        why = f"{site.path} says that there is no daemon"
        raise ConfigError(why, "Remove global.daemon, and stop what else starts the backups.")
    asyncio.run(Daemon(site.needed_path(), site.asked, open_log(as_json=log_json)).run())


@app.command(epilog="Example: backy run vm1")
def run(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Back up a job now, before all others.

    The daemon makes the backup. Without a daemon, this command does.
    """
    site: Site = context.obj
    if site.path and daemon_client.run(site.globals.socket, job):
        text = f"{job}: next to start; backy status shows it"
        answer(as_json, RunAnswer(job=job, state="waiting"), text)
        return
    from backy.cli.backup import backup

    site.require(job)
    if not site.path or site.globals.daemon:
        warn(f"backy: {daemon_client.NO_DAEMON}; backing up here")
    backup(context, job, as_json=as_json)


@app.command(epilog="Example: backy pause vm1")
def pause(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Pause a job: start nothing for it until backy resume.

    A running command continues. backy check warns of the pause.
    """
    _pause(context.obj, job, datetime.now(UTC).replace(microsecond=0))
    answer(as_json, PauseAnswer(job=job, state="paused"), f"{job}: paused")


@app.command(epilog="Example: backy resume vm1")
def resume(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Continue a job that backy pause stopped. Missed backups are made up for by one backup."""
    _pause(context.obj, job, None)
    answer(as_json, ResumeAnswer(job=job, state="resumed"), f"{job}: resumed")


def _pause(site: Site, job: str, since: datetime | None) -> None:
    root = site.require(job)
    statuses.update(root, lambda old: replace(old, paused=since and (old.paused or since)))
    if site.path:
        with suppress(NotFoundError):  # the daemon reads status.json when the job is added
            daemon_client.look(site.globals.socket, job)
