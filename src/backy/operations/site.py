"""A site: where backy works. Gives for each job its repository, source, hooks and due tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from backy.errors import ConfigError, NotFoundError
from backy.model.names import check_job
from backy.model.revision import Revision
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
    """The base directory, and the configuration where there is one; read when first needed.

    `asked` is the base directory that somebody asked for, `path` the main file of the
    configuration. `handed` is the part of it that the daemon hands to a job's command, as JSON,
    so that it need not read the others'.
    """

    asked: Path | None = None
    path: Path | None = None
    handed: str = ""

    @classmethod
    def of(cls, base: Path | None, path: Path | None, handed: str = "") -> Site:
        """The site for what was asked for, with the system's configuration by default.

        That configuration is for its own base directory: another one has none, unless `path`
        names it.
        """
        found = None if base else next((each for each in CONFIG_PATHS if each.exists()), None)
        return cls(base, path or found, handed)

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
        """The main file of the configuration. Raises ConfigError where there is none."""
        if not self.path:
            there = " or ".join(map(str, CONFIG_PATHS))
            raise ConfigError("there is no configuration", f"Write {there}, or say --config FILE.")
        return self.path

    def config_of(self, job: str) -> Config | None:
        """The configuration where it has `job`; None where that is certainly not configured.

        Raises ConfigError where the job is left out because of a problem, or may be: such a job
        must not be taken for one that is backed up by hand.
        """
        if not self.handed and not self.path:
            return None
        from backy.config.settings import Config

        if self.handed:
            config = Config.model_validate_json(self.handed)
        else:
            config = self.loaded.config
            if problem := self.loaded.problem_of(job):
                why = f"{job}: its configuration cannot be used: {problem}"
                raise ConfigError(why, "Mend it first: backy config check names all problems.")
        return config if job in config.jobs else None

    def root(self, job: str) -> Path:
        """The folder of a job's repository, which need not exist. Raises ConfigError."""
        return self.base / check_job(job)

    def require(self, job: str) -> Path:
        """The folder of a job that is configured or has a repository; of no other job.

        Raises NotFoundError, ConfigError.
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
        """Where content of a job's damaged blocks may still be. Nothing is read or opened yet."""
        from backy.operations.origin import LiveSource

        return [LiveSource(repository, partial(self.source_settings, repository.name))]

    def source_paths(self, repository: Repository) -> Mapping[str, Path]:
        """The local files and devices that a job's source reads, by disk.

        The source is the configured one, or else the remembered one, whatever its type: nothing is
        opened or run. Raises ConfigError if the settings of that source are not valid.
        """
        from backy.sources import open_source

        config = self.config_of(repository.name)
        settings = config.jobs[repository.name].source if config else repository.settings.source
        return open_source(settings).paths if settings else {}

    def known_source(self, job: str) -> Mapping[str, object]:
        """The settings of the source that is configured, or else was used last; {} for neither.

        Raises ConfigError where those of the last one are not to be used without a configuration.
        """
        from backy.sources import reject_unsafe

        root = self.root(job)
        if config := self.config_of(job):
            return config.jobs[job].source
        if is_repository(root):
            return reject_unsafe(Repository(root).settings.source)
        return {}

    def source_settings(self, job: str) -> Mapping[str, object]:
        """The same. Raises NotFoundError without such a job, ConfigError without such a source."""
        if found := self.known_source(job):
            return found
        hint = f"Say backy backup {job} --source PATH."
        if not self.root(job).exists():
            raise NotFoundError(f"there is no job {job!r}", hint)
        raise ConfigError(f"{job}: no source is known", hint)

    def hooks(self, job: str, log: Callable[[str], None]) -> Runner | None:
        """What runs around the steps of a job; None where it is not configured."""
        from backy.operations.hooks import Runner

        config = self.config_of(job)
        return Runner(config.hooks_of(job), job, self.root(job), log) if config else None

    def tags_due(self, job: str, revisions: Sequence[Revision], now: datetime) -> tuple[str, ...]:
        """The tags that a backup by hand gets: those that its schedule would give next."""
        from backy.policy.schedule import last_by_tag, next_run, spread

        config = self.config_of(job)
        if not config:
            return ()
        schedule = config.intervals(job)
        last, has_history = last_by_tag(revisions), bool(revisions)
        return tuple(sorted(next_run(schedule, spread(job, schedule), last, has_history, now).tags))
