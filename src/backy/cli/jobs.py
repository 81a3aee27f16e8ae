"""backy jobs: what is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backy.cli.app import AsJson, Context, app
from backy.cli.output import print_json, print_lines, table, warn
from backy.operations.site import Site
from backy.repository.repository import jobs
from backy.units import format_duration

if TYPE_CHECKING:
    from backy.config.settings import Config


@app.command("jobs", epilog="Example: backy jobs")
def list_jobs(context: Context, as_json: AsJson = False) -> None:
    """Show the configured jobs, and the repositories without a job."""
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
