"""backy config: check and show the configuration."""

from typing import Annotated

from typer import Option

from backy.cli import values
from backy.cli.app import AsJson, Context, app, each_job
from backy.cli.output import answer, print_document
from backy.cli.program import Application, CommandGroup
from backy.config.loader import Problem, ProblemsError
from backy.config.loader import schema as json_schema
from backy.config.review import warnings
from backy.errors import BackyError, ConfigError, NotFoundError, SourceError, visible
from backy.model.answers import ConfigCheckAnswer, ConfigProblem, LookedSource
from backy.operations.site import Site
from backy.sources import open_source
from backy.units import counted, listed

config = Application(
    help="Check and show the configuration.", cls=CommandGroup, no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
app.add_typer(config, name="config")
_JOB = "Only this job, with its defaults."
OneJob = Annotated[str | None, Option(parser=values.job, metavar="JOB", help=_JOB)]
_SOURCES = "Also open the source of each job for reading, and say what cannot be opened."
Sources = Annotated[bool, Option("--sources", help=_SOURCES)]


@config.command(epilog="Example: backy config check")
def check(context: Context, sources: Sources = False, as_json: AsJson = False) -> None:
    """Name every problem in the configuration, with file and line, and what looks wrong."""
    site: Site = context.obj
    path = site.needed_path()
    looks, failed = list[LookedSource](), list[tuple[str, Exception]]()

    def look(job: str) -> None:
        disks = sorted(open_source(loaded.config.jobs[job].source).look())
        looks.append(LookedSource(job=job, disks=disks, error=""))

    try:
        loaded = site.loaded
        problems, count, files = loaded.problems, len(loaded.config.jobs), len(loaded.files)
        odd = warnings(loaded, lambda settings: open_source(settings).paths, site.asked)
        failed = each_job(loaded.config.jobs if sources else (), look)
    except ProblemsError as error:
        problems, count, files, odd = error.problems, 0, 1, []
    looks += [LookedSource(job=job, disks=[], error=str(error)) for job, error in failed]
    lines = [visible(str(problem)) for problem in problems]
    if not problems:
        lines = [f"{path}: {counted(count, 'job')} in {counted(files, 'file')}, no problems"]
    lines += [visible(f"warning: {each}") for each in odd]
    lines += [visible(f"source of {look['job']}: {_found(look)}") for look in looks]
    errors, hints = [*map(_record, problems)], [*map(_record, odd)]
    content = ConfigCheckAnswer(
        file=str(path), jobs=count, problems=errors, warnings=hints, sources=looks
    )
    answer(as_json, content, lines)
    if problems:
        what = counted(len(problems), "problem")
        raise ConfigError(f"{path}: {what}", "A running daemon keeps the jobs it has.")
    for _, first in failed:
        if not isinstance(first, BackyError):
            raise first
        why = f"sources that cannot be opened: {listed([job for job, _ in failed], 'job')}"
        raise SourceError(why, "Their backups would fail now; the lines above say why.")


def _record(problem: Problem) -> ConfigProblem:
    file, line, key = str(problem.path), problem.line, problem.key
    return ConfigProblem(file=file, line=line, key=key, message=str(problem))


def _found(look: LookedSource) -> str:
    disks = ", ".join(look["disks"]) or "only a backup can tell what its program gives"
    return look["error"] or disks


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
    print_document(json_schema())
