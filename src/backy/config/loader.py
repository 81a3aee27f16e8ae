"""Read the configuration: YAML files into a Config, with all problems in them reported at once.

Of YAML we accept text, whole numbers, true, false, null, lists and mappings; no anchors, and no
tags such as !!python. We read the parser's events: this is faster than yaml.safe_load, gives the
line of every key, and finds duplicate keys.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml import events

from backy.config.settings import Config, Global, Hook, Hooks, Interval, Job, Scrub
from backy.errors import ConfigError
from backy.model.names import check_job
from backy.system import folders
from backy.system.permissions import others_may_write
from backy.units import MiB

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str | int, ...]  # the keys and list indexes from the top
_LARGEST_FILE = 64 * MiB
_DEEPEST = 16  # nested lists and mappings
_MOST_KEYS = 2_000_000  # keys and list items in one file; 10,000 jobs have about 100,000
_WILD = set("*?[")
_LONGEST = 300  # characters of a key or a message in a problem
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, if it is installed
_WORDS = {"": None, "~": None, "null": None, "true": True, "yes": True, "on": True}
_WORDS |= dict.fromkeys(("false", "no", "off"), False)
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # all else is text: 007, 1_000
_MESSAGES = {
    "bool_parsing": "{value} is neither true nor false",
    "bool_type": "{value} is neither true nor false",
    "dict_type": "{value} is not a mapping. Write KEY: VALUE",
    "extra_forbidden": "not known. There are: {keys}",
    "greater_than_equal": "{value} is less than {ge}",
    "int_parsing": "{value} is not a whole number",
    "less_than_equal": "{value} is more than {le}",
    "literal_error": "{value} is not {expected}",
    "missing": "missing. There are: {keys}",
    "model_type": "{value} is not a mapping. Write KEY: VALUE",
    "multiple_of": "{value} is not a multiple of {multiple_of}",
    "string_type": "{value} is not text. Put it in quotes",
    "too_short": "empty. At least one is needed",
    "tuple_type": "{value} is not a list. Write [ONE, TWO]",
}
_PARTS: dict[Any, type[BaseModel]] = {
    str(field.alias): Hook for field in Hooks.model_fields.values()
}
_PARTS |= {"global": Global, "schedules": Interval, "defaults": Job, "hooks": Hooks, "scrub": Scrub}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem in a file: its key, and what is wrong. `line` counts from 1."""

    path: Path
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        """In one line: "backy.yaml:12: jobs.vm1.schedule: 'x' does not exist. There are: …"."""
        key = f"{self.key}: " if self.key else ""
        path = str(self.path)
        return f"{path if path.isprintable() else ascii(path)}:{self.line}: {key}{self.text}"


class ProblemsError(ConfigError):
    """The main file cannot be used. `problems` has all problems, those of included files too."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        more = f", and {len(problems) - 1} more" if problems[1:] else ""
        super().__init__(f"{problems[0]}{more}", "backy config check lists all of them.")
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration with all valid jobs, the problems, and the files that were read.

    `invalid` has the first problem of each job that was left out because of one. `problem` makes
    one with file and line from a job ("": the main file), the keys in it, and a text.
    """

    config: Config
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]
    invalid: Mapping[str, Problem]
    problem: Callable[[str, KeyPath, str], Problem]

    def problem_of(self, job: str) -> Problem | None:
        """Why a job is left out: its own problem, or that of a file that cannot be read.

        Such a file may contain the job. None if the job is valid, or is surely not configured.
        """
        if job in self.config.jobs or job in self.invalid:
            return self.invalid.get(job)
        return next((problem for problem in self.problems if not problem.key), None)


