"""backy purge: free the space of removed revisions."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, app
from backy.cli.output import answer, warn
from backy.errors import DamagedError, UsageError
from backy.model.answers import EraseAnswer, PurgeAnswer
from backy.units import counted, format_size

_EMPTIED = "The job whose trash is emptied."
Emptied = Annotated[str | None, Argument(parser=values.job, metavar="JOB", help=_EMPTIED)]
_OLDER = "Keep what was removed more recently: 30m, 4h, 7d."
OlderThan = Annotated[int, Option(parser=values.duration, metavar="DURATION", help=_OLDER)]
_THESE = "Delete these revisions at once, without the trash; there is no undo."
These = Annotated[str | None, Option("-r", "--revision", metavar="SPEC", help=_THESE)]
_WHOLE = "Delete the whole repository of a job that is not configured."
Whole = Annotated[str | None, Option("--job", parser=values.job, metavar="JOB", help=_WHOLE)]


@app.command(epilog="Example: backy purge vm1 --older-than 7d")
def purge(
    context: Context,
    job: Emptied = None,
    these: These = None,
    older_than: OlderThan = 0,
    whole: Whole = None,
    as_json: AsJson = False,
) -> None:
    """Delete removed revisions for good, and free their space.

    Also deletes every stored block and page that no revision uses. If an index or a page cannot be
    read, what only that may use is kept, and the exit code is 6. Needs no space, so it works on a
    full disk.

    With --job it deletes a whole repository. The job must have been taken out of the configuration
    before.
    """
    if (job is None) == (whole is None):
        raise UsageError("one job is needed", "Write backy purge JOB, or backy purge --job JOB.")
    if these is not None and (whole or older_than):
        hint = "Use -r with neither --older-than nor --job."
        raise UsageError("-r names revisions of the history", hint)
    from backy.operations.history import erase_job, purge_job

    if whole:
        erase_job(context.obj, whole)
        text = f"{whole}: deleted with all its revisions"
        answer(as_json, EraseAnswer(job=whole, erased=True), text)
        return
    purged = purge_job(context.obj, str(job), older_than, these)
    if purged.foreign:
        warn(f"{job}: not made by backy, left alone: {', '.join(map(ascii, purged.foreign))}")
    kept_note = f"; {len(purged.kept)} kept (too young, or being read)" if purged.kept else ""
    freed = f"freed {format_size(purged.freed)} of chunks and pages"
    text = f"{job}: purged {counted(len(purged.revisions), 'revision')}, {freed}{kept_note}"
    record = PurgeAnswer(
        job=str(job), purged=purged.revisions, kept=purged.kept, freed=purged.freed,
        unknown=purged.unknown,
    )  # fmt: skip
    answer(as_json, record, text)
    if purged.unknown:
        more = f" and {len(purged.unknown) - 1} more like this" if purged.unknown[1:] else ""
        why = f"{job}: what only this may use was kept: {purged.unknown[0]}{more}"
        hint = f"backy verify {job} names the damage. Remove what cannot be read, and purge again."
        raise DamagedError(why, hint)
