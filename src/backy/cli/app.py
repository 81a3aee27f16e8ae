"""The typer application and what all its commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer import Argument, Option

from backy import __version__
from backy.errors import BackyError, CancelledError
from backy.operations.site import Site
from backy.repository.repository import Repository

if TYPE_CHECKING:
    pass

Value = TypeVar("Value")
app = typer.Typer(
    name="backy",
    help="Back up virtual machines block by block, and bring them back.",
    epilog="Exit codes: 0 done, 2 wrong usage, 3 wrong setting, 4 source, 5 store, 6 damaged, "
    "7 busy, 8 store full, 9 not found, 10 target, 11 hook, 70 a bug, 130 stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Context = typer.Context
NO_DAEMON = "the daemon is not running"
Job = Annotated[str, Argument(metavar="JOB", help="The name of the job, and of its repository.")]
_WORDS = "Revision words: latest, 1, 2026-11-23, tag:daily, an id or its beginning, a..b."
Spec = Annotated[str, Option("-r", "--revision", metavar="SPEC", help=_WORDS)]
AsJson = Annotated[bool, Option("--json", help="Print JSON for programs.")]
OneDisk = Annotated[
    str | None, Option("--disk", metavar="NAME", help="Which disk, if there are several.")
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"backy {__version__}")
        raise typer.Exit


_BASE = "The folder that has a repository for each job; as configured, or /srv/backy."
BaseDir = Annotated[Path | None, Option(envvar="BACKY_BASE_DIR", help=_BASE)]
_FILE = "The configuration; /etc/backy/backy.yaml or /etc/backy.conf."
ConfigFile = Annotated[Path | None, Option(metavar="FILE", envvar="BACKY_CONFIG", help=_FILE)]
Version = Annotated[
    bool, Option("--version", help="Print the version.", is_eager=True, callback=_version)
]


def ask_daemon(site: Site, **request: object) -> dict[str, Any] | None:
    """What the daemon answers; None where there is none. Raises StoreError as control does."""
    from backy.daemon import control

    return control.ask(site.globals.socket, **request)


@app.callback()
def _globals(
    context: Context,
    base_dir: BaseDir = None,
    config: ConfigFile = None,
    version: Version = False,  # noqa: ARG001 - its callback deals with it
) -> None:
    # Taken away, because the hooks of this job may run commands for other ones.
    context.obj = Site.of(base_dir, config, os.environ.pop("BACKY_SETTINGS", ""))


def each_job(
    context: Context, jobs: Iterable[str], do: Callable[[Repository], Value]
) -> tuple[list[Value], list[tuple[str, BackyError]]]:
    """What `do` gives for each repository, and why it failed for others, which stops none."""
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
