"""Read the configuration: YAML files into a Config, with every problem in them at once.

YAML here is text, whole numbers, true and false, nothing, lists and mappings: no anchors, and no
tags such as !!python. It is built from the parser's events, which is quicker than yaml.safe_load,
knows every line, and finds keys that are there twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml import events

from backy.config.settings import Config, Global, Hook, Hooks, Interval, Job, Scrub
from backy.errors import ConfigError
from backy.model.names import check_job
from backy.system import folders
from backy.units import MiB

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[str | int, ...]  # the keys that lead there
_LARGEST_FILE = 64 * MiB
_DEEPEST = 16  # lists and mappings in each other
_MOST_KEYS = 2_000_000  # and items of lists, in one file; 10,000 jobs have about 100,000
_WILD = set("*?[")
_LONGEST = 300  # characters of what is said of a problem
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where there is one
_WORDS = {"": None, "~": None, "null": None, "true": True, "yes": True, "on": True}
_WORDS |= dict.fromkeys(("false", "no", "off"), False)
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # written otherwise it is text: 007, 1_000
_SAID = {
    "bool_parsing": "{found} is neither true nor false",
    "bool_type": "{found} is neither true nor false",
    "dict_type": "{found} is not a mapping. Write KEY: VALUE",
    "extra_forbidden": "not known. There are: {keys}",
    "greater_than_equal": "{found} is less than {ge}",
    "int_parsing": "{found} is not a whole number",
    "less_than_equal": "{found} is more than {le}",
    "literal_error": "{found} is not {expected}",
    "missing": "missing. There are: {keys}",
    "model_type": "{found} is not a mapping. Write KEY: VALUE",
    "multiple_of": "{found} is not a multiple of {multiple_of}",
    "string_type": "{found} is not text. Put it in quotes",
    "too_short": "empty. At least one is needed",
    "tuple_type": "{found} is not a list. Write [ONE, TWO]",
}
_PARTS: dict[Any, type[BaseModel]] = {str(each.alias): Hook for each in Hooks.model_fields.values()}
_PARTS |= {"global": Global, "schedules": Interval, "defaults": Job, "hooks": Hooks, "scrub": Scrub}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in one place: what is there, and what may be. Lines count from 1."""

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
    """The main file cannot be used; `problems` are all that is wrong, in included files, too."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        more = f", and {len(problems) - 1} more" if problems[1:] else ""
        super().__init__(f"{problems[0]}{more}", "backy config check names all of them.")
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Loaded:
    """All jobs that are valid, what is wrong with the others, and which files were read.

    `invalid` has the jobs that are left out because of a problem, each with its first one.
    """

    config: Config
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]
    invalid: Mapping[str, Problem]

    def problem_of(self, job: str) -> Problem | None:
        """Why a job is left out, or may be: it has a problem, or a file that cannot be read has it.

        None where the job is valid, or is certainly not configured.
        """
        if job in self.config.jobs or job in self.invalid:
            return self.invalid.get(job)
        return next((problem for problem in self.problems if not problem.key), None)


def load(path: Path, check_source: Callable[[dict[str, Any]], object]) -> Loaded:
    """Read a configuration and what it includes.

    `check_source` raises ConfigError for a source that is wrong. What is there twice counts as it
    is there first. Raises ProblemsError where anything but a job is wrong in the main file.
    """
    main = _File(path, ("jobs",))
    if main.problems and not main.content:  # nobody knows then which schedules there are
        raise ProblemsError(tuple(main.problems))
    said = main.content
    known = {"schedule": said.get("schedules") or {}, "limits": said.get("limits") or {}}
    known |= {"source": check_source, "defaults": said.get("defaults")}
    parts = [main.judge(Config, (), {key: said[key]}, known) for key in said if key != "jobs"]
    good = {name: getattr(part, name) for part in parts if part for name in part.model_fields_set}
    config = Config().model_copy(update=good)
    files = [main, *(_File(each) for each in _included(main, config.include))]
    jobs: dict[str, Job] = {}
    invalid: dict[str, Problem] = {}
    first: dict[str, _File] = {}
    for file in files:
        for name, settings in file.jobs():
            if first.setdefault(name, file) is file:
                count = len(file.problems)
                if job := file.job(name, settings, known):
                    jobs[name] = job
                else:  # what is wrong with the defaults is noted there
                    invalid[name] = (file.problems[count:] or main.problems)[0]
            else:
                file.note((*file.prefix, name), f"there already, in {first[name].path}")
    problems = tuple(
        each for file in files for each in sorted(file.problems, key=lambda each: each.line)
    )
    if main.is_bad:
        raise ProblemsError(problems)
    config = config.model_copy(update={"jobs": jobs})
    return Loaded(config, problems, tuple(file.path for file in files), invalid)


def read_global(path: Path) -> Global:
    """The settings of the daemon; reads no further than through `global` in the main file.

    Raises ProblemsError.
    """
    file = _File(path, ("jobs",), until="global")
    config = file.judge(Config, (), {"global": file.content.get("global")}, {})
    if not config or file.is_bad:
        raise ProblemsError(tuple(file.problems))
    return config.global_


def schema() -> dict[str, Any]:
    """The JSON schema of the main file, for editors."""
    made = Config.model_json_schema()
    del made["$defs"]["Job"]["required"]  # `defaults` may say it
    return made


class _File:
    """A YAML file: its content, what is wrong with it, and the line of every key."""

    def __init__(self, path: Path, prefix: Place = (), until: str = "") -> None:
        """Read it; `prefix` is where its jobs are. At the key `until` at the top it is enough."""
        self.path = path
        self.prefix = prefix
        self.content: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.is_bad = False  # as a whole, not only one of its jobs
        self._lines: dict[Place, int] = {}
        self._until = (until,)
        text = b""
        try:
            text = folders.read_file(path, _LARGEST_FILE)
            self._next: Callable[[], Any] = _LOADER(text).get_event
            self._parse()
        except (OSError, ValueError) as error:
            self.note((), f"cannot be read: {getattr(error, 'strerror', '') or error}")
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line if mark else text[: getattr(error, "position", 0)].count(b"\n")
            why = getattr(error, "problem", "") or getattr(error, "reason", error)
            self.note((), f"not plain YAML: {why}", line + 1)

    def note(self, place: Place, text: str, line: int = 0) -> None:
        """Add a problem with the line of its key, or of the nearest above it."""
        for length in range(len(place), 0, -1):
            line = line or self._lines.get(place[:length], 0)
        key = ".".join(map(str, place))
        self.problems.append(Problem(self.path, line or 1, _shown(key), _shown(text)))
        depth = len(self.prefix)
        self.is_bad |= len(place) == depth or place[:depth] != self.prefix

    def judge(
        self,
        model: type[Model],
        place: Place,
        values: object,
        known: Mapping[str, Any],
        inherited: Mapping[str, Any] = {},
    ) -> Model | None:
        """What `values` mean; None where something is wrong, which is noted unless inherited."""
        try:
            return model.model_validate(values, context=known, by_alias=True, by_name=False)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                where = tuple(key for key in each["loc"] if key != "[key]")
                if not where or where[0] not in inherited:
                    self.note((*place, *where), _said(model, where, each))
        return None

    def jobs(self) -> Iterator[tuple[str, Any]]:
        """The names of all jobs in it, each with what is said of it."""
        found = self.content.get("jobs") or {} if self.prefix else self.content
        if isinstance(found, dict):
            yield from ((name, {} if each is None else each) for name, each in found.items())
        else:
            self.note(self.prefix, _SAID["dict_type"].format(found=repr(found)))

    def job(self, name: str, settings: object, known: Mapping[str, Any]) -> Job | None:
        """A job with these settings, and with the defaults for all others."""
        inherited: dict[str, Any] = {}
        if isinstance(settings, dict) and isinstance(known["defaults"], dict):
            own = {key for key, value in settings.items() if value is not None}
            inherited = {key: value for key, value in known["defaults"].items() if key not in own}
            settings = settings | inherited
        place = (*self.prefix, name)
        job = self.judge(Job, place, settings, known, inherited)
        try:
            check_job(name)
        except ConfigError as error:
            self.note(place, f"{error.message}. {error.hint}")
            return None
        return job

    def _parse(self) -> None:
        self._next()  # the stream begins
        if type(self._next()) is events.StreamEndEvent:
            raise yaml.YAMLError("it is empty. Write {} where that is meant")
        if type(event := self._next()) is not events.MappingStartEvent:
            raise _refused(event, "it is not a mapping. Write KEY: VALUE")
        self.content = self._value(event, ())
        if self._until[0] not in self.content:
            self._next()  # the document ends
            if type(event := self._next()) is not events.StreamEndEvent:
                raise _refused(event, "a second document begins")

    def _value(self, event: Any, place: Place) -> Any:  # noqa: ANN401 - what YAML can say
        if type(event) is events.AliasEvent or event.anchor or event.tag:
            raise _refused(event, "an anchor, an alias or a tag (& * !). Write it out")
        if len(place) > _DEEPEST or len(self._lines) > _MOST_KEYS:
            raise _refused(event, "it is too deep or too long")
        if type(event) is events.ScalarEvent:
            return _plain(event.value) if event.implicit[0] else event.value
        if type(event) is events.MappingStartEvent:
            return self._mapping(place)
        found: list[Any] = []
        while type(event := self._next()) is not events.SequenceEndEvent:
            inner = (*place, len(found))
            self._lines[inner] = event.start_mark.line + 1
            found.append(self._value(event, inner))
        return found

    def _mapping(self, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while type(key := self._next()) is not events.MappingEndEvent:
            line = key.start_mark.line + 1
            if type(key) is not events.ScalarEvent:
                raise _refused(key, "a key is not text")
            inner = (*place, key.value)
            if key.value in found:
                self.note(inner, f"there already, in line {self._lines[inner]}", line)
            self._lines.setdefault(inner, line)
            found.setdefault(key.value, self._value(self._next(), inner))
            if inner == self._until:
                break
        return found


def _plain(text: str) -> object:
    """What a word without quotes means."""
    return int(text) if _WHOLE.fullmatch(text) else _WORDS.get(text.lower(), text)


def _refused(event: Any, what: str) -> yaml.MarkedYAMLError:  # noqa: ANN401 - of C or of Python
    return yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)


def _said(model: type[BaseModel], place: Place, error: Any) -> str:  # noqa: ANN401 - pydantic's
    """What is there, and what may be there."""
    context = error.get("ctx", {})
    owner = next((_PARTS[key] for key in place[-2::-1] if key in _PARTS), model)
    keys = ", ".join(str(field.alias) for field in owner.model_fields.values())
    if error["type"] == "value_error":
        return str(context["error"])
    said = _SAID.get(error["type"], "{found}: {msg}")
    return said.format(found=repr(error["input"]), keys=keys, msg=error["msg"], **context)


def _included(main: _File, patterns: tuple[str, ...]) -> Iterator[Path]:
    """The files of these names or patterns; of a pattern no hidden ones: those are half written."""
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
            main.note(("include", index), f"{path.parent} cannot be listed: {error}")
            continue
        found = [name for name in names if fnmatchcase(name, path.name) and name[0] != "."]
        yield from (path.parent / name for name in found)


def _shown(text: str) -> str:
    return (text if text.isprintable() else ascii(text)[1:-1])[:_LONGEST]
