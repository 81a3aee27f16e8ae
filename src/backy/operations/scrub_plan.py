"""What a scrub reads next, and how well its promise is kept. Pure; `now` is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from backy.model.revision import Revision
from backy.units import GiB


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of a disk: when it was last `read` in all revisions up to the id `upto`.

    `bytes` is how much had to be read, with shared bytes counted once. `read` is None if the slice
    was never read.
    """

    read: datetime | None = None
    upto: str = ""
    bytes: int = 0


Slices = Mapping[str, Sequence[Slice]]  # in order, by disk


@dataclass(frozen=True, slots=True)
class Memory:
    """The content of scrub.json: by disk, its slices in order, and their length in bytes."""

    lengths: Mapping[str, int] = field(default_factory=dict)
    disks: Mapping[str, tuple[Slice, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SliceRead:
    """A slice to read. Only revisions after the id `since` need to be read; "" means all."""

    disk: str
    number: int
    since: str = ""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the stored bytes were read within the promised time.

    `oldest` is the longest time that a stored byte has not been read; None if nothing is stored.
    """

    total: int
    read: int
    oldest: timedelta | None

    @property
    def share(self) -> float:
        """The share that was read, from 0 to 1; 1 if nothing is stored."""
        return self.read / self.total if self.total else 1.0


def slice_length(size: int, most: int) -> int:
    """How many bytes a slice has, if a disk of `size` bytes may have at most `most` slices."""
    length = GiB
    while size > length * most:
        length *= 2
    return length


def plan(
    slices_of: Slices, newest: Mapping[str, str], now: datetime, within: timedelta
) -> list[SliceRead]:
    """What to read, most urgent first.

    First come revisions that are newer than the last reading of a slice, then slices that were
    never read, then those that were read longest ago. Slices that were read within half of the
    promised time, `within`, wait for the next run. `newest` has the id of each disk's newest
    revision.
    """
    new, old = [], []
    for disk, slices in slices_of.items():
        for number, last in enumerate(slices):
            if last.read and last.upto < newest[disk]:
                new.append(SliceRead(disk, number, last.upto))
            if not last.read or last.read <= now - within / 2:
                old.append((last.read or datetime.min.replace(tzinfo=UTC), disk, number))
    return new + [SliceRead(disk, number) for _, disk, number in sorted(old)]


def coverage(
    slices_of: Slices,
    revisions: Sequence[Revision],
    unread: Mapping[str, Sequence[int]],
    now: datetime,
    within: timedelta,
) -> Coverage:
    """The sums of what is stored, and of what was read within `within` before `now`.

    If a revision is newer than the last reading of a slice, that slice counts as unread once the
    revision is older than `within`. `unread` estimates, in bytes, what slices hold that were never
    read.
    """
    total = covered = 0
    ages = []
    for disk, slices in slices_of.items():
        having = [revision for revision in revisions if disk in revision.disks]
        for last, estimate in zip(slices, unread[disk], strict=True):
            size = last.bytes if last.read else estimate
            later = [revision.time for revision in having if revision.id > last.upto]
            since = min([last.read or now, *later[:1]])
            total += size
            if last.read and since >= now - within:
                covered += size
            if size:
                ages.append(max(timedelta(0), now - since))
    return Coverage(total, covered, max(ages, default=None))
