"""What a person types is understood or refused: revision words, sizes, durations, names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import timedelta
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.errors import BackyError, ConfigError, NotFoundError, UsageError
from backy.model.names import check_disk_name, check_job, check_tag
from backy.model.revision import (
    Consistency,
    Disk,
    Revision,
    Trust,
    disk_of,
    id_for,
    is_id,
    time_for,
    time_of,
)
from backy.model.selector import select, select_one
from backy.units import format_duration, format_size, parse_duration, parse_size
from tests.fuzz import corpora
from tests.fuzz.mutate import STRINGS

DISK = Disk(1, 65536, "0" * 64, 0, 0, 0)


def revision(revision_id: str, *tags: str, trust: Trust = Trust.TRUSTED) -> Revision:
    time = time_of(revision_id)
    return Revision(revision_id, time, None, 1, Consistency.CRASH, {"vda": DISK}, tags, trust)


HISTORY = [
    revision("10000101T000000Z-aaaa"),  # the first year that strftime writes with four digits
    revision("20261121T000000Z-aaaa", "daily"),
    revision("20261123T004938Z-x7k2", "daily", "größte.tag@2", trust=Trust.VERIFIED),
    revision("20261123T004939Z-x7k3", trust=Trust.DISTRUSTED),
    revision("99991231T235959Z-zzzz"),
]
WORDS = corpora.lines("words.txt")
TEXTS = corpora.lines("sizes.txt")

words = st.recursive(
    st.sampled_from(WORDS) | st.text(max_size=6),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([",", "&", "..", " ", "..,", "&&"]), inner).map("".join),
        st.tuples(st.sampled_from(["", "not", "first", "last", "reverse", "all"]), inner).map(
            lambda pair: f"{pair[0]}({pair[1]})"
        ),
    ),
    max_leaves=12,
)


def find(word: str) -> None:
    """A word names some of the history, each once, or is refused with the word in the message."""
    try:
        found = select(word, HISTORY)
    except (NotFoundError, UsageError) as error:
        assert error.message  # noqa: PT017 - either is fine
        assert error.hint  # noqa: PT017
        return
    assert len({each.id for each in found}) == len(found)
    assert all(each in HISTORY for each in found)
    try:
        assert [select_one(word, HISTORY)] == found
    except NotFoundError as error:
        assert len(found) != 1
        assert error.hint  # noqa: PT017


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_the_corpus_is_understood_or_refused(word: str) -> None:
    find(word)


@given(words)
def test_any_word_is_understood_or_refused(word: str) -> None:
    find(word)


@pytest.mark.parametrize(
    "word",
    [
        "9" * 4096,
        "9" * 5000,
        "(" * 4096,
        "not(" * 64 + "all" + ")" * 64,
        "not(" * 65 + "all" + ")" * 65,
        "all," * 1023 + "all",
        "." * 4096,
        "-" * 4096,
        "2026-11-23.." * 300,
        " " * 4096,
        "\ud800" * 100,
        "\0" * 100,
    ],
    ids=lambda word: f"{word[:8]!a}-{len(word)}",
)
def test_a_long_word_is_understood_or_refused(word: str) -> None:
    find(word)


def value_of(parse: Callable[[str], int], text: str) -> int | None:
    try:
        return parse(text)
    except ConfigError as error:
        assert error.hint  # noqa: PT017 - either is fine
        return None


@pytest.mark.parametrize("text", TEXTS)
def test_a_size_or_duration_of_the_corpus_is_understood_or_refused(text: str) -> None:
    limits(text)


numbers = st.from_regex(r"[0-9]{0,20}(\.[0-9]{0,8})?\s?[A-Za-z]{0,3}", fullmatch=True)


@given(numbers | st.text(max_size=12) | st.sampled_from([*TEXTS, *STRINGS]))
def test_any_size_or_duration_is_understood_or_refused(text: str) -> None:
    limits(text)


def limits(text: str) -> None:
    size, seconds = value_of(parse_size, text), value_of(parse_duration, text)
    if size is not None:
        assert 0 <= size < 2**63
        assert len(format_size(size)) < 20
    if seconds is not None:
        assert timedelta(0) <= timedelta(seconds=seconds) <= timedelta(days=366_000)
        assert len(format_duration(seconds)) < 20


@pytest.mark.parametrize("check", [check_job, check_disk_name, check_tag])
@given(text=st.text(max_size=140) | st.sampled_from([*STRINGS, "x" * 128, "ä" * 64, "ä" * 65]))
def test_a_name_that_is_accepted_is_one_harmless_name(
    check: Callable[[str], str], text: str
) -> None:
    try:
        name = check(text)
    except ConfigError as error:
        assert error.hint  # noqa: PT017 - either is fine
        return
    assert name == text
    assert name.isprintable()
    assert len(name.encode()) <= 260
    assert name[0] not in ".-"
    assert not set(name) & set("/\\ \"'`$&|;<>(){}[]*?!~#%,")
    if check is not check_tag:
        assert PurePosixPath(name).parts == (name,)
        assert len(name.encode()) <= 128
    if check is check_job:
        assert unicodedata.is_normalized("NFC", name)


@given(st.text(max_size=30) | st.sampled_from(STRINGS))
def test_any_name_of_a_disk_is_there_or_is_not_found(text: str) -> None:
    try:
        assert disk_of(HISTORY[0], text) == "vda"
    except BackyError as error:
        assert isinstance(error, NotFoundError)  # noqa: PT017 - either is fine
        assert text != "vda"


@given(st.from_regex(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9]{4}", fullmatch=True) | st.sampled_from(STRINGS))
def test_after_any_revision_there_can_be_another(text: str) -> None:
    """A folder may have any name, and the next backup needs a time after it."""
    if is_id(text):
        newest = time_of(text)
        try:
            after = time_for(HISTORY[1].time, newest)
        except BackyError:
            return
        assert is_id(id_for(after, "aaaa"))
        assert after > newest or after == HISTORY[1].time