def load(path: Path, check_source: Callable[[dict[str, Any]], object]) -> Loaded:
    """Read a configuration and the files that it includes.

    `check_source` raises ConfigError for a wrong source. Of duplicates the first one counts.
    Raises ProblemsError if anything but a job is wrong in the main file.
    """
    main = _File(path, ("jobs",))
    if main.problems and not main.content:  # so no schedule is known
        raise ProblemsError(tuple(main.problems))
    content = main.content
    context = {"schedule": content.get("schedules") or {}, "limits": content.get("limits") or {}}
    context |= {"source": check_source, "defaults": content.get("defaults")}
    parts = [
        main.validated(Config, (), {key: content[key]}, context) for key in content if key != "jobs"
    ]
    valid = {name: getattr(part, name) for part in parts if part for name in part.model_fields_set}
    config = Config().model_copy(update=valid)
    files = [main, *(_File(path) for path in _included(main, config.include))]
    jobs: dict[str, Job] = {}
    invalid: dict[str, Problem] = {}
    first: dict[str, _File] = {}
    for file in files:
        for name, settings in file.jobs():
            if first.setdefault(name, file) is file:
                count = len(file.problems)
                if job := file.job(name, settings, context):
                    jobs[name] = job
                else:  # a problem of the defaults is noted in the main file
                    invalid[name] = (file.problems[count:] or main.problems)[0]
            else:
                file.note((*file.prefix, name), f"defined already in {first[name].path}")
    by_line = attrgetter("line")
    problems = tuple(each for file in files for each in sorted(file.problems, key=by_line))
    if main.is_bad:
        raise ProblemsError(problems)
    config = config.model_copy(update={"jobs": jobs})

    def problem(job: str, keys: KeyPath, text: str) -> Problem:
        file = first.get(job, main)
        return file.problem((*file.prefix, job, *keys) if job else keys, text)

    return Loaded(config, problems, tuple(file.path for file in files), invalid, problem)


def read_global(path: Path) -> Global:
    """The settings of the daemon. Reads the main file only up to the end of `global`.

    Raises ProblemsError if they are wrong or the file cannot be read.
    """
    file = _File(path, ("jobs",), until="global")
    content = file.content.get("global")
    settings = file.validated(Global, ("global",), {} if content is None else content, {})
    if not settings or file.is_bad:
        raise ProblemsError(tuple(file.problems))
    return settings


def schema() -> dict[str, Any]:
    """The JSON schema of the main file, for editors."""
    made = Config.model_json_schema()
    del made["$defs"]["Job"]["required"]  # `defaults` may have them
    return made


