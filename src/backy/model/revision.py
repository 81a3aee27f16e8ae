"""A revision: one completed backup of all disks of a VM at one point in time. Values only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import ClassVar

from backy.errors import NotFoundError

_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9]{4}")
ID_TIME = "%Y%m%dT%H%M%SZ"
NEWEST_FORMAT = 2  # of repositories and revisions; older ones can be read
_TOLERANCE = timedelta(minutes=1)  # clocks are set by less than this all the time


class Trust(Enum):
    """Whether the stored bytes were verified since the backup, and with which result."""

    TRUSTED = "trusted"
    VERIFIED = "verified"
    DISTRUSTED = "distrusted"


class Consistency(Enum):
    """The state of a VM that boots from the revision.

    APPLICATION: a hook made its programs write everything to disk. FILESYSTEM: the guest was
    frozen, so its file systems are clean. CRASH: as after a power cut; all bytes are from one point
    in time. NONE: the disk may have changed while it was read, so its bytes may be from different
    times.
    """

    APPLICATION = "application"
    FILESYSTEM = "filesystem"
    CRASH = "crash"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a revision. Sizes are bytes.

    The counters say what the backup did. `read`: bytes read from the source. `changed`: bytes in
    blocks that differ from the parent's. `stored`: bytes written to the store. `compared`: those
    of `read` that the source reported as unchanged, read again to check its change tracking.

    `whole` says why change tracking could not be used, so the disk was read in full; "" if it was
    used, or if the source has none.

    `read_back`: bytes of stored blocks that were read from the medium before the revision was
    published, and had their hash. `looked_up`: blocks whose chunks were looked up by name then.

    `pages`: bytes written for the index and its pages, all copies together.

    `image_format` is that of the image that the disk was kept in, such as qcow2, as QEMU calls it;
    "" where the source does not know.
    """

    size: int
    block_size: int
    index_hash: str
    read: int
    changed: int
    stored: int
    compared: int = 0
    whole: str = ""
    read_back: int = 0
    looked_up: int = 0
    pages: int = 0
    image_format: str = ""


@dataclass(frozen=True, slots=True)
class Revision:
    """The content of revision.json (docs/formats.md). Times are aware, in UTC, in whole seconds.

    `format` is 2 if the indexes of its disks list pages, 1 if they list blocks.

    `time` is what the clock said. The time in `id` may be later, because ids ascend.
    `damaged` has, by disk, the ranges that were found damaged and could not be healed, as
    (start, length) in bytes.
    """

    NEWEST_FORMAT: ClassVar[int] = NEWEST_FORMAT

    id: str
    time: datetime
    parent: str | None
    seconds: float
    consistency: Consistency
    disks: Mapping[str, Disk]
    tags: tuple[str, ...] = ()
    trust: Trust = Trust.TRUSTED
    verified: datetime | None = None
    warnings: tuple[str, ...] = ()
    damaged: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    format: int = NEWEST_FORMAT


def is_id(text: str) -> bool:
    """Whether `text` has the form of a revision's id. Other names in revisions/ are drafts."""
    try:
        return bool(_ID.fullmatch(text) and time_of(text))
    except ValueError:
        return False


def time_of(revision_id: str) -> datetime:
    """The time at the start of an id. Raises ValueError if there is no such time."""
    # strptime takes a hundred times as long, and monitoring reads 100,000 ids.
    return datetime.fromisoformat(revision_id.partition("-")[0])


def is_ahead(time: datetime, now: datetime) -> bool:
    """Whether a recorded time comes from a clock that was wrong: it is over a minute after `now`.

    Such a time says nothing, so nothing is planned, kept or promised because of it.
    """
    return time - now > _TOLERANCE


def whole_seconds(now: datetime) -> datetime:
    """A time as it is stored: in UTC, in whole seconds."""
    return now.astimezone(UTC).replace(microsecond=0)


def id_for(time: datetime, suffix: str) -> str:
    """An id: the time, and four random characters, as two servers may back up in one second."""
    return f"{time:{ID_TIME}}-{suffix}"


def disk_of(revision: Revision, name: str | None) -> str:
    """The disk called `name`, or the only one. Raises NotFoundError that lists the disks."""
    names = ", ".join(revision.disks)
    if name is None and len(revision.disks) == 1:
        return next(iter(revision.disks))
    if name is None:
        raise NotFoundError(
            f"revision {revision.id} has several disks: {names}", "Add --disk NAME."
        )
    if name not in revision.disks:
        raise NotFoundError(f"revision {revision.id} has no disk {name!r}", f"It has: {names}.")
    return name
