"""reports: what was found damaged, and is kept in quarantine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from typer import Argument, Option

from backy.cli.app import AsJson, Context, Job, app, each_job
from backy.cli.output import answer, table
from backy.errors import ConfigError
from backy.repository import quarantine
from backy.repository.quarantine import Report
from backy.repository.repository import Repository, jobs

reports = typer.Typer(
    help="Show what was found damaged. Alone, it lists the reports of all jobs.",
    epilog="Example: backy reports --job vm1",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(reports, name="reports")
OneJob = Annotated[str | None, Option(metavar="JOB", help="Only the reports of this job.")]
ReportId = Annotated[str, Argument(metavar="REPORT", help="The id that backy reports lists.")]
Ids = Annotated[list[str] | None, Argument(metavar="REPORT", help="These reports.")]
Healed = Annotated[bool, Option("--healed", help="All reports of what was healed.")]
HEADINGS = ("job", "report", "found by", "healed from", "revisions", "what")


@reports.callback()
def _list(context: Context, job: OneJob = None, as_json: AsJson = False) -> None:
    if context.invoked_subcommand:
        return
    found, unusable = each_job(context, [job] if job else jobs(context.obj.base), _reports)
    if unusable and job:
        raise unusable[0][1]
    listed = [each for of_job in found for each in of_job]
    records = [_record(repository, report) for repository, report in listed]
    rows = (
        (of.name, each.id, each.verb, each.healed or "-", len(each.revisions), each.reason)
        for of, each in listed
    )
    answer(as_json, {"reports": records}, table(HEADINGS, rows))
    for _, error in unusable:
        raise error


def _reports(repository: Repository) -> list[tuple[Repository, Report]]:
    return [(repository, report) for report in quarantine.reports(repository)]


def _record(repository: Repository, report: Report) -> dict[str, Any]:
    files = [str(path) for path in quarantine.files(repository, report)]
    record = asdict(report) | {"time": f"{report.time:%Y-%m-%dT%H:%M:%SZ}", "files": files}
    return {"job": repository.name, **record}


@reports.command(epilog="Example: backy reports show vm1 20261123T004938Z-3fa1")
def show(context: Context, job: Job, report_id: ReportId, as_json: AsJson = False) -> None:
    """Show one report: when, where, which revisions, and where the bytes are kept."""
    repository = context.obj.repository(job)
    report = quarantine.find(repository, report_id)
    rows = [
        ("found", f"{report.time:%Y-%m-%d %H:%M:%S} UTC by {report.verb}"),
        ("what", report.reason),
        ("hash", report.digest),
        ("healed", f"from {report.healed}" if report.healed else "no"),
    ]
    for each in report.occurrences:
        end = each.start + each.length
        rows.append(("affects", f"{each.revision} {each.disk} bytes {each.start} to {end}"))
    rows += [("kept", str(path)) for path in quarantine.files(repository, report)]
    answer(as_json, _record(repository, report), table(("report", report.id), rows))


@reports.command(epilog="Example: backy reports delete vm1 --healed")
def delete(
    context: Context, job: Job, ids: Ids = None, healed: Healed = False, as_json: AsJson = False
) -> None:
    """Delete reports, and the damaged bytes that are kept with them.

    Which ranges of a revision are damaged is recorded in the revision, too, and stays.
    """
    repository = context.obj.repository(job)
    unwanted = [quarantine.find(repository, each) for each in dict.fromkeys(ids or [])]
    if healed:
        unwanted += [
            each for each in quarantine.reports(repository) if each.healed and each not in unwanted
        ]
    if not ids and not healed:
        raise ConfigError("no report was named", f"backy reports --job {job} lists them.")
    quarantine.delete(repository, unwanted)
    names = [report.id for report in unwanted]
    text = f"{job}: deleted {', '.join(names) or 'nothing'}"
    answer(as_json, {"job": job, "deleted": names}, text)
