"""Sizes, durations and counts, as people write and read them."""

import ast
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.cli.output import format_rate
from backy.errors import ConfigError
from backy.units import (
    GiB,
    KiB,
    MiB,
    TiB,
    counted,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

SOURCE = Path(__file__).parent.parent / "src" / "backy"
# What messages count. Bytes, seconds and days are units, and are left out.
PLURAL = re.compile(
    r" (?!of )(?:[a-z]+ )?(?:backups|blocks|chunks|disks|files|hooks|ids|jobs|problems|ranges"
    r"|reports|repositories|revisions|slots|snapshots)\b"
)
ALWAYS_SEVERAL = {
    ("model/selector.py", "len(selected)"),
    ("monitoring/health.py", "count"),
    ("monitoring/health.py", "status.errors"),
    ("repository/quarantine.py", "MOST"),
}  # a constant, or the code before it asks for more than one
UNITS = {"": 1, "K": KiB, "M": MiB, "G": GiB, "T": TiB, "P": 1024 * TiB}
LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64KiB", 64 * KiB),
        ("64 kib", 64 * KiB),
        ("64K", 64 * KiB),
        ("64kB", 64 * KiB),
        ("512B", 512),
        ("1.5GiB", 3 * GiB // 2),
        (" 4 MiB ", 4 * MiB),
        ("0.000001T", 1099511),
        ("7P", 7 * 1024 * TiB),
        ("9223372036854775807", None),
        ("8191P", 8191 * 1024 * TiB),
    ],
)
def test_a_size_is_read(text: str, size: int | None) -> None:
    if size is None:  # more digits than anybody writes
        with pytest.raises(ConfigError):
            parse_size(text)
    else:
        assert parse_size(text) == size


@given(st.integers(0, 10**15 - 1), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "B", "iB"]))
def test_any_whole_number_of_any_unit_is_that_many_bytes(
    number: int, unit: str, suffix: str
) -> None:
    size = number * UNITS[unit]
    text = f"{number}{unit}{suffix if unit else ''}"
    if size > LARGEST:
        with pytest.raises(ConfigError, match="larger than any disk"):
            parse_size(text)
    else:
        assert parse_size(text) == size


@given(st.integers(0, 2**62))
def test_a_size_that_was_printed_is_read_as_nearly_the_same(size: int) -> None:
    again = parse_size(format_size(size))
    unit = UNITS[re.sub(r"[^KMGTP]", "", format_size(size))]
    assert abs(again - size) <= (0 if unit == 1 else unit // 20 + 1)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1023 * KiB, "1.0 MiB"),
        (999 * KiB, "999.0 KiB"),
        (4 * MiB, "4.0 MiB"),
        (1024 * TiB, "1.0 PiB"),
        (2**63 - 1, "8192.0 PiB"),
    ],
)
def test_a_size_is_printed(size: int, text: str) -> None:
    assert format_size(size) == text


BAD_SIZES = [
    "",
    "-1",
    "MiB",
    "1.MiB",
    ".5M",
    "1,5M",
    "1e6",
    "1 2",
    "4 MiBs",
    "4Q",
    "0x10",
    "٤",
    "1K\u212a",
    "nan",
    "1\0",
]


@pytest.mark.parametrize("text", [*BAD_SIZES, "1" * 16, "9999P"])
def test_what_is_no_size_is_quoted_with_examples(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30", 30),
        ("30s", 30),
        ("15m", 900),
        (" 4 h ", 14400),
        ("7d", 604800),
        ("2w", 1209600),
    ],
)
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "-1s", "1.5h", "s", "1y", "1M", "1h30m", "1 d 2 h", "٤s", "1" * 12]
)
def test_what_is_no_duration_is_quoted_with_examples(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_duration(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint


@given(st.integers(0, 10**10 - 1), st.sampled_from(["", "s", "m", "h", "d", "w"]))
def test_every_duration_can_be_taken_from_today_or_is_refused(number: int, unit: str) -> None:
    """As `backy purge --older-than` does."""
    try:
        seconds = parse_duration(f"{number}{unit}")
    except ConfigError:
        return
    assert datetime.now(UTC) - timedelta(seconds=seconds) < datetime.now(UTC) + timedelta(1)


@pytest.mark.parametrize("text", ["9999999w", "9999999999d", "9999999999w"])
def test_a_duration_that_is_longer_than_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text)


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{0,20} ?[a-zA-Z]{0,4}", fullmatch=True))
def test_whatever_is_typed_is_a_number_or_an_error_for_people(text: str) -> None:
    for parse in (parse_size, parse_duration):
        try:
            assert parse(text) >= 0
        except ConfigError as error:
            assert repr(text) in error.message  # noqa: PT017 - either is fine


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 0 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d 0 h"),
        (187200, "2 d 4 h"),
    ],
)
def test_a_duration_is_printed(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(60, 10**9))
def test_a_printed_duration_tells_all_but_what_is_less_than_its_smaller_unit(seconds: int) -> None:
    words = format_duration(seconds).replace("min", "m").split()
    told = sum(
        parse_duration(f"{n}{unit}") for n, unit in zip(words[::2], words[1::2], strict=True)
    )
    assert told <= seconds < told + parse_duration(f"1{words[3]}")


@pytest.mark.parametrize(
    ("size", "seconds", "text"),
    [
        (0, 1, "0 B/s"),
        (812 * MiB, 1, "812.0 MiB/s"),
        (MiB, 0, "1000.0 MiB/s"),
        (GiB, 4, "256.0 MiB/s"),
    ],
)
def test_a_rate_is_printed_and_no_time_is_a_thousandth_second(
    size: int, seconds: float, text: str
) -> None:
    assert format_rate(size, seconds) in {text, "1.0 GiB/s" if text.startswith("1000") else text}


@pytest.mark.parametrize(
    ("number", "noun", "plural", "text"),
    [
        (1, "job", "", "1 job"),
        (0, "job", "", "0 jobs"),
        (2, "damaged range", "", "2 damaged ranges"),
        (1, "repository", "repositories", "1 repository"),
        (3, "repository", "repositories", "3 repositories"),
    ],
)
def test_a_count_has_the_noun_in_its_number(number: int, noun: str, plural: str, text: str) -> None:
    assert counted(number, noun, plural) == text


def test_each_message_that_counts_has_the_singular_as_well() -> None:
    plurals = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for value, text in pairwise(parts):
                if (
                    isinstance(value, ast.FormattedValue)
                    and value.conversion == -1
                    and isinstance(text, ast.Constant)
                    and PLURAL.match(str(text.value))
                ):
                    plurals.add((str(path.relative_to(SOURCE)), ast.unparse(value.value)))
    assert plurals == ALWAYS_SEVERAL, "use backy.units.counted"
