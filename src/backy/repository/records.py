"""JSON files of a repository: write a value, or read and check one.

A file may be damaged, forged or written by a newer version. So its size is limited, and its
content is checked before any other code uses it. repository.json and revision.json are here; the
others are beside what they are about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, cast

from backy.errors import BackyError, ConfigError, DamagedError, translated
from backy.model.names import check_disk_name, check_tag
from backy.model.revision import NEWEST_FORMAT, Disk, Revision, is_id, time_of
from backy.system import folders
from backy.system.files import AnyPath
from backy.units import KiB, MiB

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from backy.model.messages import RevisionRecord

Value = TypeVar("Value")
_FORMAT = 1  # of the records that have no field for it
_LARGEST_RECORD = MiB  # bytes
_MOST_PARTS = 20_000  # lists, objects and commas; parsed, they take less than 50 MiB
LARGEST_DISK = 2**60  # bytes; the most that an index of 64 KiB blocks can number
_LARGEST_NUMBER = 3 * LARGEST_DISK  # a backup counts some bytes more than once
# Outside of these a sum of a time and a configured duration may leave the years 1 to 9999.
_FIRST_TIME, _LAST_TIME = datetime(1970, 1, 1, tzinfo=UTC), datetime(8000, 1, 1, tzinfo=UTC)
HASH = re.compile(r"[0-9a-f]{64}")
SMALLEST_BLOCK, LARGEST_BLOCK = 64 * KiB, 16 * MiB
_IMAGE_FORMAT = re.compile("[A-Za-z0-9_.-]{1,64}")
LEVELS = range(1, 20)  # of zstd; higher levels need more memory to decompress


class _Aware:
    """Makes pydantic refuse a time without an offset, or in a year far from ours."""

    @staticmethod
    def __get_pydantic_core_schema__(
        source: object, handler: Callable[[object], dict[str, object]]
    ) -> dict[str, object]:
        return handler(source) | {"tz_constraint": "aware", "ge": _FIRST_TIME, "lt": _LAST_TIME}


AwareTime = Annotated[datetime, _Aware]


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Checks and converts values of a class. Made when first used, because that takes long."""
    if kind not in _adapters:
        from pydantic import TypeAdapter

        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def json_of(value: object) -> dict[str, Any]:
    """A value as a JSON object."""
    record: dict[str, Any] = _adapter(type(value)).dump_python(value, mode="json", by_alias=True)
    return record


def encode_record(value: object) -> bytes:
    """The bytes of a JSON file with `value` and the format's version number."""
    record = {"format": _FORMAT, **json_of(value)}
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()


