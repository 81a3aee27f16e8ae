"""Verify: read every stored byte again, past the page cache, and name what is not what it was."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from backy.disk import Cache
from backy.errors import DamagedError, NotFoundError, StoreError
from backy.extent import Extent, Kind, chop
from backy.image import SILENCE, Watcher, in_parallel
from backy.index import Index
from backy.repository import Repository
from backy.revision import Revision, Trust
from backy.stores.blocks import StoredImage


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of a disk of a revision that cannot be given back; in bytes, whole blocks."""

    revision: str
    disk: str
    start: int
    length: int
    reason: str


_Bad = list[tuple[int, int, str]]  # damaged ranges of one image: start, end, why; ascending


def verify(
    repository: Repository, revisions: Sequence[Revision], *, watcher: Watcher = SILENCE
) -> Iterator[Damage]:
    """Read all that `revisions` (oldest first) hold; give every damaged range of every one.

    What revisions share is read once. Each revision becomes verified or distrusted when all its
    disks have been read.
    """
    watcher.begin(sum(disk.size for each in revisions for disk in each.disks.values()))
    found: dict[str, list[Damage]] = {revision.id: [] for revision in revisions}
    gone: set[str] = set()
    for name in sorted({name for revision in revisions for name in revision.disks}):
        having = [revision for revision in revisions if name in revision.disks]
        for damage in _verify_disk(repository, having, name, gone, watcher):
            found[damage.revision].append(damage)
            yield damage
    for revision in revisions:
        if revision.id not in gone:
            _record(repository, revision, is_whole=not found[revision.id])


def _record(repository: Repository, revision: Revision, *, is_whole: bool) -> None:
    """Write the finding into revision.json, unless the revision was removed by now."""
    now = datetime.now(UTC).replace(microsecond=0)
    trust = Trust.VERIFIED if is_whole else Trust.DISTRUSTED

    def verified(revision: Revision) -> Revision:
        return replace(revision, trust=trust, verified=now)

    with suppress(NotFoundError):
        repository.change(revision, verified)


def _verify_disk(
    repository: Repository,
    revisions: Sequence[Revision],
    name: str,
    gone: set[str],
    watcher: Watcher,
) -> Iterator[Damage]:
    """One disk through its revisions; an index stays open until the next is compared with it."""
    previous: Index | None = None
    bad: _Bad = []
    with ExitStack() as kept:
        for revision in revisions:
            with ExitStack() as stack:
                try:
                    stack.enter_context(repository.reading(revision))
                    image = stack.enter_context(repository.store.open(revision, name, Cache.AVOID))
                except (DamagedError, NotFoundError) as error:
                    size = revision.disks[name].size
                    watcher.advance(size)
                    if repository.folder_of(revision).exists():
                        yield Damage(revision.id, name, 0, size, error.message)
                    else:
                        gone.add(revision.id)
                    continue
                since = previous if repository.store.shares_blocks else None
                bad = _read_all(image, since, bad, watcher)
                yield from (
                    Damage(revision.id, name, start, end - start, why) for start, end, why in bad
                )
                kept.pop_all().close()
                kept.push(stack.pop_all())
                previous = image.index


def _read_all(image: StoredImage, since: Index | None, known: _Bad, watcher: Watcher) -> _Bad:
    """Read what `since` does not have in the same place; carry over what is known as bad there."""
    bad: _Bad = []

    def take(extent: Extent, buffer: memoryview) -> None:
        if extent.kind is Kind.SAME:
            bad.extend(_within(known, extent.start, extent.end))
        else:
            # A run of zero blocks is one stored block, if it is any: its first stands for all.
            length = min(extent.length, image.block_size)
            try:
                image.readinto(extent.start, buffer[:length])
            except StoreError as error:
                bad.append((extent.start, extent.end, error.message))
        watcher.advance(extent.length)

    extents = image.index.extents(since) if since else image.extents()
    in_parallel(chop(extents, image.block_size), take, image.block_size)
    return _joined(sorted(bad))


def _within(known: _Bad, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    """The parts of `known` in [start, end)."""
    first = max(0, bisect_right(known, start, key=lambda each: each[0]) - 1)
    for low, high, why in known[first:]:
        if low >= end:
            break
        if high > start:
            yield max(low, start), min(high, end), why


def _joined(bad: _Bad) -> _Bad:
    """Join ranges that touch; the first one's reason stays."""
    joined: _Bad = []
    for start, end, why in bad:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end, joined[-1][2])
        else:
            joined.append((start, end, why))
    return joined
