"""A site: the base directory and the configuration, with the settings of each job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from backy.errors import ConfigError, NotFoundError
from backy.model.names import check_job
from backy.repository.base import require_base
from backy.repository.repository import Repository, is_repository

if TYPE_CHECKING:
    from backy.config.loader import Loaded
    from backy.config.settings import Config, Global
    from backy.operations.hooks import Runner
    from backy.operations.origin import Origin

DEFAULT_BASE = Path("/srv/backy")
CONFIG_PATHS = (Path("/etc/backy/backy.yaml"), Path("/etc/backy.conf"))


@dataclass
class Site:
    """A base directory and its configuration, if there is one; read when first needed.

    `asked` is the base directory that the user named, `path` the main file of the configuration.
    `handed` is the part of the configuration that the daemon passes to the command of one job, as
    JSON, so that the command need not read the other jobs.
    """

    asked: Path | None = None
    path: Path | None = None
    handed: str = ""

    @classmethod
    def of(cls, base: Path | None, path: Path | None, handed: str = "") -> Site:
        """The site for the options of a command; by default with the system's configuration.

        The system's configuration only applies to its own base directory. If the user names a base
        directory, there is no configuration unless `path` names one.
        """
        existing = (config for config in CONFIG_PATHS if config.exists())
        default = None if base else next(existing, None)
        return cls(base, path or default, handed)

    @cached_property
    def base(self) -> Path:
        """The folder with the repositories of all jobs.

        Raises ConfigError, and StoreError if it has to be mounted and is not.
        """
        if (self.handed or self.path) and self.globals.base_dir_must_be_mounted:
            require_base(self.named_base)
        return self.named_base

    @property
    def named_base(self) -> Path:
        """The same folder, mounted or not. Raises ConfigError."""
        return self.asked or (self.globals.base_dir if self.path else DEFAULT_BASE)

    @cached_property
    def globals(self) -> Global:
        """The global settings, read without the jobs. Raises ConfigError."""
        from backy.config.loader import read_global

        return self._handed.global_ if self.handed else read_global(self.needed_path())

    @cached_property
    def _handed(self) -> Config:
        from backy.config.settings import Config

        return Config.model_validate_json(self.handed)

    @cached_property
    def loaded(self) -> Loaded:
        """The valid part of the configuration. Raises ConfigError if there is no configuration."""
        from backy.config.loader import load
        from backy.sources import open_source

        return load(self.needed_path(), open_source)

    def needed_path(self) -> Path:
        """The main file of the configuration. Raises ConfigError if there is none."""
        if not self.path:
            paths = " or ".join(map(str, CONFIG_PATHS))
            raise ConfigError("there is no configuration", f"Write {paths}, or use --config FILE.")
        return self.path

    def config_of(self, job: str) -> Config | None:
        """The configuration if it has `job`; None if the job is certainly not configured.

        Raises ConfigError if a problem in the configuration hides the job, or may hide it: such a
        job must not be mistaken for one that is backed up by hand.
        """
        if not self.handed and not self.path:
            return None
        if self.handed:
            config = self._handed
        else:
            config = self.loaded.config
            if problem := self.loaded.problem_of(job):
                why = f"{job}: its configuration cannot be used: {problem}"
                raise ConfigError(why, "Fix it first: backy config check names all problems.")
        return config if job in config.jobs else None

    def root(self, job: str) -> Path:
        """The folder of a job's repository, which need not exist. Raises ConfigError."""
        return self.base / check_job(job)

    def require(self, job: str) -> Path:
        """The folder of a job that is configured or has a repository.

        Raises NotFoundError for other jobs, and ConfigError.
        """
        root = self.root(job)
        if not root.exists() and not self.config_of(job):
            command = "backy jobs" if self.path else "backy list"
            raise NotFoundError(f"there is no job {job!r}", f"{command} shows all jobs.")
        return root

    def repository(self, job: str) -> Repository:
        """The repository of a job. Raises NotFoundError, ConfigError."""
        return Repository(self.root(job))

    def origins(self, repository: Repository) -> Sequence[Origin]:
        """The origins for a job's damaged blocks. Nothing is read or opened yet."""
        from backy.operations.origin import LiveSource

        return [LiveSource(repository, partial(self.source_settings, repository.name))]

    def source_paths(self, repository: Repository) -> Mapping[str, Path]:
        """The local files and devices that a job's source reads, by disk.

        The source is the configured one, or else the one that was used last, of any type: nothing
        is opened or run. Raises ConfigError if the settings of that source are not valid.
        """
        from backy.sources import open_source

        config = self.config_of(repository.name)
        settings = config.jobs[repository.name].source if config else repository.settings.source
        return open_source(settings).paths if settings else {}

    def known_source(self, job: str) -> Mapping[str, object]:
        """The settings of the configured source, or else of the one used last; {} if there is none.

        Raises ConfigError if the source used last must not be used without a configuration.
        """
        from backy.operations.origin import remembered_source

        root = self.root(job)
        if config := self.config_of(job):
            return config.jobs[job].source
        if is_repository(root):
            return remembered_source(Repository(root))
        return {}

    def source_settings(self, job: str) -> Mapping[str, object]:
        """As `known_source`. Raises NotFoundError if there is no job, ConfigError if no source."""
        if settings := self.known_source(job):
            return settings
        hint = f"Run backy backup {job} --source PATH."
        if not self.root(job).exists():
            raise NotFoundError(f"there is no job {job!r}", hint)
        raise ConfigError(f"{job}: no source is known", hint)

    def hooks(self, job: str, log: Callable[[str], None]) -> Runner | None:
        """Runs the hooks of a job; None if it is not configured. `log` gets their output."""
        from backy.operations.hooks import Runner

        config = self.config_of(job)
        return Runner(config.hooks_of(job), job, self.root(job), log) if config else None
