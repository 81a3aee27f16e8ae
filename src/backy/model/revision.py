"""A revision: one completed backup of all disks of a VM at one point in time. Values only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum

from backy.errors import ConfigError, NotFoundError

_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9]{4}")
ID_TIME = "%Y%m%dT%H%M%SZ"


class Trust(Enum):
    """Whether somebody looked at the stored bytes, and what they found."""

    TRUSTED = "trusted"
    VERIFIED = "verified"
    DISTRUSTED = "distrusted"


class Consistency(Enum):
    """What a VM that boots from the revision finds.

    APPLICATION: a hook made its programs write everything. FILESYSTEM: frozen, so file systems
    are clean. CRASH: one point in time, as after a power cut. NONE: read while it may have been
    written to, block after block.
    """

    APPLICATION = "application"
    FILESYSTEM = "filesystem"
    CRASH = "crash"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a revision. Sizes are bytes.

    `read`, `changed` and `stored` say what the backup did: bytes read from the source, bytes in
    blocks that differ from the parent's, bytes that it wrote to the store. `compared` are bytes
    read in spite of the source, which called them unchanged; `whole` says why all was read where
    the source could not tell what changed.
    """

    size: int
    block_size: int
    index_hash: str
    read: int
    changed: int
    stored: int
    compared: int = 0
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Revision:
    """What revision.json says (docs/formats.md); times are aware and UTC, in whole seconds.

    `damaged` has the ranges of each disk, as (start, length) in bytes, that could not be healed
    when they were last read.
    """

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


def is_id(text: str) -> bool:
    """Whether `text` is the form of a revision's id; all others in revisions/ are drafts."""
    try:
        return bool(_ID.fullmatch(text) and time_of(text))
    except ValueError:
        return False


def time_of(revision_id: str) -> datetime:
    """The time that an id begins with. Raises ValueError where there is no such time."""
    # strptime does the same in a hundred times the time, and monitoring asks for 100,000 of them.
    return datetime.fromisoformat(revision_id.partition("-")[0])


def time_for(now: datetime, newest: datetime | None) -> datetime:
    """The time of a new revision: `now` in whole seconds, but always after `newest`.

    Ids sort by time, so that `ls`, restore.sh and the history agree on the order even where two
    backups end within a second or the clock went back.
    """
    this = now.astimezone(UTC).replace(microsecond=0)
    try:
        return max(this, newest + timedelta(seconds=1)) if newest else this
    except OverflowError:
        raise ConfigError("a revision has the last time there is", "Move it away.") from None


def id_for(time: datetime, suffix: str) -> str:
    """The id: the time for people, four random characters so that no two servers make the same."""
    return f"{time:{ID_TIME}}-{suffix}"


def disk_of(revision: Revision, name: str | None) -> str:
    """The disk called `name`, or the only one. Raises NotFoundError that lists what there is."""
    there = ", ".join(revision.disks)
    if name is None and len(revision.disks) == 1:
        return next(iter(revision.disks))
    if name is None:
        raise NotFoundError(
            f"revision {revision.id} has several disks: {there}", "Add --disk NAME."
        )
    if name not in revision.disks:
        raise NotFoundError(f"revision {revision.id} has no disk {name!r}", f"It has: {there}.")
    return name
