"""backy remove: move revisions to the trash."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from backy.cli.app import AsJson, Context, Job, Spec, app
from backy.cli.output import answer
from backy.model.answers import RemoveAnswer
from backy.units import listed

_VERBOSE = "Name each revision, however many there are."
Verbose = Annotated[bool, Option("-v", "--verbose", help=_VERBOSE)]


@app.command(epilog="Example: backy remove vm1 -r 20261123T004938Z-x7k2")
def remove(
    context: Context, job: Job, spec: Spec, verbose: Verbose = False, as_json: AsJson = False
) -> None:
    """Move revisions to the trash. backy undo brings them back, backy purge frees their space."""
    from backy.operations.history import remove_job

    ids = [revision.id for revision in remove_job(context.obj, job, spec)]
    each = [f"{job}: {revision}" for revision in ids] if verbose else []
    text = f"{job}: removed {listed(ids, 'revision')}; backy undo {job} brings them back"
    answer(as_json, RemoveAnswer(job=job, removed=ids), [*each, text])
