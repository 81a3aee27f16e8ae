"""What a scrub reads next, and how well its promise is kept. Pure; `now` is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from backy.model.revision import Revision, time_of
from backy.units import GiB


@dataclass(frozen=True, slots=True)
class Slice:
    """What is known of a slice: when it was last read in all revisions up to `upto`.

    `bytes` are those that had to be read, each stored piece once. Never read: `read` is None.
    """

    read: datetime | None = None
    upto: str = ""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """The slices of each disk, in order, and their length in bytes."""

    lengths: Mapping[str, int] = field(default_factory=dict)
    disks: Mapping[str, tuple[Slice, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SliceRead:
    """A slice to read; `since` is the newest revision whose blocks need not be read, if any."""

    disk: str
    number: int
    since: str = ""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what is stored was read within the promised time; sizes in bytes."""

    total: int
    read: int
    oldest: timedelta | None

    @property
    def share(self) -> float:
        """From 0 to 1; nothing stored is all of it read."""
        return self.read / self.total if self.total else 1.0


def slice_length(size: int, most: int) -> int:
    """The bytes in a slice of a disk of `size` bytes, of which there may be `most`."""
    length = GiB
    while size > length * most:
        length *= 2
    return length


def plan(
    slices_of: Mapping[str, Sequence[Slice]],
    newest: Mapping[str, str],
    now: datetime,
    within: timedelta,
) -> list[SliceRead]:
    """What to read, most urgent first.

    First what revisions brought that are newer than the last reading of a slice, then slices
    never read, then those read longest ago. What was read within half the promised time can
    wait for the next run. `newest` has the id of each disk's newest revision.
    """
    new, old = [], []
    for disk, known in slices_of.items():
        for number, each in enumerate(known):
            if each.read and each.upto < newest[disk]:
                new.append(SliceRead(disk, number, each.upto))
            if not each.read or each.read <= now - within / 2:
                old.append((each.read or datetime.min.replace(tzinfo=UTC), disk, number))
    return new + [SliceRead(disk, number) for _, disk, number in sorted(old)]


def coverage(
    slices_of: Mapping[str, Sequence[Slice]],
    revisions: Sequence[Revision],
    unread: Mapping[str, Sequence[int]],
    now: datetime,
    within: timedelta,
) -> Coverage:
    """Sum up what was read within `within` before `now`.

    A revision newer than a slice's last reading counts as unread once it is older than
    `within`. `unread` has what slices never read hold, about, in bytes.
    """
    total = covered = 0
    ages = []
    for disk, known in slices_of.items():
        ids = [revision.id for revision in revisions if disk in revision.disks]
        for each, estimate in zip(known, unread[disk], strict=True):
            size = each.bytes if each.read else estimate
            later = [revision_id for revision_id in ids if revision_id > each.upto]
            since = min([each.read or now, *(time_of(revision_id) for revision_id in later[:1])])
            total += size
            if each.read and since >= now - within:
                covered += size
            if size:
                ages.append(max(timedelta(0), now - since))
    return Coverage(total, covered, max(ages, default=None))
