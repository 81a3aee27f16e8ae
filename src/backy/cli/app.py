"""The typer application and what all its commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer import Argument, Option

from backy import __version__
from backy.errors import BackyError, CancelledError, ConfigError
from backy.model.names import check_job
from backy.repository.repository import Repository

if TYPE_CHECKING:
    from backy.config.loader import Loaded
    from backy.config.settings import Config, Global

Value = TypeVar("Value")
DEFAULT_BASE = Path("/srv/backy")
CONFIG_PATHS = (Path("/etc/backy/backy.yaml"), Path("/etc/backy.conf"))

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


@dataclass
class Site:
    """Where backy works: the base directory, and the configuration, if there is one.

    The configuration of the system is for its own base directory: one that is asked for on the
    command line has none, unless --config names it.
    """

    asked: Path | None
    path: Path | None
    handed: str = ""

    @property
    def base(self) -> Path:
        """The folder that has a repository for each job. Raises ConfigError."""
        return self.asked or (self.globals.base_dir if self.path else DEFAULT_BASE)

    @cached_property
    def globals(self) -> Global:
        """The settings of the daemon, without reading the jobs. Raises ConfigError."""
        from backy.config.loader import read_global

        return read_global(self.needed_path())

    @cached_property
    def loaded(self) -> Loaded:
        """All of the configuration that is valid. Raises ConfigError where there is none."""
        from backy.config.loader import load
        from backy.sources import open_source

        return load(self.needed_path(), open_source)

    def needed_path(self) -> Path:
        """The file of the configuration. Raises ConfigError where there is none."""
        if not self.path:
            there = " or ".join(map(str, CONFIG_PATHS))
            raise ConfigError("there is no configuration", f"Write {there}, or say --config FILE.")
        return self.path

    def config_of(self, job: str) -> Config | None:
        """The configuration where it has `job`; None where that is not configured.

        The daemon hands a job's own part over, so that its commands need not read the others'.
        """
        if not self.handed and not self.path:
            return None
        from backy.config.settings import Config

        config = Config.model_validate_json(self.handed) if self.handed else self.loaded.config
        return config if job in config.jobs else None

    def ask(self, **request: object) -> dict[str, Any] | None:
        """What the daemon answers; None where there is none. Raises StoreError as control does."""
        from backy.daemon import control

        return control.ask(self.globals.socket, **request)


@app.callback()
def _globals(
    context: Context,
    base_dir: BaseDir = None,
    config: ConfigFile = None,
    version: Version = False,  # noqa: ARG001 - its callback deals with it
) -> None:
    found = None if base_dir else next((each for each in CONFIG_PATHS if each.exists()), None)
    # Taken away, because the hooks of this job may run commands for other ones.
    context.obj = Site(base_dir, config or found, os.environ.pop("BACKY_SETTINGS", ""))


def open_repository(context: Context, job: str) -> Repository:
    """The repository of `job` in the base directory that was asked for."""
    repository = Repository(context.obj.base / check_job(job))

    def configured() -> dict[str, Any] | None:
        config = context.obj.config_of(job)
        return config.jobs[job].source if config else None

    repository.configured = configured
    return repository


def each_job(
    context: Context, jobs: Iterable[str], do: Callable[[Repository], Value]
) -> tuple[list[Value], list[tuple[str, BackyError]]]:
    """What `do` gives for each repository, and why it failed for others, which stops none."""
    done: list[Value] = []
    failed: list[tuple[str, BackyError]] = []
    for job in jobs:
        try:
            done.append(do(open_repository(context, job)))
        except CancelledError:
            raise
        except BackyError as error:
            failed.append((job, error))
    return done, failed
