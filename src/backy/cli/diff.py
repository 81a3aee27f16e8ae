"""backy diff: which ranges changed between two revisions."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer, table

Old = Annotated[str, Argument(metavar="REV", help="Revision words for the older one.")]
New = Annotated[str, Argument(metavar="REV", help="Revision words for the newer one.")]


@app.command(epilog="Example: backy diff vm1 1 latest")
def diff(context: Context, job: Job, old: Old, new: New, as_json: AsJson = False) -> None:
    """Show which ranges of the disks changed between two revisions. They are whole blocks."""
    from backy.operations.diff import diff as run

    repository = context.obj.repository(job)
    before, after = repository.find(old), repository.find(new)
    headings = ("disk", "start", "length", "kind")
    rows = [
        (name, extent.start, extent.length, extent.kind.value)
        for name, extent in run(repository, before, after)
    ]
    extents = [dict(zip(headings, row, strict=True)) for row in rows]
    record = {"job": job, "old": before.id, "new": after.id, "extents": extents}
    answer(as_json, record, table(headings, rows))
