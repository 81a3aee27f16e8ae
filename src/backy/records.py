"""The JSON files of a repository: values on one side, checked bytes on the other.

Whatever is read here may be damaged, forged or from the future, so it is bounded and checked
before anything else sees it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from backy import disk as disks
from backy.errors import BackyError, ConfigError, DamagedError, translated
from backy.revision import Disk, Revision, check_disk_name, check_tag, is_id, time_of
from backy.units import KiB, MiB

Value = TypeVar("Value")
FORMAT = 1
SMALLEST_BLOCK, LARGEST_BLOCK = 64 * KiB, 16 * MiB
LEVELS = range(1, 20)  # zstd's, without those that need more memory to decompress
_LARGEST_RECORD = MiB  # bytes
_MOST_PARTS = 20_000  # lists, objects and commas; what is made of them takes less than 50 MiB
_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")
LARGEST_DISK = 2**60  # bytes; what an index of 64 KiB blocks can still number
HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What repository.json says. The store and the block size hold for the repository's life."""

    store: str
    block_size: int
    level: int = 1
    source: dict[str, Any] = field(default_factory=dict)


_SETTINGS = TypeAdapter(Settings)
_REVISION = TypeAdapter(Revision)


def encode_settings(settings: Settings) -> bytes:
    """The bytes of repository.json."""
    return encode_record(_SETTINGS, settings)


def encode_revision(revision: Revision) -> bytes:
    """The bytes of revision.json."""
    return encode_record(_REVISION, revision)


def revision_record(revision: Revision) -> dict[str, Any]:
    """What JSON says of a revision, on disk and on the screen."""
    record: dict[str, Any] = _REVISION.dump_python(revision, mode="json")
    return record


def encode_record(adapter: TypeAdapter[Value], value: Value) -> bytes:
    """The bytes of a JSON file that holds `value`, with the number of the format."""
    record = adapter.dump_python(value, mode="json")
    return (json.dumps({"format": FORMAT, **record}, indent=2, ensure_ascii=False) + "\n").encode()


def read_settings(path: Path) -> Settings:
    """Read repository.json. Raises ConfigError where it is not one that this version can use."""
    hint = f"Is {path.parent} a repository? restore.sh in it does without this file's settings."
    return read_record(path, _SETTINGS, ConfigError, hint, check_settings)


def check_settings(settings: Settings) -> None:
    """Raises ConfigError where no repository can have them."""
    size = settings.block_size
    if not SMALLEST_BLOCK <= size <= LARGEST_BLOCK or size % SMALLEST_BLOCK:
        why = f"a block size of {size} bytes is not possible"
        raise ConfigError(why, "Use 64KiB to 16MiB, in 64KiB.")
    if settings.level not in LEVELS:
        raise ConfigError(f"zstd has levels 1 to 19 here, not {settings.level}", "Use another.")


def read_revision(path: Path, block_size: int | None = None) -> Revision:
    """Read a revision.json in the folder that has the revision's name.

    Raises DamagedError where it is not one, where its disks have another block size than the
    repository's, if that is known, or where it names what could lead out of its folder.
    """
    hint = "Its disks can still be restored by hand; see docs/restore-by-hand.md."
    check = partial(_check_revision, folder=path.parent.name, block_size=block_size)
    return read_record(path, _REVISION, DamagedError, hint, check)


def _check_revision(revision: Revision, folder: str, block_size: int | None) -> None:
    if revision.id != folder.lstrip(".") or not is_id(revision.id):
        raise ValueError(f"it says that it is revision {revision.id!r}")
    if _is_not_utc(revision.time) or revision.time != time_of(revision.id) or not revision.disks:
        raise ValueError("it has no disks, or another time than its id says")
    if revision.verified and _is_not_utc(revision.verified):
        raise ValueError("it was verified at a time that is not UTC")
    if not 0 <= revision.seconds <= LARGEST_DISK:
        raise ValueError(f"it cannot have taken {revision.seconds} seconds")
    for tag in revision.tags:
        check_tag(tag)
    for name, disk in revision.disks.items():
        _check_disk(name, disk, block_size or disk.block_size)
    for name, ranges in revision.damaged.items():
        size = revision.disks[name].size if name in revision.disks else 0
        if not all(0 <= start < start + length <= size for start, length in ranges):
            raise ValueError(f"disk {name} has no such damaged range")


def _is_not_utc(time: datetime) -> bool:
    return time.utcoffset() != timedelta(0)


def _check_disk(name: str, disk: Disk, block_size: int) -> None:
    check_disk_name(name)
    if disk.block_size != block_size or not 0 < disk.size <= LARGEST_DISK:
        raise ValueError(
            f"disk {name} cannot have {disk.size} bytes in blocks of {disk.block_size}"
        )
    counted = (disk.read, disk.changed, disk.stored, disk.compared)
    if not all(0 <= each <= 3 * LARGEST_DISK for each in counted):
        raise ValueError(f"disk {name} says of itself what cannot be")
    if not HASH.fullmatch(disk.index_hash):
        raise ValueError(f"disk {name} has no index hash")


def read_record(
    path: Path,
    adapter: TypeAdapter[Value],
    kind: type[BackyError],
    hint: str,
    check: Callable[[Value], None] = lambda _: None,
) -> Value:
    """The value in a JSON file, checked. Raises `kind` with `hint` where it is not one.

    The file may have 1 MiB; a longer one is refused unread. `check` may raise BackyError, or
    ValueError, of a value that has the right form.
    """
    with translated(kind, f"reading {path}", hint):
        content = disks.read_file(path, _LARGEST_RECORD)
    if sum(map(content.count, (b"[", b"{", b","))) > _MOST_PARTS:
        raise kind(f"{path} has more parts than backy writes", hint)
    if b"\\u" in content and _SURROGATE.search(content):
        raise kind(f"{path} has a text that is no Unicode", hint)
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
        value = adapter.validate_python(record)
        check(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise kind(f"{path}: {where}: {first['msg']}", hint) from error
    except (BackyError, ValueError) as error:
        raise kind(f"{path}: {error}", hint) from error
    return value