class _File:
    """A YAML file: its content, its problems, and the line of every key."""

    def __init__(self, path: Path, prefix: KeyPath = (), until: str = "") -> None:
        """Read it; `prefix` is the path to its jobs. Stops after the top-level key `until`."""
        self.path = path
        self.prefix = prefix
        self.content: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.is_bad = False  # has a problem outside of its jobs
        self._lines: dict[KeyPath, int] = {}
        self._until = (until,)
        text = b""
        try:
            text = _read(path)
            self._next: Callable[[], Any] = _LOADER(text).get_event
            self._parse()
        except (OSError, ValueError) as error:
            self.note((), f"cannot be read: {getattr(error, 'strerror', '') or error}")
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line if mark else text[: getattr(error, "position", 0)].count(b"\n")
            why = getattr(error, "problem", "") or getattr(error, "reason", error)
            self.note((), f"not plain YAML: {why}", line + 1)

    def note(self, place: KeyPath, text: str, line: int = 0) -> None:
        """Add a problem, with the line of its key or of the nearest key above it."""
        self.problems.append(self.problem(place, text, line))
        depth = len(self.prefix)
        self.is_bad |= len(place) == depth or place[:depth] != self.prefix

    def problem(self, place: KeyPath, text: str, line: int = 0) -> Problem:
        """The problem that `note` adds."""
        for length in range(len(place), 0, -1):
            line = line or self._lines.get(place[:length], 0)
        return Problem(self.path, line or 1, _shown(".".join(map(str, place))), _shown(text))

    def validated(
        self,
        model: type[Model],
        place: KeyPath,
        values: object,
        context: Mapping[str, Any],
        inherited: Mapping[str, Any] = {},
    ) -> Model | None:
        """A model of `values`, or None if they have problems: noted unless in an inherited key."""
        try:
            return model.model_validate(values, context=context, by_alias=True, by_name=False)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                keys = tuple(key for key in problem["loc"] if key != "[key]")
                if not keys or keys[0] not in inherited:
                    self.note((*place, *keys), _message(model, keys, problem))
        return None

    def jobs(self) -> Iterator[tuple[str, Any]]:
        """The name and the settings of each job in the file."""
        jobs = self.content.get("jobs") or {} if self.prefix else self.content
        if isinstance(jobs, dict):
            yield from ((name, {} if job is None else job) for name, job in jobs.items())
        else:
            self.note(self.prefix, _MESSAGES["dict_type"].format(value=repr(jobs)))

    def job(self, name: str, settings: object, context: Mapping[str, Any]) -> Job | None:
        """The job with these settings and the defaults for all others; None if it has a problem."""
        inherited: dict[str, Any] = {}
        if isinstance(settings, dict) and isinstance(context["defaults"], dict):
            own = {key for key, value in settings.items() if value is not None}
            inherited = {key: value for key, value in context["defaults"].items() if key not in own}
            settings = settings | inherited
        place = (*self.prefix, name)
        job = self.validated(Job, place, settings, context, inherited)
        try:
            check_job(name)
        except ConfigError as error:
            self.note(place, f"{error.message}. {error.hint}")
            return None
        return job

    def _parse(self) -> None:
        self._next()  # the stream begins
        if type(self._next()) is events.StreamEndEvent:
            raise yaml.YAMLError("it is empty. Write {} if that is meant")
        if type(event := self._next()) is not events.MappingStartEvent:
            raise _refused(event, "it is not a mapping. Write KEY: VALUE")
        self.content = self._value(event, ())
        if self._until[0] not in self.content:
            self._next()  # the document ends
            if type(event := self._next()) is not events.StreamEndEvent:
                raise _refused(event, "a second document begins")

    def _value(self, event: Any, place: KeyPath) -> Any:  # noqa: ANN401 - any YAML value
        if type(event) is events.AliasEvent or event.anchor or event.tag:
            raise _refused(event, "an anchor, an alias or a tag (& * !). Write it out")
        if len(place) > _DEEPEST or len(self._lines) > _MOST_KEYS:
            raise _refused(event, "it is too deep or too long")
        if type(event) is events.ScalarEvent:
            return _plain(event.value) if event.implicit[0] else event.value
        if type(event) is events.MappingStartEvent:
            return self._mapping(place)
        items: list[Any] = []
        while type(event := self._next()) is not events.SequenceEndEvent:
            inner = (*place, len(items))
            self._lines[inner] = event.start_mark.line + 1
            items.append(self._value(event, inner))
        return items

    def _mapping(self, place: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while type(key := self._next()) is not events.MappingEndEvent:
            line = key.start_mark.line + 1
            if type(key) is not events.ScalarEvent:
                raise _refused(key, "a key is not text")
            inner = (*place, key.value)
            if key.value in values:
                self.note(inner, f"defined already in line {self._lines[inner]}", line)
            self._lines.setdefault(inner, line)
            values.setdefault(key.value, self._value(self._next(), inner))
            if inner == self._until:
                break
        return values


def _read(path: Path) -> bytes:
    if reason := others_may_write(path):
        raise ValueError(f"{reason}. Only root may write what root obeys")
    return folders.read_file(path, _LARGEST_FILE)


def _plain(text: str) -> object:
    """The value of a scalar without quotes."""
    return int(text) if _WHOLE.fullmatch(text) else _WORDS.get(text.lower(), text)


def _refused(event: Any, problem: str) -> yaml.MarkedYAMLError:  # noqa: ANN401 - of C or of Python
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _message(model: type[BaseModel], place: KeyPath, error: Any) -> str:  # noqa: ANN401 - pydantic's
    """The value, why it is wrong, and what is allowed."""
    context = error.get("ctx", {})
    owner = next((_PARTS[key] for key in place[-2::-1] if key in _PARTS), model)
    keys = ", ".join(str(field.alias) for field in owner.model_fields.values())
    if error["type"] == "value_error":
        return str(context["error"])
    message = _MESSAGES.get(error["type"], "{value}: {msg}")
    return message.format(value=repr(error["input"]), keys=keys, msg=error["msg"], **context)


def _included(main: _File, patterns: tuple[str, ...]) -> Iterator[Path]:
    """The files with these names or patterns. Patterns skip hidden (incomplete) files."""
    for index, pattern in enumerate(patterns):
        path = main.path.parent / pattern
        if not _WILD & set(pattern):
            yield path
            continue
        if _WILD & set(str(Path(pattern).parent)):
            main.note(("include", index), f"{pattern!r}: only the last part can be a pattern")
            continue
        try:
            names = folders.list_folder(path.parent)
        except (OSError, ValueError) as error:
            # Of the latter each version of Python says something else.
            why = error if isinstance(error, OSError) else "it has a NUL byte"
            main.note(("include", index), f"{path.parent} cannot be listed: {why}")
            continue
        shown = (name for name in names if name[0] != ".")
        yield from (path.parent / name for name in shown if fnmatchcase(name, path.name))


def _shown(text: str) -> str:
    return (text if text.isprintable() else ascii(text)[1:-1])[:_LONGEST]
