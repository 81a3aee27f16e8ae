"""The typer application and what all its commands share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backy import __version__
from backy.errors import ConfigError
from backy.repository import Repository, check_job

if TYPE_CHECKING:
    from backy.config import Config, Global
    from backy.configfile import Loaded

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


@dataclass(slots=True)
class Site:
    """Where backy works: the base directory, and the configuration, if there is one.

    The configuration of the system is for its own base directory: one that is asked for on the
    command line has none, unless --config names it.
    """

    asked: Path | None
    path: Path | None
    handed: str = ""
    _global: Global | None = None
    _loaded: Loaded | None = None

    @property
    def base(self) -> Path:
        """The folder that has a repository for each job. Raises ConfigError."""
        return self.asked or (self.globals().base_dir if self.path else DEFAULT_BASE)

    def globals(self) -> Global:
        """The settings of the daemon, without reading the jobs. Raises ConfigError."""
        from backy.configfile import read_global

        self._global = self._global or read_global(self.needed_path())
        return self._global

    def loaded(self) -> Loaded:
        """All of the configuration that is valid. Raises ConfigError where there is none."""
        from backy.configfile import load
        from backy.sources import open_source

        self._loaded = self._loaded or load(self.needed_path(), open_source)
        return self._loaded

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
        if self.handed:
            from backy.config import Config

            config = Config.model_validate_json(self.handed)
        elif not self.path:
            return None
        else:
            config = self.loaded().config
        return config if job in config.jobs else None


@app.callback()
def _globals(
    context: Context,
    base_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="BACKY_BASE_DIR",
            help="The folder that has a repository for each job; as configured, or /srv/backy.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="BACKY_CONFIG",
            help="The configuration; /etc/backy/backy.yaml or /etc/backy.conf.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback deals with it
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    found = None if base_dir else next((each for each in CONFIG_PATHS if each.exists()), None)
    # Taken away, because the hooks of this job may run commands for other ones.
    context.obj = Site(base_dir, config or found, os.environ.pop("BACKY_SETTINGS", ""))


def open_repository(context: Context, job: str) -> Repository:
    """The repository of `job` in the base directory that was asked for."""
    return Repository(context.obj.base / check_job(job))
