"""The settings of the configuration, as validated values. Reads and writes no file.

Keys in YAML and JSON have dashes where attributes have underscores. An unknown key is an error; a
key without a value counts as left out. Durations are seconds, sizes are bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from backy.errors import ConfigError
from backy.model.names import check_disk_name, check_tag
from backy.units import KiB, MiB, parse_duration, parse_size

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}")
_LARGEST_PORT = 65535
_DAY = 86400  # seconds


def checking(check: Callable[[Any], object]) -> Callable[[Any], object]:
    """A validator that calls `check` and turns ConfigError into ValueError, as pydantic needs."""

    def convert(value: object) -> object:
        try:
            return check(value)
        except ConfigError as error:
            raise ValueError(". ".join(filter(None, (error.message, error.hint)))) from error

    return convert


def _tag(tag: str) -> str:
    if tag.startswith("manual:"):
        raise ConfigError(f"{tag!r} is for revisions that never expire", "Use another tag.")
    return check_tag(tag)


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or not str(path).isprintable():
        raise ValueError(f"{str(path)!r} is not an absolute path")
    return path


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text) or not 0 < int(text.rpartition(":")[2]) <= _LARGEST_PORT:
        raise ValueError(f"{text!r} is not HOST:PORT. Write 127.0.0.1:9436, for example.")
    return text


def _program(command: tuple[str, ...]) -> tuple[str, ...]:
    if not "".join(command[:1]) or "\0" in "".join(command):
        raise ValueError(f"{command!r} is not a program and its arguments")
    return command


def _listed(value: object) -> object:
    return [value] if isinstance(value, (str, Mapping)) else value


def _hook(value: object) -> object:
    return {"command": value} if isinstance(value, str) else value


def _switch(value: object) -> object:
    return ({} if value else None) if isinstance(value, bool) else value


def _named(name: str, info: pydantic.ValidationInfo) -> str:
    """Return `name`. Raises ValueError if the validation context has names, but not this one."""
    names = (info.context or {}).get(info.field_name)
    if isinstance(names, Mapping) and name not in names:
        raise ValueError(f"{name!r} does not exist. There are: {', '.join(names) or 'none'}")
    return name


def _source(source: dict[str, Any], info: pydantic.ValidationInfo) -> dict[str, Any]:
    if info.context:
        checking(info.context["source"])(source)
    return source


# Else pydantic would accept true as 1.
_AsText = BeforeValidator(str, json_schema_input_type=int | str)
_Listed = BeforeValidator(_listed, json_schema_input_type=str | list[Any] | dict[str, Any])
Seconds = Annotated[int, BeforeValidator(checking(parse_duration)), _AsText]
Bytes = Annotated[int, BeforeValidator(checking(parse_size)), _AsText]
Whole = Annotated[int, _AsText]
AbsolutePath = Annotated[Path, AfterValidator(_absolute), _AsText]
DiskName = Annotated[str, AfterValidator(checking(check_disk_name))]
Named = Annotated[str, AfterValidator(_named)]
SourceDefinition = Annotated[dict[str, Any], AfterValidator(_source)]


class Values(BaseModel):
    """The base of all parts of the configuration."""

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"), coerce_numbers_to_str=True,
        defer_build=True, extra="forbid", frozen=True, serialize_by_alias=True,
        validate_by_name=True,
    )  # fmt: skip
    gone: ClassVar[tuple[str, ...]] = ()  # keys of backy 2 that are ignored

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        return {k: v for k, v in values.items() if v is not None and k not in cls.gone}


class Interval(Values):
    """How often a backup with a tag is made, and how many backups with that tag are kept."""

    interval: Seconds = Field(ge=1)
    keep: Whole = Field(ge=1)


Tag = Annotated[str, AfterValidator(checking(_tag))]
Schedule = Annotated[dict[Tag, Interval], Field(min_length=1)]


class Hook(Values):
    """A program that runs before or after a step.

    `consistency` is the state of the disks after a successful hook before the snapshot; "crash" is
    for one that does not care for it, such as a check.
    """

    command: Annotated[tuple[str, ...], AfterValidator(_program), _Listed]
    timeout: Seconds = Field(default=60, ge=1, le=_DAY)
    required: bool = False
    consistency: Literal["application", "filesystem", "crash"] = "application"


_Programs = Annotated[tuple[Annotated[Hook, BeforeValidator(_hook)], ...], _Listed]


class Hooks(Values):
    """The hooks of each event, in order. In YAML: a program, a hook, or a list of them."""

    before_snapshot: _Programs = ()
    after_snapshot: _Programs = ()
    after_backup: _Programs = ()
    on_failure: _Programs = ()
    before_restore: _Programs = ()
    after_restore: _Programs = ()

    def __add__(self, others: Hooks) -> Hooks:
        """These hooks, followed by those of `others`."""
        return Hooks(**{event: hooks + getattr(others, event) for event, hooks in self})


class Scrub(Values):
    """How often every stored byte is read again, and the limits of one run.

    Every byte is read once in `within` seconds. A run reads up to `rate` bytes a second (None: no
    limit) and starts nothing new after `max_duration` seconds.
    """

    within: Seconds = Field(default=30 * _DAY, ge=1)
    rate: Bytes | None = Field(default=None, ge=MiB)
    max_duration: Seconds = Field(default=15 * 60, ge=1)


class Defaults(Values):
    """Settings for all jobs that do not have their own; see Job."""

    schedule: Named | None = None
    source: SourceDefinition | None = None
    store: Literal["auto", "chunks", "images"] | None = None
    block_size: Bytes | None = Field(default=None, ge=64 * KiB, le=16 * MiB, multiple_of=64 * KiB)
    level: Whole | None = Field(default=None, ge=1, le=19)
    limits: Annotated[tuple[Named, ...], _Listed] = ()
    hooks: Hooks = Field(default_factory=Hooks)
    expire: bool = True
    minimum: Whole = Field(default=1, ge=1)
    trash: Seconds = 7 * _DAY
    max_duration: Seconds | None = Field(default=None, ge=1)
    scrub: Annotated[
        Scrub | None,
        BeforeValidator(_switch, json_schema_input_type=Scrub | bool),
        pydantic.PlainSerializer(lambda scrub: scrub or False, return_type=Scrub | Literal[False]),
    ] = Field(default_factory=Scrub)


class Job(Defaults):
    """What is backed up, when, how it is stored, and how long it is kept.

    `limits` are names in Config.limits. The newest `minimum` revisions never expire. Removed
    revisions can be brought back for `trash` seconds. The daemon stops a backup that takes longer
    than `max_duration` seconds; without it see policy.deadline. If `scrub` is None, the daemon does
    not scrub the job.
    """

    schedule: Named
    source: SourceDefinition


class Global(Values):
    """Settings of the daemon. Each of its two pools has `worker_limit` workers, as in backy 2.

    `daemon` is False if there is none, because something else starts the backups.
    """

    gone: ClassVar[tuple[str, ...]] = (
        "status-file", "status-interval", "telnet-addrs", "telnet-port",
    )  # fmt: skip
    base_dir: AbsolutePath = Path("/srv/backy")
    base_dir_must_be_mounted: bool = False
    daemon: bool = True
    worker_limit: Whole = Field(default=1, ge=1)
    socket: AbsolutePath = Path("/run/backy/backy.sock")
    metrics_listen: Annotated[str, AfterValidator(_address)] | None = None
    metrics_file: AbsolutePath | None = None
    stop_timeout: Seconds = 10 * 60
    nice: Whole = Field(default=10, ge=0, le=19)
    io_class: Literal["best-effort", "idle", "none"] = "best-effort"
    backup_completed_callback: AbsolutePath | None = None


class Config(Values):
    """The whole configuration. The jobs already contain the `defaults`.

    `limits`: how many jobs may use each named resource at once. `include`: file names or patterns,
    relative to the folder of the main file.
    """

    gone: ClassVar[tuple[str, ...]] = ("api", "peers")
    global_: Global = Field(default_factory=Global, alias="global")
    schedules: dict[str, Schedule] = {}
    defaults: Defaults = Field(default_factory=Defaults)
    hooks: Hooks = Field(default_factory=Hooks)
    limits: dict[str, Annotated[Whole, Field(ge=1)]] = {}
    jobs: dict[str, Job] = {}
    include: Annotated[tuple[str, ...], _Listed] = ("jobs.d/*.yaml",)

    def hooks_of(self, name: str) -> Hooks:
        """The hooks of a job, in order: backy 2's callback, those of all jobs, then its own."""
        callback = self.global_.backup_completed_callback
        first = Hooks(after_backup=(Hook(command=(str(callback), name)),)) if callback else Hooks()
        return first + self.hooks + self.jobs[name].hooks

    def intervals(self, name: str) -> Schedule:
        """The schedule of a job."""
        return self.schedules[self.jobs[name].schedule]
