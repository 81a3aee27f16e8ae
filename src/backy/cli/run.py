"""backy run: back up now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backy.cli.app import NO_DAEMON, AsJson, Context, Job, app, ask_daemon
from backy.cli.output import answer, warn
from backy.model.names import check_job

if TYPE_CHECKING:
    pass


@app.command(epilog="Example: backy run vm1")
def run(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Back up a job now, before all others.

    The daemon does it; without a daemon it is done here.
    """
    from backy.cli.backup import backup

    if ask_daemon(context.obj, do="run", job=check_job(job)):
        text = f"{job}: goes first; backy status shows it"
        answer(as_json, {"job": job, "state": "waiting"}, text)
    else:
        warn(f"backy: {NO_DAEMON}; backing up here")
        backup(context, job, as_json=as_json)
