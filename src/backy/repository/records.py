"""JSON files of a repository: write a value, or read and check one.

A file may be damaged, forged or written by a newer version. So its size is limited, and its
content is checked before any other code uses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TypeVar

from backy.errors import BackyError, translated
from backy.repository.json_values import decode, encode
from backy.system import folders
from backy.system.files import AnyPath
from backy.units import MiB

Value = TypeVar("Value")
FORMAT = 1
_LARGEST_RECORD = MiB  # bytes
_MOST_PARTS = 20_000  # lists, objects and commas; parsed, they take less than 50 MiB
_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")
LARGEST_DISK = 2**60  # bytes; the most that an index of 64 KiB blocks can number
HASH = re.compile(r"[0-9a-f]{64}")


def encode_record(value: object) -> bytes:
    """The bytes of a JSON file with `value` and the format's version number."""
    record = encode(value)
    return (json.dumps({"format": FORMAT, **record}, indent=2, ensure_ascii=False) + "\n").encode()


def read_record(
    path: AnyPath,
    value_class: type[Value],
    kind: type[BackyError],
    hint: str,
    check: Callable[[Value], None] = lambda _: None,
) -> Value:
    """The checked value in a JSON file. Raises `kind` with `hint` if the file is not valid.

    A file of more than 1 MiB is refused without reading it. `check` gets the value when its types
    are right, and raises BackyError or ValueError if it is not acceptable.
    """
    with translated(kind, f"reading {path}", hint):
        content = folders.read_file(path, _LARGEST_RECORD)
    if sum(map(content.count, (b"[", b"{", b","))) > _MOST_PARTS:
        raise kind(f"{path} has more parts than backy writes", hint)
    if b"\\u" in content and _SURROGATE.search(content):
        raise kind(f"{path} has text that is not valid Unicode", hint)
    try:
        record = json.loads(content.decode())
        version = record.pop("format") if isinstance(record, dict) else None
    except (ValueError, RecursionError, KeyError) as error:
        raise kind(f"{path} is cut short or was not written by backy: {error}", hint) from error
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        why = f"has format {version!r:.40}; this version of backy knows {FORMAT}"
        raise kind(f"{path} {why}", "Update backy." if newer else hint)
    try:
        value = decode(value_class, record)
        check(value)
    except (BackyError, ValueError) as error:
        raise kind(f"{path}: {error}", hint) from error
    return value
