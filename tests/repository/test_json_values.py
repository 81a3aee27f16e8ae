"""Values come from JSON with their types checked, and go back to the same JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from backy.model.revision import Consistency, Disk, Revision
from backy.monitoring.space import _Samples
from backy.operations.scrub_plan import Memory, Slice
from backy.repository.json_values import WrongValueError, decode, encode
from backy.repository.manifest import Settings
from backy.repository.quarantine import Occurrence, Report
from backy.repository.status import Scrubbed, Status


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    number: int
    text: str = "none"


@dataclass(frozen=True, slots=True)
class Outer:
    """One field of each kind of type that a record has."""

    colour: Colour
    seconds: float
    time: datetime
    parts: Mapping[str, Inner]
    parent: Inner | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    is_new: bool = field(default=False, metadata={"key": "new"})


TIME = datetime(2026, 11, 23, 4, 8, 57, tzinfo=UTC)
VALUE = Outer(Colour.BLUE, 1.5, TIME, {"a": Inner(1)}, Inner(2, "x"), ((1, 2),), {"y": [1]}, True)
RECORD = {
    "colour": "blue",
    "seconds": 1.5,
    "time": "2026-11-23T04:08:57Z",
    "parts": {"a": {"number": 1, "text": "none"}},
    "parent": {"number": 2, "text": "x"},
    "pairs": [[1, 2]],
    "settings": {"y": [1]},
    "new": True,
}


def test_a_value_goes_to_json_and_comes_back() -> None:
    assert encode(VALUE) == RECORD
    assert list(encode(VALUE)) == list(RECORD)
    assert decode(Outer, json.loads(json.dumps(RECORD))) == VALUE


def test_what_is_left_out_has_its_default_and_what_is_not_known_is_ignored() -> None:
    short = {name: RECORD[name] for name in ("colour", "seconds", "time", "parts")}
    assert decode(Outer, short | {"later": 1}) == Outer(Colour.BLUE, 1.5, TIME, {"a": Inner(1)})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"colour": "green"}, "colour: 'green' is not one of red, blue"),
        ({"colour": ["red"]}, "colour: ['red'] is not one of red, blue"),
        ({"seconds": "1"}, "seconds: '1' is not a number"),
        ({"seconds": True}, "seconds: True is not a number"),
        ({"seconds": float("nan")}, "seconds: nan is not a number"),
        ({"seconds": 10**400}, "is not a number"),
        ({"time": "2026-11-23T04:08:57"}, "is not a time with its offset"),
        ({"time": "2026-11-31T04:08:57Z"}, "is not a time with its offset"),
        ({"time": "0001-01-01T00:00:00+23:59"}, "is not a time with its offset"),
        ({"time": 1790000000}, "is not a time with its offset"),
        ({"parts": []}, "parts: [] is not an object"),
        ({"parts": {"a": {"number": "1"}}}, "parts.a.number: '1' is not a whole number"),
        ({"parts": {"a": {"number": 1.0}}}, "parts.a.number: 1.0 is not a whole number"),
        ({"parts": {"a": {"number": True}}}, "parts.a.number: True is not a whole number"),
        ({"parts": {"a": {}}}, "parts.a: number is missing"),
        ({"parts": {"a": None}}, "parts.a: None is not an object"),
        ({"parent": {"number": 1, "text": 5}}, "parent.text: 5 is not a text"),
        ({"pairs": {"a": 1}}, "is not a list"),
        ({"pairs": [[1, 2, 3]]}, "pairs: [1, 2, 3] is not a list of 2"),
        ({"new": 1}, "new: 1 is not true or false"),
    ],
    ids=str,
)
def test_what_is_not_of_its_type_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(WrongValueError) as caught:
        decode(Outer, RECORD | change)
    assert problem in str(caught.value)


def test_a_long_value_is_not_shown_in_full() -> None:
    with pytest.raises(WrongValueError) as caught:
        decode(Inner, {"number": "x" * 10_000})
    assert len(str(caught.value)) < 200


MINUTES = st.integers(-1439, 1439)
OFFSETS = st.builds(timezone, MINUTES.map(lambda minutes: timedelta(minutes=minutes)))
FIRST, LAST = (TIME.replace(year=year, tzinfo=None) for year in (2, 9998))  # in any offset
TIMES = st.datetimes(FIRST, LAST, timezones=OFFSETS)


@given(TIMES)
def test_every_time_comes_back(time: datetime) -> None:
    value = Outer(Colour.RED, 0, time, {})
    assert decode(Outer, encode(value)).time == time


REV = "20261123T040857Z-x7k2"
RECORDS = [
    Memory({"vda": 4}, {"vda": (Slice(), Slice(TIME, REV, 9))}),
    Report(REV, TIME, "verify", "ab" * 32, "cut", (REV,), (Occurrence(REV, "vda", 0, 4),), "x"),
    Revision(REV, TIME, None, 0.5, Consistency.CRASH, {"vda": Disk(1, 2, "0", 3, 4, 5)}, ("a",)),
    Settings("chunks", 65536, source={"type": "file", "disks": {"vda": "/größe"}}),
    Status(
        errors=1, seconds=0.25, failed=TIME, distrusted=(REV,), scrubbed=Scrubbed(TIME, 1, 0, None)
    ),
    _Samples(((TIME, 5), (TIME.replace(microsecond=5), 6))),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_all_records_are_written_and_read_as_pydantic_does_it(record: object) -> None:
    adapter: TypeAdapter[object] = TypeAdapter(type(record))
    expected = adapter.dump_python(record, mode="json")
    parts = fields(record)  # type: ignore[arg-type]
    keys = {each.name: each.metadata.get("key", each.name) for each in parts}
    assert encode(record) == {keys[name]: part for name, part in expected.items()}
    assert decode(type(record), json.loads(json.dumps(encode(record)))) == record
    assert adapter.validate_python(expected) == record
