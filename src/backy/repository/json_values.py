"""Values of dataclasses, made from JSON and written as JSON, with the types checked.

pydantic does the same and more, but to import it takes longer than all that `backy list` does
besides. What is read here may be damaged or forged: nothing is converted that only looks right,
such as "5" for 5. Keys that no field has are ignored, as docs/formats.md says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from math import isfinite
from pathlib import PurePath
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Value = TypeVar("Value")
_Decoder = Callable[[Any], Any]
_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:Z|[+-]\d{2}:\d{2})", re.ASCII
)
_LONGEST = 60  # characters of a wrong value that are shown


class WrongValueError(ValueError):
    """A value that is not of its type: "disks.vda.size: '5' is not a whole number"."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.keys: list[str] = []  # the way to the value, from its end

    def __str__(self) -> str:
        """The way to it, and what is wrong."""
        return ": ".join([*filter(None, [".".join(reversed(self.keys))]), *map(str, self.args)])


def decode(kind: type[Value], record: object) -> Value:
    """The value of a dataclass for what json.loads gave. Raises WrongValueError if it is none."""
    form: Any = kind
    value: Value = _decoder(form)(record)
    return value


@cache
def _decoder(kind: Any) -> _Decoder:  # noqa: ANN401 - any form of a type
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if is_dataclass(kind):
        return _object(kind)  # type: ignore[arg-type]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member({each.value: each for each in kind})
    inner = get_args(kind)
    if NoneType in inner:
        return _optional(*(each for each in inner if each is not NoneType))
    if get_origin(kind) is tuple:
        return _list(inner[0]) if inner[1:] == (...,) else _pair(*map(_decoder, inner))
    return _mapping(inner[1])


def encode(value: object) -> Any:  # noqa: ANN401 - JSON
    """What json.dumps takes for a value of a dataclass, or for part of one."""
    if is_dataclass(value):
        return {_key(each): encode(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, PurePath) else value


def _key(field: Field[Any]) -> str:
    """The name of a field in JSON."""
    return str(field.metadata.get("key", field.name))


def _object(kind: type[Any]) -> _Decoder:
    hints = get_type_hints(kind)
    parts = [
        (each.name, _key(each), _decoder(hints[each.name]), _is_required(each))
        for each in fields(kind)
    ]

    def decode(record: object) -> object:
        if not isinstance(record, dict):
            raise _wrong(record, "an object")
        values = {}
        for name, key, convert, is_required in parts:
            if key in record:
                try:
                    values[name] = convert(record[key])
                except WrongValueError as error:
                    error.keys.append(key)
                    raise
            elif is_required:
                raise WrongValueError(f"{key} is missing")
        return kind(**values)

    return decode


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _optional(inner: object) -> _Decoder:
    convert = _decoder(inner)
    return lambda value: None if value is None else convert(value)


def _list(inner: object) -> _Decoder:
    convert = _decoder(inner)

    def decode(values: object) -> object:
        if not isinstance(values, list):
            raise _wrong(values, "a list")
        return tuple([convert(value) for value in values])

    return decode


def _pair(*converters: _Decoder) -> _Decoder:
    def decode(values: object) -> object:
        if not isinstance(values, list) or len(values) != len(converters):
            raise _wrong(values, f"a list of {len(converters)}")
        return tuple([convert(each) for convert, each in zip(converters, values, strict=True)])

    return decode


def _mapping(inner: object) -> _Decoder:
    convert = _decoder(inner)

    def decode(values: object) -> object:
        if not isinstance(values, dict):
            raise _wrong(values, "an object")
        made = {}
        for key, value in values.items():
            try:
                made[key] = convert(value)
            except WrongValueError as error:
                error.keys.append(key)
                raise
        return made

    return decode


def _member(members: Mapping[object, Enum]) -> _Decoder:
    def decode(value: object) -> Enum:
        if isinstance(value, str) and value in members:
            return members[value]
        raise _wrong(value, f"one of {', '.join(map(str, members))}")

    return decode


def _exactly(kind: type, expected: str) -> _Decoder:
    def decode(value: object) -> object:
        if type(value) is kind:
            return value
        raise _wrong(value, expected)

    return decode


def _number(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            if isfinite(value):
                return float(value)
    raise _wrong(value, "a number")


def _time(value: object) -> datetime:
    if isinstance(value, str) and _TIME.fullmatch(value):
        with suppress(ValueError, OverflowError):
            time = datetime.fromisoformat(value)
            time.astimezone(UTC)  # which not all times of the years 1 and 9999 can be
            return time
    raise _wrong(value, "a time with its offset from UTC")


def _wrong(value: object, expected: str) -> WrongValueError:
    return WrongValueError(f"{value!r:.{_LONGEST}} is not {expected}")


_SIMPLE: Mapping[object, _Decoder] = {
    Any: lambda value: value,
    bool: _exactly(bool, "true or false"),
    datetime: _time,
    float: _number,
    int: _exactly(int, "a whole number"),
    str: _exactly(str, "a text"),
}
