"""backy verify: read every stored byte again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from backy.cli.app import AsJson, Context, Job, Spec, app
from backy.cli.damage import ending, lost, raise_damaged, show_damage
from backy.cli.output import print_json, total
from backy.cli.progress import meter
from backy.errors import NotFoundError
from backy.model.selector import select
from backy.units import format_size

if TYPE_CHECKING:
    pass


@app.command(epilog="Example: backy verify vm1 -r latest")
def verify(context: Context, job: Job, spec: Spec = "all", as_json: AsJson = False) -> None:
    """Read every stored byte again and compare it with its hash.

    What is damaged comes back from another revision or the source, where they still have it.
    What does not is named, range by range, with every revision that has it, and the exit code
    is 6. A revision is verified or distrusted afterwards.
    """
    from backy.operations.verify import verify as run

    repository = context.obj.repository(job)
    history = repository.history()
    revisions = sorted(select(spec, history.revisions), key=lambda revision: revision.id)
    if not revisions and not history.unreadable:
        raise NotFoundError(f"{job}: {spec!r} names no revision", f"backy list {job}")
    with meter(job, as_json=as_json) as shown:
        origins = context.obj.origins(repository)
        damages = run(repository, revisions, origins=origins, watcher=shown)
        found = show_damage(job, history, damages, shown)
    damaged = lost(found) + (len(history.unreadable) if spec == "all" else 0)
    size = sum(total(each, "size") for each in revisions)
    if as_json:
        done = {"job": job, "revisions": [revision.id for revision in revisions]}
        sums = {"damaged": damaged, "healed": len(found) - lost(found), "size": size}
        print_json({"event": "finished"} | done | sums | {"seconds": shown.seconds})
    raise_damaged(job, damaged, len(revisions), origins)
    if not as_json:
        verified = f"{len(revisions)} revisions, {format_size(size)} verified"
        typer.echo(f"{job}: {verified}{ending(found, size, shown.seconds)}")
