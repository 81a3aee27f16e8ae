"""reports: what was found damaged, and is kept in quarantine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from backy import quarantine
from backy.cli.app import AsJson, Context, Job, app, open_repository
from backy.cli.output import print_json, print_table
from backy.errors import BackyError, ConfigError
from backy.quarantine import Report
from backy.repository import Repository, jobs

reports = typer.Typer(
    help="Show what was found damaged; alone, it lists the reports of all jobs.",
    epilog="Example: backy reports --job vm1",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(reports, name="reports")
ReportId = Annotated[str, typer.Argument(metavar="REPORT", help="The id that backy reports lists.")]
HEADINGS = ("job", "report", "found by", "healed from", "revisions", "what")


@reports.callback()
def _list(
    context: Context,
    job: Annotated[
        str | None, typer.Option(metavar="JOB", help="Only the reports of this job.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    if context.invoked_subcommand:
        return
    found: list[tuple[Repository, Report]] = []
    unusable: list[BackyError] = []
    for name in [job] if job else jobs(context.obj.base):
        try:
            repository = open_repository(context, name)
            found += [(repository, report) for report in quarantine.reports(repository)]
        except BackyError as error:
            if job:
                raise
            unusable.append(error)
    if as_json:
        print_json({"reports": [_record(repository, report) for repository, report in found]})
    else:
        print_table(HEADINGS, (_row(repository, report) for repository, report in found))
    if unusable:
        raise unusable[0]


def _record(repository: Repository, report: Report) -> dict[str, Any]:
    files = [str(path) for path in quarantine.files(repository, report)]
    record = asdict(report) | {"time": f"{report.time:%Y-%m-%dT%H:%M:%SZ}", "files": files}
    return {"job": repository.name, **record}


def _row(repository: Repository, report: Report) -> list[str]:
    return [
        repository.name,
        report.id,
        report.verb,
        report.healed or "-",
        str(len(report.revisions)),
        report.reason,
    ]


@reports.command(epilog="Example: backy reports show vm1 20261123T004938Z-3fa1")
def show(context: Context, job: Job, report_id: ReportId, as_json: AsJson = False) -> None:
    """Show one report: when, where, which revisions, and where the bytes are kept."""
    repository = open_repository(context, job)
    report = quarantine.find(repository, report_id)
    if as_json:
        print_json(_record(repository, report))
        return
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
    print_table(("report", report.id), rows)


@reports.command(epilog="Example: backy reports delete vm1 --healed")
def delete(
    context: Context,
    job: Job,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="REPORT", help="These reports.")
    ] = None,
    healed: Annotated[
        bool, typer.Option("--healed", help="All reports of what was healed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete reports, and the damaged bytes that are kept with them.

    Which ranges of a revision are damaged is recorded in the revision, too, and stays.
    """
    repository = open_repository(context, job)
    unwanted = [quarantine.find(repository, each) for each in dict.fromkeys(ids or [])]
    if healed:
        unwanted += [
            each for each in quarantine.reports(repository) if each.healed and each not in unwanted
        ]
    if not ids and not healed:
        raise ConfigError("no report was named", f"backy reports --job {job} lists them.")
    quarantine.delete(repository, unwanted)
    names = [report.id for report in unwanted]
    if as_json:
        print_json({"job": job, "deleted": names})
    else:
        typer.echo(f"{job}: deleted {', '.join(names) or 'nothing'}")
