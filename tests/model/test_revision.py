"""A revision's id, time and names: values, and what may become one."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.errors import ConfigError, NotFoundError
from backy.model.names import check_disk_name, check_tag
from backy.model.new_time import time_for
from backy.model.revision import Consistency, Disk, Revision, disk_of, id_for, is_id

NOW = datetime(2026, 11, 23, 0, 49, 38, 123456, tzinfo=UTC)
times = st.integers(631152000, 29000000000).map(lambda second: datetime.fromtimestamp(second, UTC))


def with_disks(*names: str) -> Revision:
    disk = Disk(1, 65536, "0" * 64, 1, 1, 1)
    time = time_for(NOW, None)
    return Revision(
        id_for(time, "x7k2"), time, None, 1.0, Consistency.NONE, dict.fromkeys(names, disk)
    )


def test_an_id_tells_its_time_to_people() -> None:
    assert id_for(NOW, "x7k2") == "20261123T004938Z-x7k2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".20261123T004938Z-x7k2",
        "20261123T004938Z",
        "20261123T004938Z-x7k",
        "20261123T004938Z-x7k22",
        "20261123T004938Z-X7K2",
        "20261123T004938-x7k2",
        "20261123 004938Z-x7k2",
        "20261123T004938Z-x7k2\n",
        "../20261123T004938Z-x7k2",
        "2026112\N{ARABIC-INDIC DIGIT THREE}T004938Z-x7k2",
    ],
)
def test_a_text_without_the_form_of_an_id_is_not_an_id(text: str) -> None:
    assert not is_id(text)


@pytest.mark.parametrize("text", ["99999999T999999Z-aaaa", "20260230T000000Z-aaaa"])
def test_an_impossible_time_is_not_an_id(text: str) -> None:
    """A folder of such a name in revisions/ would else stop every backup."""
    assert not is_id(text)


@given(times, st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=4, max_size=4))
def test_every_time_makes_an_id_that_gives_it_back(time: datetime, suffix: str) -> None:
    made = id_for(time, suffix)
    assert is_id(made)
    assert datetime.strptime(made[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) == time.replace(
        microsecond=0
    )


@given(now=times, newest=st.none() | times.map(lambda time: time.replace(microsecond=0)))
def test_a_new_revision_is_newer_than_all_others_whatever_the_clock_says(
    now: datetime, newest: datetime | None
) -> None:
    time = time_for(now, newest)
    assert time.microsecond == 0
    assert time >= now.replace(microsecond=0)
    if newest:
        assert id_for(time, "0000") > id_for(newest, "zzzz")
        assert time <= max(now, newest + timedelta(seconds=1))


def test_the_time_is_utc_wherever_the_machine_is() -> None:
    here = NOW.astimezone(timezone(timedelta(hours=-5)))
    assert time_for(here, None) == NOW.replace(microsecond=0)
    assert time_for(here, None).utcoffset() == timedelta(0)


@pytest.mark.parametrize("name", ["vda", "0", "a.b", "Disk_1-root.raw", "x" * 64])
def test_a_disk_may_be_called(name: str) -> None:
    assert check_disk_name(name) == name


NO_DISKS = [
    "",
    ".",
    "..",
    ".x",
    "-rf",
    "_x",
    "a/b",
    "/",
    "a b",
    "a\n",
    "a\0",
    "ä",
    "x" * 65,
    "$HOME",
    "a*",
]


@pytest.mark.parametrize("name", NO_DISKS)
def test_a_name_that_cannot_be_a_file_is_not_a_disk_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_disk_name(name)
    assert repr(name) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "tag", ["daily", "manual:before-upgrade", "größte", "2026", "a.b@c", "x" * 64]
)
def test_a_tag_may_be(tag: str) -> None:
    assert check_tag(tag) == tag


NO_TAGS = [
    "",
    "-x",
    "+x",
    ".x",
    ":x",
    "_x",
    "a b",
    "a,b",
    "a&b",
    "a(b",
    "a)b",
    "a..b",
    "a\n",
    "x" * 65,
    "a/b",
    "a'b",
    "$x",
]


@pytest.mark.parametrize("tag", NO_TAGS)
def test_a_tag_that_cannot_be_used_in_a_revision_word_is_refused(tag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_tag(tag)
    assert repr(tag) in caught.value.message
    assert caught.value.hint


@given(st.text(max_size=80))
@pytest.mark.parametrize("check", [check_disk_name, check_tag])
def test_a_name_is_given_back_or_is_an_error_for_people(
    check: Callable[[str], str], text: str
) -> None:
    try:
        assert check(text) == text
    except ConfigError as error:
        assert error.hint  # noqa: PT017 - either is fine


def test_the_only_disk_needs_no_name() -> None:
    assert disk_of(with_disks("vda"), None) == "vda"
    assert disk_of(with_disks("vda", "vdb"), "vdb") == "vdb"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        pytest.param(None, "has several disks: vda, vdb", "Add --disk NAME.", id="not-said"),
        pytest.param("vdc", "has no disk 'vdc'", "It has: vda, vdb.", id="not-there"),
    ],
)
def test_an_ambiguous_or_unknown_disk_is_an_error_that_lists_all_disks(
    name: str | None, message: str, hint: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        disk_of(with_disks("vda", "vdb"), name)
    assert message in caught.value.message
    assert caught.value.hint == hint


def test_a_revision_is_a_value() -> None:
    assert with_disks("vda") == with_disks("vda")
    with pytest.raises(FrozenInstanceError):
        with_disks("vda").id = "other"  # type: ignore[misc]
