"""backy verify: read every stored byte again."""

from __future__ import annotations

import typer

from backy.cli.app import AsJson, Context, Job, Spec, app
from backy.cli.damage import damage_shown, ending, raise_damaged
from backy.cli.output import print_json
from backy.cli.progress import meter
from backy.model.messages import VerifyFinished
from backy.units import counted, format_size


@app.command(epilog="Example: backy verify vm1 -r latest")
def verify(context: Context, job: Job, spec: Spec = "all", as_json: AsJson = False) -> None:
    """Read every stored byte again and compare it with its hash.

    A damaged block is healed from another revision or from the source, if it still has the right
    hash there. If not, each range is named with every revision that has it, and the exit code is 6.
    Afterwards each revision is verified or distrusted.
    """
    from backy.operations.verify import verify_job

    with meter(job, as_json=as_json) as shown:
        tell = damage_shown(job, shown)
        result = verify_job(context.obj, job, spec, watcher=shown, on_damage=tell)
    if as_json:
        finished = VerifyFinished(
            event="finished",
            job=job,
            revisions=[revision.id for revision in result.revisions],
            damaged=result.lost,
            healed=result.healed,
            pages=result.pages,
            size=result.size,
            seconds=shown.seconds,
        )
        print_json(finished)
    raise_damaged(job, result, len(result.revisions))
    if not as_json:
        count = counted(len(result.revisions), "revision")
        verified = f"{count}, {format_size(result.size)} verified"
        typer.echo(f"{job}: {verified}{ending(result, result.size, shown.seconds)}")
