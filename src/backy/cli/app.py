"""The typer application and what all its commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backy import __version__
from backy.repository import Repository, check_job

app = typer.Typer(
    name="backy",
    help="Back up virtual machines block by block, and bring them back.",
    epilog="Exit codes: 0 done, 2 wrong usage, 3 wrong setting, 4 source, 5 store, 6 damaged, "
    "7 busy, 8 store full, 9 not found, 10 target, 70 a bug, 130 stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Context = typer.Context
Job = Annotated[
    str, typer.Argument(metavar="JOB", help="The name of the job, and of its repository.")
]
Spec = Annotated[
    str,
    typer.Option(
        "-r",
        "--revision",
        metavar="SPEC",
        help="Revision words: latest, 1, 2026-11-23, tag:daily, an id or its beginning, a..b.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DiskName = Annotated[
    str | None, typer.Option("--disk", metavar="NAME", help="Which disk, if there are several.")
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"backy {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    context: Context,
    base_dir: Annotated[
        Path,
        typer.Option(
            envvar="BACKY_BASE_DIR", help="The folder that has a repository for each job."
        ),
    ] = Path("/srv/backy"),
    version: Annotated[  # noqa: ARG001 - its callback deals with it
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    context.obj = base_dir


def open_repository(context: Context, job: str) -> Repository:
    """The repository of `job` in the base directory that was asked for."""
    return Repository(context.obj / check_job(job))
