"""backy tag: add and remove tags."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

from typer import Argument

from backy.cli import values
from backy.cli.app import AsJson, Context, Job, Spec, app
from backy.cli.command import Command
from backy.cli.output import answer
from backy.errors import UsageError
from backy.model.answers import TagAnswer
from backy.repository.records import revision_record

_MARKS = "Tags to add and to remove."
Marks = Annotated[list[str], Argument(parser=values.mark, metavar="+TAG|-TAG", help=_MARKS)]


class _TagCommand(Command):
    """Accepts +TAG and -TAG as arguments: click would read -TAG as the options -T, -A and -G."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own click
        options: list[str] = []
        marks: list[str] = []
        arguments = iter(args)
        for argument in arguments:
            if argument in {"-r", "--revision"}:
                value = list(itertools.islice(arguments, 1))
                if not value:
                    raise UsageError(f"{argument} needs revision words", "Write -r latest.")
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
    """Add tags to revisions, and remove them."""
    from backy.operations.history import tag_job

    changed = tag_job(
        context.obj,
        job,
        spec,
        add={mark[1:] for mark in marks if mark.startswith("+")},
        drop={mark[1:] for mark in marks if mark.startswith("-")},
    )
    records = [revision_record(revision) for revision in changed]
    lines = (
        f"{job}: {revision.id}: {', '.join(revision.tags) or 'no tags'}" for revision in changed
    )
    answer(as_json, TagAnswer(job=job, revisions=records), lines)
