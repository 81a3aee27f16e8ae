"""backy reports: damage that was found, and the damaged bytes in quarantine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, Job, all_jobs, app, each_job
from backy.cli.command import Application
from backy.cli.output import Listing, answer, print_lines, table
from backy.cli.program import CommandGroup
from backy.errors import UsageError, visible
from backy.model.answers import ReportsDeleteAnswer
from backy.model.messages import OccurrenceRecord, ReportRecord, time_text
from backy.repository import quarantine_reports
from backy.repository.repository import Repository
from backy.units import listed

if TYPE_CHECKING:
    from backy.repository.quarantine import Report


class _Reports(CommandGroup):
    """If the first argument is no command, it is the job whose reports are listed."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - typer's
        """The command that `args` begin with."""
        if args[0] not in self.commands:
            args = ["list", *(["--json"] if ctx.params["as_json"] else []), *args]
        return super().resolve_command(ctx, args)


reports = Application(
    cls=_Reports,
    help="Show the damage that was found. Alone, it lists the reports of all jobs, or of one.",
    epilog="Example: backy reports vm1",
    subcommand_metavar="[JOB] | COMMAND [ARGS]...",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(reports, name="reports")
_JOB = "Only the reports of this job."
OneJob = Annotated[str | None, Argument(parser=values.job, metavar="JOB", help=_JOB)]
ReportId = Annotated[str, Argument(metavar="REPORT", help="The id that backy reports lists.")]
Ids = Annotated[list[str] | None, Argument(metavar="REPORT", help="These reports.")]
Healed = Annotated[bool, Option("--healed", help="All reports of damage that was healed.")]
HEADINGS = ("job", "report", "found by", "healed from", "revisions", "what")


@reports.callback()
def _all(context: Context, as_json: AsJson = False) -> None:
    if not context.invoked_subcommand:
        list_reports(context, as_json=as_json)


@reports.command("list", hidden=True, epilog="Example: backy reports list vm1")
def list_reports(context: Context, job: OneJob = None, as_json: AsJson = False) -> None:
    """Show the damage that was found. Alone, it lists the reports of all jobs, or of one."""
    listing, rows = Listing("reports"), list[tuple[object, ...]]()

    def show(repository: Repository) -> None:
        for report in quarantine_reports.reports(repository):
            if as_json:
                listing.add(_record(repository, report))
            else:
                rows.append(_row(repository, report))

    _, unusable = each_job(context, [job] if job else all_jobs(context), show)
    if unusable and job:
        raise unusable[0][1]
    if as_json:
        listing.end()
    else:
        print_lines(table(HEADINGS, rows))
    for _, error in unusable:
        raise error


def _row(repository: Repository, report: Report) -> tuple[object, ...]:
    healed, reason = visible(report.healed or "-"), visible(report.reason)
    return repository.name, report.id, report.verb, healed, len(report.revisions), reason


def _record(repository: Repository, report: Report) -> ReportRecord:
    return ReportRecord(
        job=repository.name,
        id=report.id,
        time=time_text(report.time),
        verb=report.verb,
        digest=report.digest,
        reason=report.reason,
        revisions=report.revisions,
        occurrences=[
            OccurrenceRecord(
                revision=place.revision, disk=place.disk, start=place.start, length=place.length
            )
            for place in report.occurrences
        ],
        healed=report.healed,
        files=[str(path) for path in quarantine_reports.files(repository, report)],
    )


@reports.command(epilog="Example: backy reports show vm1 20261123T004938Z-3fa1")
def show(context: Context, job: Job, report_id: ReportId, as_json: AsJson = False) -> None:
    """Show one report: when and where damage was found."""
    repository = context.obj.repository(job)
    report = quarantine_reports.find(repository, report_id)
    rows = [
        ("found", f"{report.time:%Y-%m-%d %H:%M:%S} UTC by {report.verb}"),
        ("what", report.reason),
        ("hash", report.digest),
        ("healed", f"from {report.healed}" if report.healed else "no"),
    ]
    for place in report.occurrences:
        end = place.start + place.length
        rows.append(("affects", f"{place.revision} {place.disk} bytes {place.start} to {end}"))
    rows += [("kept", str(path)) for path in quarantine_reports.files(repository, report)]
    answer(as_json, _record(repository, report), table(("report", report.id), rows))


@reports.command(epilog="Example: backy reports delete vm1 --healed")
def delete(
    context: Context, job: Job, ids: Ids = None, healed: Healed = False, as_json: AsJson = False
) -> None:
    """Delete reports, and the damaged bytes that are kept with them.

    The damaged ranges stay recorded in their revisions.
    """
    if not ids and not healed:
        raise UsageError(f"{job}: no report was named", f"backy reports {job} lists them.")
    repository = context.obj.repository(job)
    unwanted = [quarantine_reports.find(repository, report_id).id for report_id in ids or []]
    if healed:
        unwanted += [
            report.id for report in quarantine_reports.reports(repository) if report.healed
        ]
    unwanted = list(dict.fromkeys(unwanted))
    quarantine_reports.delete(repository, unwanted)
    text = f"{job}: deleted {listed(unwanted, 'report') or 'nothing'}"
    answer(as_json, ReportsDeleteAnswer(job=job, deleted=unwanted), text)
