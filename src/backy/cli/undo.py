"""backy undo: bring back removed revisions."""

from __future__ import annotations

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer
from backy.model.answers import UndoAnswer
from backy.units import listed


@app.command(epilog="Example: backy undo vm1")
def undo(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Bring back what the last remove or expire took away."""
    from backy.operations.history import undo_job

    ids = undo_job(context.obj, job)
    text = f"{job}: restored {listed(ids, 'revision')}; back in the history"
    answer(as_json, UndoAnswer(job=job, restored=ids), text)