def read_record(
    path: AnyPath,
    value_class: type[Value],
    kind: type[BackyError],
    hint: str,
    check: Callable[[Value], None] = lambda _: None,
    *,
    may_be_missing: bool = False,
) -> Value:
    """The checked value in a JSON file. Raises `kind` with `hint` if the file is not valid.

    A class with NEWEST_FORMAT has a field `format`, of 1 to that; other records have format 1.

    A file of more than 1 MiB is refused without reading it. `check` gets the value when its types
    are right, and raises BackyError or ValueError if it is not acceptable. A file that
    `may_be_missing` counts as a value without arguments.
    """
    try:
        with translated(kind, f"reading {path}", hint):
            content = folders.read_file(path, _LARGEST_RECORD)
    except kind as error:
        if may_be_missing and isinstance(error.__cause__, FileNotFoundError):
            return value_class()
        raise
    if sum(map(content.count, (b"[", b"{", b","))) > _MOST_PARTS:
        raise kind(f"{path} has more parts than backy writes", hint)
    from pydantic_core import ValidationError, from_json

    try:
        record = from_json(content)
        version = record.pop("format") if isinstance(record, dict) else None
    except (ValueError, KeyError) as error:
        raise kind(f"{path} is cut short or was not written by backy: {error}", hint) from error
    newest = getattr(value_class, "NEWEST_FORMAT", _FORMAT)
    if version not in range(1, newest + 1) or version is True:
        newer = isinstance(version, int) and version > newest
        why = f"has format {version!r:.40}; this version of backy knows formats up to {newest}"
        raise kind(f"{path} {why}", "Update backy." if newer else hint)
    try:
        _check_numbers(record)
        value: Value = _adapter(value_class).validate_json(content, strict=True)
        check(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise kind(f"{path}: {where:.200}: {first['msg']}", hint) from error
    except (BackyError, ValueError) as error:
        raise kind(f"{path}: {error}", hint) from error
    return value


def _check_numbers(record: dict[str, Any]) -> None:
    """Raises ValueError with the name of a field whose number no command can have written.

    So no code after this meets NaN or infinity, and whatever is made of a record can be printed as
    JSON. Negative numbers are left to the settings of a source.
    """
    containers: list[tuple[str, Any]] = [("", record)]
    for name, parts in containers:  # and those within them, which are appended meanwhile
        least = -_LARGEST_NUMBER if name.startswith("source.") else 0
        for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
            if isinstance(part, (int, float)):
                if not least <= part <= _LARGEST_NUMBER:
                    why = f"{part!r:.40} is not from {least} to 3 * 2^60"
                    raise ValueError(f"{name:.100}{key!s:.100}: {why}")
            elif isinstance(part, (dict, list)):
                containers.append((f"{name}{key}.", part))


@dataclass(frozen=True, slots=True)
class Settings:
    """The content of repository.json. The store and the block size never change.

    `block_size` is in bytes. `source` has the settings of the source that was used last. `format`
    is the newest one that a revision of the repository may have.
    """

    NEWEST_FORMAT: ClassVar[int] = NEWEST_FORMAT

    store: str
    block_size: int
    level: int = 1
    source: dict[str, Any] = field(default_factory=dict)
    format: int = NEWEST_FORMAT


def revision_record(revision: Revision) -> RevisionRecord:
    """A revision as a JSON object, as in revision.json and in the output of commands."""
    return cast("RevisionRecord", json_of(revision))


def read_settings(path: AnyPath) -> Settings:
    """The content of repository.json. Raises ConfigError if this version cannot use it."""
    hint = f"Is {path.parent} a repository? restore.sh in it works without this file."
    return read_record(path, Settings, ConfigError, hint, check_settings)


def check_settings(settings: Settings) -> None:
    """Raises ConfigError if no repository can have these settings."""
    size = settings.block_size
    if not SMALLEST_BLOCK <= size <= LARGEST_BLOCK or size % SMALLEST_BLOCK:
        why = f"a block size of {size} bytes is not possible"
        raise ConfigError(why, "Use a multiple of 64KiB, up to 16MiB.")
    if settings.level not in LEVELS:
        raise ConfigError(f"level {settings.level} is not possible", "Use 1 to 19.")


def read_revision(path: AnyPath, block_size: int | None = None) -> Revision:
    """The revision in the revision.json at `path`, whose folder is named after its id.

    Raises DamagedError if the file is not valid, if a disk's block size is not `block_size`
    (bytes; None accepts any), or if a name in it could lead out of the folder.
    """
    hint = "Its disks are probably there: docs/restore-by-hand.md says how to restore them."
    check = partial(_check_revision, folder=path.parent.name, block_size=block_size)
    return read_record(path, Revision, DamagedError, hint, check)


def _check_revision(revision: Revision, folder: str, block_size: int | None) -> None:
    if revision.id != folder.lstrip(".") or not is_id(revision.id):
        raise ValueError(f"it says that it is revision {revision.id!r}")
    _check_time("time", revision.time)
    _check_time("verified", revision.verified or revision.time)
    if revision.time > time_of(revision.id) or not revision.disks:
        raise ValueError("it has no disks, or its time is later than the time in its id")
    if not 0 <= revision.seconds <= LARGEST_DISK:
        raise ValueError(f"it cannot have taken {revision.seconds} seconds")
    for tag in revision.tags:
        check_tag(tag)
    for name, disk in revision.disks.items():
        _check_disk(name, disk, block_size or disk.block_size)
    for name, ranges in revision.damaged.items():
        size = revision.disks[name].size if name in revision.disks else 0
        if not all(0 <= start < start + length <= size for start, length in ranges):
            raise ValueError(f"a damaged range of disk {name} is not within the disk")


def _check_time(name: str, time: datetime) -> None:
    if not time.tzinfo or time.utcoffset() or not _FIRST_TIME <= time < _LAST_TIME:
        raise ValueError(f"{name}: {time} is no time in UTC from the years 1970 to 7999")


def _check_disk(name: str, disk: Disk, block_size: int) -> None:
    check_disk_name(name)
    if disk.block_size != block_size or not 0 < disk.size <= LARGEST_DISK:
        what = f"{disk.size} bytes in blocks of {disk.block_size}"
        raise ValueError(f"disk {name} cannot have {what}")
    if disk.image_format and not _IMAGE_FORMAT.fullmatch(disk.image_format):
        raise ValueError(f"disk {name} cannot have an image in the format {disk.image_format!r}")
    if not HASH.fullmatch(disk.index_hash):
        raise ValueError(f"disk {name} has no index hash")
