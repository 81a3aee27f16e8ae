"""backy config: check and show the configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from typer import Option

from backy.cli import values
from backy.cli.app import AsJson, Context, app
from backy.cli.command import Application
from backy.cli.output import answer, print_document
from backy.cli.program import CommandGroup
from backy.errors import ConfigError, NotFoundError, visible
from backy.model.answers import ConfigCheckAnswer, ConfigProblem
from backy.operations.site import Site
from backy.units import counted

config = Application(
    help="Check and show the configuration.",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(config, name="config")
OneJob = Annotated[
    str | None, Option(parser=values.job, metavar="JOB", help="Only this job, with its defaults.")
]


@config.command(epilog="Example: backy config check")
def check(context: Context, as_json: AsJson = False) -> None:
    """Name every problem in the configuration, with file and line, and what looks wrong."""
    from backy.config.loader import Problem, ProblemsError
    from backy.config.review import warnings
    from backy.sources import open_source

    site: Site = context.obj
    path = site.needed_path()
    try:
        loaded = site.loaded
        problems, count, files = loaded.problems, len(loaded.config.jobs), len(loaded.files)
        odd = warnings(loaded, lambda settings: open_source(settings).paths)
    except ProblemsError as error:
        problems, count, files, odd = error.problems, 0, 1, []

    def records(those: Iterable[Problem]) -> list[ConfigProblem]:
        return [
            ConfigProblem(file=str(each.path), line=each.line, key=each.key, message=str(each))
            for each in those
        ]

    lines = [visible(str(problem)) for problem in problems]
    if not problems:
        lines = [f"{path}: {counted(count, 'job')} in {counted(files, 'file')}, no problems"]
    lines += [visible(f"warning: {each}") for each in odd]
    content = ConfigCheckAnswer(
        file=str(path), jobs=count, problems=records(problems), warnings=records(odd)
    )
    answer(as_json, content, lines)
    if problems:
        what = counted(len(problems), "problem")
        raise ConfigError(f"{path}: {what}", "A running daemon keeps the jobs it has.")


@config.command(epilog="Example: backy config show --job vm1")
def show(context: Context, job: OneJob = None) -> None:
    """Print the configuration as JSON, with includes and defaults filled in."""
    site: Site = context.obj
    config = site.loaded.config
    if job is None:
        print_document(config.model_dump(mode="json"))
    elif job in config.jobs:
        print_document({job: config.jobs[job].model_dump(mode="json")})
    else:
        site.config_of(job)  # raises ConfigError if the job has a problem
        raise NotFoundError(f"{site.path} has no job {job!r}", "backy jobs shows all jobs.")


@config.command(epilog="Example: backy config schema > backy.schema.json")
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from backy.config.loader import schema as made

    print_document(made())
