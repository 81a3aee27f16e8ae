"""tag, remove, undo, purge: the commands that change the history."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from backy.cli.app import AsJson, Context, Job, Spec, app, open_repository
from backy.cli.output import answer
from backy.errors import ConfigError, DamagedError, NotFoundError
from backy.model.revision import Revision, is_id
from backy.model.selector import select
from backy.repository import trash
from backy.repository.manifest import revision_record
from backy.repository.repository import Repository
from backy.units import format_size, parse_duration

Marks = Annotated[list[str], Argument(metavar="+TAG|-TAG...", help="Tags to add and to drop.")]
Emptied = Annotated[str | None, Argument(metavar="[JOB]", help="The job whose trash is emptied.")]
OlderThan = Annotated[
    str, Option(metavar="DURATION", help="Leave what was removed more recently: 30m, 4h, 7d.")
]
Whole = Annotated[
    str | None,
    Option("--job", metavar="JOB", help="Delete all of a job that is not configured."),
]


class _TagCommand(TyperCommand):
    """Takes +TAG and -TAG as arguments: click would see the options -T, -A and -G in the latter."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own click
        options: list[str] = []
        marks: list[str] = []
        arguments = iter(args)
        for argument in arguments:
            if argument in {"-r", "--revision"}:
                value = list(itertools.islice(arguments, 1))
                if not value:
                    raise typer.BadParameter(f"{argument} needs revision words.", ctx=ctx)
                options += [argument, *value]
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
    """Add and drop tags of revisions."""
    if odd := [mark for mark in marks if mark[:1] not in {"+", "-"}]:
        raise typer.BadParameter(f"write +{odd[0]} or -{odd[0]}")
    repository = open_repository(context, job)
    changed = repository.retag(
        _selected(repository, spec),
        add={mark[1:] for mark in marks if mark.startswith("+")},
        drop={mark[1:] for mark in marks if mark.startswith("-")},
    )
    records = [revision_record(revision) for revision in changed]
    lines = (f"{job}: {each.id}: {', '.join(each.tags) or 'no tags'}" for each in changed)
    answer(as_json, {"job": job, "revisions": records}, lines)


def _selected(repository: Repository, spec: str) -> list[Revision]:
    found = select(spec, repository.history())
    if repository.damaged and not is_id(spec):
        why = f"{spec!r} may not mean what it says: {repository.damaged[0].message}"
        raise DamagedError(f"{repository.name}: {why}", "Name one revision by its full id.")
    if not found:
        raise NotFoundError(
            f"{repository.name}: {spec!r} names no revision", f"backy list {repository.name}"
        )
    return found


@app.command(epilog="Example: backy remove vm1 -r 20261123T004938Z-x7k2")
def remove(context: Context, job: Job, spec: Spec, as_json: AsJson = False) -> None:
    """Move revisions to the trash. backy undo brings them back, backy purge frees their space."""
    repository = open_repository(context, job)
    revisions = _selected(repository, spec)
    trash.remove(repository, revisions)
    ids = [revision.id for revision in revisions]
    text = f"{job}: removed {', '.join(ids)}; backy undo {job} brings them back"
    answer(as_json, {"job": job, "removed": ids}, text)


@app.command(epilog="Example: backy undo vm1")
def undo(context: Context, job: Job, as_json: AsJson = False) -> None:
    """Bring back what the last backy remove took away."""
    ids = trash.undo(open_repository(context, job))
    text = f"{job}: restored {', '.join(ids)}; back in the history"
    answer(as_json, {"job": job, "restored": ids}, text)


@app.command(epilog="Example: backy purge vm1 --older-than 7d")
def purge(
    context: Context,
    job: Emptied = None,
    older_than: OlderThan = "0s",
    whole: Whole = None,
    as_json: AsJson = False,
) -> None:
    """Delete removed revisions for good, and every stored block that no revision names.

    With --job it deletes a whole repository, whose job must have been taken out of the
    configuration before.
    """
    if (job is None) == (whole is None):
        raise typer.BadParameter("name a job, or --job and one that is not configured")
    if whole:
        _erase(context, whole)
        text = f"{whole}: deleted with all its revisions"
        answer(as_json, {"job": whole, "erased": True}, text)
        return
    purged = trash.purge(open_repository(context, str(job)), parse_duration(older_than))
    kept_note = f"; {len(purged.kept)} kept (too young, or being read)" if purged.kept else ""
    freed = f"freed {format_size(purged.freed)} of chunks"
    text = f"{job}: purged {len(purged.revisions)} revisions, {freed}{kept_note}"
    record = {"job": job, "purged": purged.revisions, "kept": purged.kept, "freed": purged.freed}
    answer(as_json, record, text)


def _erase(context: Context, job: str) -> None:
    """Delete a repository; only where the configuration certainly has no such job."""
    loaded = context.obj.loaded
    if job in loaded.config.jobs:
        raise ConfigError(f"{job}: it is configured", "Take it out of the configuration first.")
    if loaded.problems:
        why = f"{job}: nobody can tell that it is not configured: {loaded.problems[0]}"
        raise ConfigError(why, "Mend the configuration first: backy config check.")
    trash.erase(open_repository(context, job))
