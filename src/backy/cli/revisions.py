"""The commands that compare, find, tag, remove, bring back and delete the revisions of a job."""

from typing import Annotated, Any, Literal

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, Job, OneDisk, Spec, app
from backy.cli.output import answer, table, warn
from backy.cli.program import Command
from backy.errors import DamagedError, NotFoundError, UsageError
from backy.model import answers
from backy.model.extent import Kind
from backy.model.messages import ExpiredRevision, ExpireFinished
from backy.model.revision import disk_of
from backy.operations.history import erase_job, purge_job, remove_job, tag_job, undo_job
from backy.repository.records import revision_record
from backy.units import counted, format_size, listed

Old = Annotated[str, Argument(metavar="REV", help="Revision words for the older revision.")]
New = Annotated[str, Argument(metavar="REV", help="Revision words for the newer revision.")]
_MARKS = "Tags to add and to remove."
Marks = Annotated[list[str], Argument(parser=values.mark, metavar="+TAG|-TAG", help=_MARKS)]
_VERBOSE = "Name each revision, however many there are."
Verbose = Annotated[bool, Option("-v", "--verbose", help=_VERBOSE)]
DryRun = Annotated[bool, Option("--dry-run", help="Only show what would be removed, and why.")]
_EMPTIED = "The job whose trash is emptied."
Emptied = Annotated[str | None, Argument(parser=values.job, metavar="JOB", help=_EMPTIED)]
_OLDER = "Keep what was removed more recently: 30m, 4h, 7d."
OlderThan = Annotated[int, Option(parser=values.duration, metavar="DURATION", help=_OLDER)]
_THESE = "Delete these revisions at once, without the trash; there is no undo."
These = Annotated[str | None, Option("-r", "--revision", metavar="SPEC", help=_THESE)]
_WHOLE = "Delete the whole repository of a job that is not configured."
Whole = Annotated[str | None, Option("--job", parser=values.job, metavar="JOB", help=_WHOLE)]


@app.command(epilog="Example: backy diff vm1 1 latest")
def diff(context: Context, job: Job, old: Old, new: New, as_json: AsJson = False) -> None:
    """Show which ranges of the disks changed between two revisions. They are whole blocks."""
    from backy.operations.diff import diff as run

    repository = context.obj.repository(job)
    before, after = repository.find(old), repository.find(new)
    ranges: list[answers.ChangedRange] = []
    for disk, extent in run(repository, before, after):
        kind: Literal["data", "zero"] = "zero" if extent.kind is Kind.ZERO else "data"
        ranges.append({"disk": disk, "start": extent.start, "length": extent.length, "kind": kind})
    record = answers.DiffAnswer(job=job, old=before.id, new=after.id, extents=ranges)
    rows = ([*each.values()] for each in ranges)
    answer(as_json, record, table(("disk", "start", "length", "kind"), rows))


@app.command(epilog='Example: cp --sparse=always "$(backy find vm1 -r latest)" disk.img')
def find(
    context: Context, job: Job, spec: Spec = "latest", disk: OneDisk = None, as_json: AsJson = False
) -> None:
    """Print the path of a disk's image or index, for scripts.

    The store images has plain images, the store chunks has indexes.
    """
    repository = context.obj.repository(job)
    revision = repository.find(spec)
    name = disk_of(revision, disk)
    place = repository.store.plain_path(revision, name)
    path = str(place.path.absolute())
    if not place.exists():
        raise NotFoundError(f"{job}: {path} is missing", f"Run backy verify {job}.")
    store = repository.settings.store
    record = answers.FindAnswer(job=job, revision=revision.id, disk=name, store=store, path=path)
    answer(as_json, record, path)


