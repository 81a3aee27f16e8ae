"""Read a YAML file, and the line of every key in it.

Of YAML we accept text, whole numbers, true, false, null, lists and mappings; no anchors, and no
tags such as !!python. We read the parser's events: this is faster than yaml.safe_load, gives the
line of every key, and finds duplicate keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from yaml import events

from backy.system import folders
from backy.units import MiB

KeyPath = tuple[str | int, ...]  # the keys and list indexes from the top
_LARGEST_FILE = 64 * MiB
_DEEPEST = 16  # nested lists and mappings
_MOST_KEYS = 2_000_000  # keys and list items in one file; 10,000 jobs have about 100,000
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, if it is installed
_WORDS = {"": None, "~": None, "null": None, "true": True, "yes": True, "on": True}
_WORDS |= dict.fromkeys(("false", "no", "off"), False)
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # all else is text: 007, 1_000


class PlainYaml:
    """A file: its `content`, its `problems` as (keys, text, line), and the `lines` of its keys.

    The content is empty if the file cannot be read, or is not plain YAML.
    """

    def __init__(self, path: Path, until: str = "") -> None:
        """Read it, and no further than to the end of the top-level key `until`."""
        self.content: dict[str, Any] = {}
        self.problems: list[tuple[KeyPath, str, int]] = []
        self.lines: dict[KeyPath, int] = {}
        self._until = (until,)
        text = b""
        try:
            text = folders.read_file(path, _LARGEST_FILE)
            self._next: Callable[[], Any] = _LOADER(text).get_event
            self._parse()
        except (OSError, ValueError) as error:
            self._note((), f"cannot be read: {getattr(error, 'strerror', '') or error}")
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line if mark else text[: getattr(error, "position", 0)].count(b"\n")
            why = getattr(error, "problem", "") or getattr(error, "reason", error)
            self._note((), f"not plain YAML: {why}", line + 1)

    def _note(self, place: KeyPath, text: str, line: int = 0) -> None:
        self.problems.append((place, text, line))

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
        if len(place) > _DEEPEST or len(self.lines) > _MOST_KEYS:
            raise _refused(event, "it is too deep or too long")
        if type(event) is events.ScalarEvent:
            return _plain(event.value) if event.implicit[0] else event.value
        if type(event) is events.MappingStartEvent:
            return self._mapping(place)
        items: list[Any] = []
        while type(event := self._next()) is not events.SequenceEndEvent:
            inner = (*place, len(items))
            self.lines[inner] = event.start_mark.line + 1
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
                self._note(inner, f"defined already in line {self.lines[inner]}", line)
            self.lines.setdefault(inner, line)
            values.setdefault(key.value, self._value(self._next(), inner))
            if inner == self._until:
                break
        return values


def _plain(text: str) -> object:
    """The value of a scalar without quotes."""
    return int(text) if _WHOLE.fullmatch(text) else _WORDS.get(text.lower(), text)


def _refused(event: Any, problem: str) -> yaml.MarkedYAMLError:  # noqa: ANN401 - of C or of Python
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
