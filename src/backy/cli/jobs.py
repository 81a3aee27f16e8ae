"""backy jobs: the configured jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backy.cli.app import AsJson, Context, app
from backy.cli.output import answer, table, warn
from backy.cli.selection import Failed, Names, chosen
from backy.model.answers import JobsAnswer
from backy.operations.site import Site
from backy.repository.listing import jobs

if TYPE_CHECKING:
    from backy.config.settings import Config

_NAMED = {3600: "hourly", 86400: "daily", 604800: "weekly"}
_UNITS = {86400: "d", 3600: "h", 60: "min", 1: "s"}


@app.command("jobs", epilog="Example: backy jobs")
def list_jobs(
    context: Context, names: Names = None, failed: Failed = False, as_json: AsJson = False
) -> None:
    """Show the configured jobs, and the repositories without a job."""
    site: Site = context.obj
    config, is_shown = site.loaded.config, chosen(site, names, failed=failed)
    left = sorted(set(jobs(site.base)) - config.jobs.keys()) if site.base.exists() else []
    left, shown = [*filter(is_shown, left)], [*filter(is_shown, config.jobs)]
    records = {name: config.jobs[name].model_dump(mode="json") for name in shown}
    rows = [_cells(config, name) for name in shown]
    rows += [[name, "-", "not configured", "-", "-"] for name in left]
    lines = table(("job", "schedule", "intervals", "source", "limits"), rows)
    answer(as_json, JobsAnswer(jobs=records, not_configured=left), lines)
    for problem in site.loaded.problems:
        warn(f"backy: warning: {problem}")


def _cells(config: Config, name: str) -> list[str]:
    job = config.jobs[name]
    intervals = [
        f"{_interval(tag, rule.interval)}, {rule.keep} kept"
        for tag, rule in config.intervals(name).items()
    ]
    return [
        name, job.schedule, "; ".join(intervals), str(job.source.get("type")),
        ", ".join(job.limits) or "-",
    ]  # fmt: skip


def _interval(tag: str, seconds: int) -> str:
    """The interval of a tag: "daily", "often: every 5 min"."""
    unit = next(unit for unit in _UNITS if seconds % unit == 0)
    words = _NAMED.get(seconds) or f"every {seconds // unit} {_UNITS[unit]}"
    return words if words == tag else f"{tag}: {words}"