class _TagCommand(Command):
    """Accepts +TAG and -TAG as arguments: click would read -TAG as the options -T, -A and -G."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own click
        options: list[str] = []
        marks: list[str] = []
        arguments = iter(args)
        for argument in arguments:
            if argument in {"-r", "--revision"}:
                if (value := next(arguments, None)) is None:
                    raise UsageError(f"{argument} needs revision words", "Write -r latest.")
                options += [argument, value]
            elif argument[:1] in {"+", "-"} and argument[:2] != "--" and argument != "-h":
                marks.append(argument)
            else:
                options.append(argument)
        return super().parse_args(ctx, [*options, "--", *marks])


@app.command(
    cls=_TagCommand, epilog="Example: backy tag vm1 -r latest +manual:before-upgrade -daily"
)
def tag(
    context: Context, job: Job, marks: Marks, spec: Spec = "latest", as_json: AsJson = False
) -> None:
    """Add tags to revisions, and remove them."""
    add, drop = ({mark[1:] for mark in marks if mark[0] == sign} for sign in "+-")
    changed = tag_job(context.obj, job, spec, add, drop)
    record = answers.TagAnswer(job=job, revisions=[*map(revision_record, changed)])
    lines = (f"{job}: {each.id}: {', '.join(each.tags) or 'no tags'}" for each in changed)
    answer(as_json, record, lines)


@app.command(epilog="Example: backy remove vm1 -r 20261123T004938Z-x7k2")
def remove(
    context: Context, job: Job, spec: Spec, verbose: Verbose = False, as_json: AsJson = False
) -> None:
    """Move revisions to the trash. backy undo brings them back, backy purge frees their space."""
    ids = [revision.id for revision in remove_job(context.obj, job, spec)]
    each = [f"{job}: {revision}" for revision in ids] if verbose else []
    text = f"{job}: removed {listed(ids, 'revision')}; backy undo {job} brings them back"
    answer(as_json, answers.RemoveAnswer(job=job, removed=ids), [*each, text])


@app.command(epilog="Example: backy undo vm1")
def undo(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Bring back what the last remove or expire took away."""
    ids = undo_job(context.obj, job)
    text = f"{job}: restored {listed(ids, 'revision')}; back in the history"
    answer(as_json, answers.UndoAnswer(job=job, restored=ids), text)


@app.command(epilog="Example: backy expire vm1 --dry-run")
def expire(context: Context, job: Job, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove the revisions that the schedule does not keep.

    They go to the trash, and backy undo brings them back.
    """
    from backy.operations.expire import expire_job

    expired, rows = list[ExpiredRevision](), list[tuple[str, str, str]]()
    for each in expire_job(context.obj, job, is_dry=dry_run):
        name, drop, removed, why = each.revision.id, each.drop, each.is_removed, each.why
        change = ExpiredRevision(revision=name, drop=drop, keep=each.keep, removed=removed, why=why)
        expired.append(change)
        rows.append((name, "remove" if removed else f"drop {','.join(drop)}", why))
    record = ExpireFinished(event="finished", job=job, dry_run=dry_run, expired=expired)
    answer(as_json, record, table(("revision", "would" if dry_run else "did", "why"), rows))


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
    if whole:
        erase_job(context.obj, whole)
        text = f"{whole}: deleted with all its revisions"
        answer(as_json, answers.EraseAnswer(job=whole, erased=True), text)
        return
    purged = purge_job(context.obj, str(job), older_than, these)
    if purged.foreign:
        warn(f"{job}: not made by backy, left alone: {', '.join(map(ascii, purged.foreign))}")
    kept_note = f"; {len(purged.kept)} kept (too young, or being read)" if purged.kept else ""
    freed = f"freed {format_size(purged.freed)} of chunks and pages"
    text = f"{job}: purged {counted(len(purged.revisions), 'revision')}, {freed}{kept_note}"
    record = answers.PurgeAnswer(
        job=str(job), purged=purged.revisions, kept=purged.kept, freed=purged.freed,
        unknown=purged.unknown,
    )  # fmt: skip
    answer(as_json, record, text)
    if purged.unknown:
        more = f" and {len(purged.unknown) - 1} more like this" if purged.unknown[1:] else ""
        why = f"{job}: what only this may use was kept: {purged.unknown[0]}{more}"
        hint = f"backy verify {job} names the damage. Remove what cannot be read, and purge again."
        raise DamagedError(why, hint)
