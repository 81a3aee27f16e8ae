"""repository.json and revision.json: their content, and the checks of their values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from backy.errors import ConfigError, DamagedError
from backy.model.names import check_disk_name, check_tag
from backy.model.revision import NEWEST_FORMAT, Disk, Revision, is_id, time_of
from backy.repository.records import HASH, LARGEST_DISK, encode_record, json_of, read_record
from backy.system.files import AnyPath
from backy.units import KiB, MiB

if TYPE_CHECKING:
    from backy.model.messages import RevisionRecord

SMALLEST_BLOCK, LARGEST_BLOCK = 64 * KiB, 16 * MiB
_FORMAT = re.compile("[A-Za-z0-9_.-]{1,64}")
LEVELS = range(1, 20)  # of zstd; higher levels need more memory to decompress


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


def encode_settings(settings: Settings) -> bytes:
    """The bytes of repository.json."""
    return encode_record(settings)


def encode_revision(revision: Revision) -> bytes:
    """The bytes of revision.json."""
    return encode_record(revision)


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
    if _is_not_utc(revision.time) or revision.time > time_of(revision.id) or not revision.disks:
        raise ValueError("it has no disks, or its time is later than the time in its id")
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
            raise ValueError(f"a damaged range of disk {name} is not within the disk")


def _is_not_utc(time: datetime) -> bool:
    return time.utcoffset() != timedelta(0)


def _check_disk(name: str, disk: Disk, block_size: int) -> None:
    check_disk_name(name)
    if disk.block_size != block_size or not 0 < disk.size <= LARGEST_DISK:
        raise ValueError(
            f"disk {name} cannot have {disk.size} bytes in blocks of {disk.block_size}"
        )
    counts = (
        disk.read, disk.changed, disk.stored, disk.compared, disk.read_back, disk.looked_up,
        disk.pages,
    )  # fmt: skip
    if not all(0 <= count <= 3 * LARGEST_DISK for count in counts):
        raise ValueError(f"disk {name} has impossible byte counts")
    if disk.image_format and not _FORMAT.fullmatch(disk.image_format):
        raise ValueError(f"disk {name} cannot have an image in the format {disk.image_format!r}")
    if not HASH.fullmatch(disk.index_hash):
        raise ValueError(f"disk {name} has no index hash")
