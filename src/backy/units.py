"""Sizes, durations and counts, as people write and read them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from backy.errors import ConfigError

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB

_SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,11})\s*([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LARGEST_SIZE = 2**63 - 1
_LONGEST_DURATION = 1000 * 366 * 86400
_MOST_LISTED = 3  # names in a sentence


def parse_size(text: str) -> int:
    """A size in bytes from "65536", "64KiB" or "1.5 GiB"; K, KB and KiB all mean 1024.

    Raises ConfigError if `text` is not a size, or is larger than a file can be (2^63 - 1).
    """
    match = _SIZE.fullmatch(text.strip())
    if not match or not text.isascii():
        raise ConfigError(
            f"{text!r} is not a size", "Write a number and a unit: 512KiB, 4MiB, 1.5GiB."
        )
    whole, fraction, unit = match.groups()
    factor = 1 << 10 * " KMGTP".index(unit.upper() or " ")
    size: int = int(whole) * factor + int(fraction or "0") * factor // 10 ** len(fraction or "")
    if size > _LARGEST_SIZE:
        raise ConfigError(
            f"{text!r} is larger than any disk can be", "The limit is 2^63 - 1 bytes."
        )
    return size


def format_size(size: float) -> str:
    """A number of bytes as text with two to four digits: "0 B", "4.0 MiB", "1.2 TiB"."""
    if size < KiB:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} PiB"


def parse_duration(text: str) -> int:
    """A duration in seconds from an integer and s, m, h, d or w (the syntax of backy 2).

    Raises ConfigError if `text` is not a duration, or is longer than 1000 years.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match or not text.isascii():
        raise ConfigError(
            f"{text!r} is not a duration", "Write a number and a unit: 30s, 15m, 4h, 7d, 2w."
        )
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST_DURATION:
        raise ConfigError(f"{text!r} is too long", "The limit is 1000 years.")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration as text with its two largest units: "0.4 s", "3 min 20 s", "2 d 4 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def listed(names: Sequence[str], noun: str) -> str:
    """Up to three names, or how many of these nouns there are, with the first and the last one."""
    if len(names) <= _MOST_LISTED:
        return ", ".join(names)
    return f"{counted(len(names), noun)}, {min(names)} to {max(names)}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and a noun: "1 job", "2 jobs". `plural` is needed if it is not `noun` and an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
