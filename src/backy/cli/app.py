"""The typer application, and the options that its commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from typer import Argument, Option

from backy.cli import global_options, values
from backy.cli.command import Application
from backy.cli.commands import COMMANDS
from backy.cli.program import Program, print_version
from backy.errors import BackyError, CancelledError

if TYPE_CHECKING:
    from backy.repository.repository import Repository

Value = TypeVar("Value")
app = Application(
    name="backy",
    cls=Program,
    help="Back up virtual machines block by block, and restore them.",
    epilog="Exit codes: 0 done, 2 wrong usage, 3 wrong setting, 4 source, 5 store, 6 damaged, "
    "7 busy, 8 store full, 9 not found, 10 target, 11 hook, 70 a bug, 74 output lost, 130 stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Context = typer.Context
_JOB = "The name of the job, and of its repository."
Job = Annotated[str, Argument(parser=values.job, metavar="JOB", help=_JOB)]
_WORDS = "Revision words: latest, 1, 2026-11-23, tag:daily, an id or its beginning, a..b."
Spec = Annotated[str, Option("-r", "--revision", metavar="SPEC", help=_WORDS)]
AsJson = Annotated[bool, Option("--json", help="Print JSON for programs.")]
_DISK = "The disk; needed if there are several."
OneDisk = Annotated[str | None, Option("--disk", metavar="NAME", help=_DISK)]

_BASE = "The folder with a repository for each job; by default as configured, or /srv/backy."
BaseDir = Annotated[
    Path | None,
    Option(parser=values.path, metavar="FOLDER", envvar="BACKY_BASE_DIR", help=_BASE),
]
_FILE = "The configuration; by default /etc/backy/backy.yaml or /etc/backy.conf."
ConfigFile = Annotated[
    Path | None, Option(parser=values.path, metavar="FILE", envvar="BACKY_CONFIG", help=_FILE)
]
_VERSION = "Print the version."
Version = Annotated[
    bool, Option("--version", "-V", help=_VERSION, is_eager=True, callback=print_version)
]


@app.callback()
def _globals(
    context: Context,
    base_dir: BaseDir = None,  # noqa: ARG001 - global_options reads all three from the context
    config: ConfigFile = None,  # noqa: ARG001
    version: Version = False,  # noqa: ARG001
) -> None:
    global_options.open_site(context)


@cache
def program() -> Program:
    """The program, made once for this process, since that takes long."""
    made: Program = typer.main.get_command(app)  # type: ignore[assignment]
    return made


def whole_program() -> Program:
    """The program with all commands imported, for manual pages and tests."""
    for entry in COMMANDS.values():
        import_module(f"backy.cli.{entry.module}")
    made: Program = typer.main.get_command(app)  # type: ignore[assignment]
    return made


def all_jobs(context: Context) -> list[str]:
    """The jobs that have a repository; warns of folders that look like one. Raises StoreError."""
    from backy.cli.output import warn
    from backy.repository.listing import jobs

    why = "left alone, since no job has such a name"
    return jobs(context.obj.base, lambda name: warn(f"{why}: {name!a}"))


def each_job(
    context: Context, jobs: Iterable[str], do: Callable[[Repository], Value]
) -> tuple[list[Value], list[tuple[str, BackyError]]]:
    """Call `do` with the repository of each job: the results, and the errors by job.

    An error does not stop the others. Raises CancelledError.
    """
    done: list[Value] = []
    failed: list[tuple[str, BackyError]] = []
    for job in jobs:
        try:
            done.append(do(context.obj.repository(job)))
        except CancelledError:
            raise
        except BackyError as error:
            failed.append((job, error))
    return done, failed
