"""Survey: read what is stored of a range of a disk in many revisions, each piece of bytes once.

A chunk is told by its name, a part of an image by its place on the medium, so what revisions share
is read once, past the page cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b

from backy.errors import DamagedError, NotFoundError
from backy.image.progress import SILENCE, Watcher
from backy.image.workers import in_parallel
from backy.model.revision import Revision
from backy.operations.heal import BadBlock, Damage, StoredDisk
from backy.repository.repository import Repository
from backy.stores.blocks import BY_DIGEST
from backy.stores.index import LINE, block_count
from backy.system import process
from backy.system.files import Cache
from backy.units import GiB

_REMEMBERED = 1 << 18  # blocks known to have been read: 30 MiB; forgetting means reading again


@contextmanager
def opened(
    repository: Repository, revisions: Sequence[Revision], name: str
) -> Iterator[tuple[list[StoredDisk], list[Damage]]]:
    """Those of `revisions` that have a disk, with it open, kept from purge; and those unusable.

    One that was removed meanwhile is neither.
    """
    holders, damages = [], []
    having = [revision for revision in revisions if name in revision.disks]
    process.allow_open_files(4 * len(having) + 1000)
    with ExitStack() as stack:
        for revision in having:
            try:
                stack.enter_context(repository.reading(revision))
                image = stack.enter_context(repository.store.open(revision, name, Cache.AVOID))
            except (DamagedError, NotFoundError) as error:
                if isinstance(error, DamagedError) and not error.is_damage:
                    raise
                if repository.has(revision.id):
                    size = revision.disks[name].size
                    damages.append(Damage(revision.id, name, 0, size, error.message))
            else:
                holders.append(StoredDisk(revision, name, image))
        yield holders, damages


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes from `start` to before `end` of a disk; whole blocks."""

    disk: str
    start: int
    end: int

    def cut(self, length: int = GiB) -> Iterator[Range]:
        """Its parts, each of `length` bytes but the last. 1 GiB is what a Survey is made for."""
        for start in range(self.start, self.end, length):
            yield Range(self.disk, start, min(start + length, self.end))


def largest(holders: Sequence[StoredDisk]) -> int:
    """The bytes of the largest of their images; 0 where there are none."""
    return max((each.image.size for each in holders), default=0)


# The first block, the lines of the index, the places, where it ends: equal where two revisions
# have the same bytes in the same places.
_Content = tuple[int, bytes, Sequence[bytes | None], int]


def _content(holder: StoredDisk, where: Range) -> _Content:
    image = holder.image
    end = min(where.end, image.size)
    first = where.start // image.block_size
    count = max(0, block_count(end, image.block_size) - first)
    return first, image.index.lines(first, count), image.locations(first, count), end


def _blocks(holder: StoredDisk, content: _Content) -> Iterator[tuple[int, bytes | None]]:
    """Each block that must be read, with a key that is equal for equal stored bytes.

    The key is 128 bits of a hash; None where nothing can be said. A hole need not be read
    where the index calls it zeroes.
    """
    first, lines, places, _ = content
    index = holder.image.index
    zero = index.codec.zero_digest(index.block_size).encode()
    for number, place in enumerate(places):
        digest = lines[number * LINE : (number + 1) * LINE - 1]
        if place == BY_DIGEST:
            length = index.length_of(first + number)
            yield first + number, digest[:24] + length.to_bytes(8)  # a record may lie about it
        elif place is None:
            yield first + number, None
        elif place or digest != zero:
            yield first + number, blake2b(digest + place, digest_size=16).digest()


class Survey:
    """What `holders` store of a range of a disk, each piece of bytes once.

    `seen` knows what was read before and learns what is read here. `known` are holders whose
    blocks need not be read.
    """

    def __init__(
        self,
        where: Range,
        holders: Sequence[StoredDisk],
        seen: set[bytes],
        known: Sequence[StoredDisk],
    ) -> None:
        self.bytes = 0
        self._size = 0
        self._steps: list[tuple[StoredDisk, int]] = []
        if len(seen) > _REMEMBERED:
            seen.clear()
        skipped = {key for each in known for _, key in _blocks(each, _content(each, where)) if key}
        before: object = None
        for holder in holders:
            _, _, places, end = content = _content(holder, where)
            self._size += max(0, end - where.start)
            if content != before or None in places:
                before = content
                for number, key in _blocks(holder, content):
                    if key not in skipped and key not in seen:
                        if key:
                            seen.add(key)
                        self._steps.append((holder, number))
                        self.bytes += holder.image.index.length_of(number)

    def read(
        self, watcher: Watcher = SILENCE, spend: Callable[[int], None] | None = None
    ) -> list[BadBlock]:
        """Read it all, and give what is not what it was; `spend` is told before each read.

        Raises StoreError where reading failed for a reason that says nothing of what is stored.
        """
        bad: list[BadBlock] = []

        def take(step: tuple[StoredDisk, int], buffer: memoryview) -> None:
            holder, number = step
            block = buffer[: holder.image.index.length_of(number)]
            if spend:
                spend(len(block))
            if error := holder.damage(number * holder.image.block_size, block):
                bad.append(BadBlock(holder, number, error.message))
            watcher.advance(len(block))

        if self._steps:
            in_parallel(iter(self._steps), take, self._steps[0][0].image.block_size)
        watcher.advance(self._size - self.bytes)
        return sorted(bad, key=lambda each: (each.stored.revision.id, each.number))
