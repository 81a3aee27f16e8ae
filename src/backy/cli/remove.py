"""backy remove: move revisions to the trash."""

from __future__ import annotations

from backy.cli.app import AsJson, Context, Job, Spec, app
from backy.cli.output import answer
from backy.errors import DamagedError, NotFoundError
from backy.model.revision import Revision, is_id
from backy.model.selector import select
from backy.repository import trash
from backy.repository.repository import Repository


def selected(repository: Repository, spec: str) -> list[Revision]:
    """Some revisions. Raises NotFoundError for none, DamagedError where others may be meant."""
    history = repository.history()
    found = select(spec, history.revisions)
    if history.unreadable and not is_id(spec):
        first = next(iter(history.unreadable.values()))
        why = f"{spec!r} may not mean what it says: {first.message}"
        raise DamagedError(f"{repository.name}: {why}", "Name one revision by its full id.")
    if not found:
        raise NotFoundError(
            f"{repository.name}: {spec!r} names no revision", f"backy list {repository.name}"
        )
    return found


@app.command(epilog="Example: backy remove vm1 -r 20261123T004938Z-x7k2")
def remove(context: Context, job: Job, spec: Spec, as_json: AsJson = False) -> None:
    """Move revisions to the trash. backy undo brings them back, backy purge frees their space."""
    repository = context.obj.repository(job)
    revisions = selected(repository, spec)
    trash.remove(repository, revisions)
    ids = [revision.id for revision in revisions]
    text = f"{job}: removed {', '.join(ids)}; backy undo {job} brings them back"
    answer(as_json, {"job": job, "removed": ids}, text)
