"""backy pause and resume."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer
from backy.errors import NotFoundError
from backy.model.answers import PauseAnswer, ResumeAnswer
from backy.operations.site import Site
from backy.repository import status as statuses


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
    from backy.clients import daemon_client

    root = site.require(job)
    statuses.update(root, lambda old: replace(old, paused=since and (old.paused or since)))
    if site.path:
        with suppress(NotFoundError):  # the daemon reads status.json when the job is added
            daemon_client.look(site.globals.socket, job)
