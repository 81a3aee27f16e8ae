"""backy expire: remove the revisions that the schedule does not keep."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from backy.cli.app import AsJson, Context, Job, app
from backy.cli.output import answer, table
from backy.model.messages import ExpiredRevision, ExpireFinished

DryRun = Annotated[bool, Option("--dry-run", help="Only show what would be removed, and why.")]


@app.command(epilog="Example: backy expire vm1 --dry-run")
def expire(context: Context, job: Job, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove the revisions that the schedule does not keep.

    They go to the trash, and backy undo brings them back.
    """
    from backy.operations.expire import expire_job

    expiries = expire_job(context.obj, job, is_dry=dry_run)
    expired = [
        ExpiredRevision(
            revision=expiry.revision.id,
            drop=expiry.drop,
            keep=expiry.keep,
            removed=expiry.is_removed,
            why=expiry.why,
        )
        for expiry in expiries
    ]
    rows = (
        (
            expiry.revision.id,
            "remove" if expiry.is_removed else f"drop {','.join(expiry.drop)}",
            expiry.why,
        )
        for expiry in expiries
    )
    record = ExpireFinished(event="finished", job=job, dry_run=dry_run, expired=expired)
    answer(as_json, record, table(("revision", "would" if dry_run else "did", "why"), rows))
