"""The typer application, and the options that its commands share."""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, cast

import typer
from typer import Argument, Option

from backy.cli import values
from backy.cli.program import Application, Program, open_site, print_version
from backy.errors import BackyError, CancelledError

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
_JOBS = "Only these jobs."
Jobs = Annotated[list[str] | None, Argument(parser=values.job, metavar="JOB", help=_JOBS)]
_WORDS = "Revision words: latest, 1, 2026-11-23, tag:daily, an id or its beginning, a..b."
Spec = Annotated[str, Option("-r", "--revision", metavar="SPEC", help=_WORDS)]
AsJson = Annotated[bool, Option("--json", help="Print JSON for programs.")]
_DISK = "The disk; needed if there are several."
OneDisk = Annotated[str | None, Option("--disk", metavar="NAME", help=_DISK)]
_RATE = "Read at most this much in a second."
Rate = Annotated[int | None, Option(parser=values.rate, metavar="SIZE", help=_RATE)]

_BASE = "The folder with a repository for each job; by default as configured, or /srv/backy."
BaseDir = Annotated[
    Path | None, Option(parser=values.path, metavar="FOLDER", envvar="BACKY_BASE_DIR", help=_BASE)
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
    base_dir: BaseDir = None,  # noqa: ARG001 - open_site reads all three from the context
    config: ConfigFile = None,  # noqa: ARG001
    version: Version = False,  # noqa: ARG001
) -> None:
    open_site(context)


@cache
def program() -> Program:
    """The program, made once for this process, since that takes long."""
    return cast("Program", typer.main.get_command(app))


def all_jobs(context: Context) -> list[str]:
    """The jobs that have a repository; warns of folders that look like one. Raises StoreError."""
    from backy.cli.output import warn
    from backy.repository.base import jobs

    why = "left alone, since no job has such a name"
    return jobs(context.obj.base, lambda name: warn(f"{why}: {name!a}"))


def each_job(jobs: Iterable[str], do: Callable[[str], None]) -> list[tuple[str, Exception]]:
    """Call `do` with each job; an error, or a bug, does not stop the others.

    The errors by job, bugs first: who raises the first one does not hide a bug. Raises
    CancelledError.
    """
    failed: list[tuple[str, Exception]] = []
    for job in jobs:
        try:
            do(job)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - raised by the caller, after the other jobs
            failed.append((job, error))
    return sorted(failed, key=lambda each: isinstance(each[1], BackyError))
