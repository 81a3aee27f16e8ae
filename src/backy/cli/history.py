"""backy history: the restores of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer, table
from backy.model.answers import HistoryAnswer, KeptRestore
from backy.units import format_duration, format_size

if TYPE_CHECKING:
    from backy.repository.restores import RestoreRecord


@app.command(epilog="Example: backy history vm1")
def history(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Show the restores of a job: what, where to, who asked, and how they ended."""
    from backy.repository.records import json_of
    from backy.repository.restores import read_restores

    records = read_restores(context.obj.repository(job).root)
    kept = [KeptRestore(**json_of(record)) for record in records]  # type: ignore[typeddict-item]
    headings = ("time (UTC)", "revision", "data", "written", "took", "result", "targets", "by")
    rows = table(headings, map(_row, records))
    answer(as_json, HistoryAnswer(job=job, restores=kept), rows)


def _row(record: RestoreRecord) -> tuple[str, ...]:
    return (
        f"{record.time:%Y-%m-%d %H:%M:%S}",
        record.revision,
        format_size(record.data),
        format_size(record.written),
        format_duration(record.seconds),
        record.result,
        record.targets,
        record.asked_by,
    )
