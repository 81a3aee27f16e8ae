"""backy diff: which ranges changed between two revisions."""

from __future__ import annotations

from typing import Annotated, Literal

from typer import Argument

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer, table
from backy.model.answers import ChangedRange, DiffAnswer
from backy.model.extent import Extent, Kind

Old = Annotated[str, Argument(metavar="REV", help="Revision words for the older revision.")]
New = Annotated[str, Argument(metavar="REV", help="Revision words for the newer revision.")]


@app.command(epilog="Example: backy diff vm1 1 latest")
def diff(context: Context, job: Job, old: Old, new: New, as_json: AsJson = False) -> None:
    """Show which ranges of the disks changed between two revisions. They are whole blocks."""
    from backy.operations.diff import diff as run

    repository = context.obj.repository(job)
    before, after = repository.find(old), repository.find(new)
    ranges = [_range(disk, extent) for disk, extent in run(repository, before, after)]
    record = DiffAnswer(job=job, old=before.id, new=after.id, extents=ranges)
    rows = (
        (extent["disk"], extent["start"], extent["length"], extent["kind"]) for extent in ranges
    )
    answer(as_json, record, table(("disk", "start", "length", "kind"), rows))


def _range(disk: str, extent: Extent) -> ChangedRange:
    kind: Literal["data", "zero"] = "zero" if extent.kind is Kind.ZERO else "data"
    return ChangedRange(disk=disk, start=extent.start, length=extent.length, kind=kind)
