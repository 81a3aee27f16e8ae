"""backy run: back up now."""

from __future__ import annotations

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer, warn
from backy.model.names import check_job
from backy.operations.site import Site


@app.command(epilog="Example: backy run vm1")
def run(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Back up a job now, before all others.

    The daemon makes the backup. Without a daemon, this command does.
    """
    from backy.clients import daemon_client
    from backy.model.answers import RunAnswer

    site: Site = context.obj
    check_job(job)
    if site.path and daemon_client.run(site.globals.socket, job):
        text = f"{job}: next to start; backy status shows it"
        answer(as_json, RunAnswer(job=job, state="waiting"), text)
        return
    from backy.cli.backup import backup

    site.require(job)
    if not site.path or site.globals.daemon:
        warn(f"backy: {daemon_client.NO_DAEMON}; backing up here")
    backup(context, job, as_json=as_json)
