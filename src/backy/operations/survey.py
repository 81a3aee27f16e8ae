"""Survey: read a range of a disk in many revisions, and the bytes that they share only once.

Shared bytes are recognized by the name of the chunk, or by their location on the medium in an
image. Reads bypass the page cache.
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

_REMEMBERED = 1 << 18  # keys of blocks that were read: 30 MiB; forgotten blocks are read again


@contextmanager
def opened(
    repository: Repository, revisions: Sequence[Revision], name: str
) -> Iterator[tuple[list[StoredDisk], list[Damage]]]:
    """The disk `name` of all `revisions` that have it, open; and the damage of those not usable.

    The open ones are locked against purge. Revisions that were removed meanwhile are left out.
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
        """Its parts of `length` bytes; the last may be shorter. 1 GiB suits a Survey."""
        for start in range(self.start, self.end, length):
            yield Range(self.disk, start, min(start + length, self.end))


def largest(holders: Sequence[StoredDisk]) -> int:
    """The size of the largest of these disks in bytes; 0 if there are none."""
    return max((holder.image.size for holder in holders), default=0)


# The first block, the lines of the index, the locations, and the end. Equal if two revisions have
# the same bytes in the same locations.
_Content = tuple[int, bytes, Sequence[bytes | None], int]


def _content(holder: StoredDisk, where: Range) -> _Content:
    image = holder.image
    end = min(where.end, image.size)
    first = where.start // image.block_size
    count = max(0, block_count(end, image.block_size) - first)
    return first, image.index.lines(first, count), image.locations(first, count), end


def _blocks(holder: StoredDisk, content: _Content) -> Iterator[tuple[int, bytes | None]]:
    """The blocks that must be read, each with a key that is equal for shared bytes.

    The key has at least 96 bits of a hash; it is None if the location is not known. A hole need
    not be read if the index says zero.
    """
    first, lines, locations, _ = content
    index = holder.image.index
    zero = index.codec.zero_digest(index.block_size).encode()
    for number, location in enumerate(locations):
        digest = lines[number * LINE : (number + 1) * LINE - 1]
        if location == BY_DIGEST:
            # With the length, because a revision.json may be wrong about the size of its disk.
            length = index.length_of(first + number)
            yield first + number, digest[:24] + length.to_bytes(8)
        elif location is None:
            yield first + number, None
        elif location or digest != zero:
            yield first + number, blake2b(digest + location, digest_size=16).digest()


class Survey:
    """The stored bytes of a range of a disk in `holders`, shared bytes only once.

    `seen` has the keys of blocks that were read before, and gets those of the blocks to read here.
    `known` are disks whose blocks need not be read. `bytes` is how much there is to read.
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
        skipped = {key for disk in known for _, key in _blocks(disk, _content(disk, where)) if key}
        before: object = None
        for holder in holders:
            _, _, locations, end = content = _content(holder, where)
            self._size += max(0, end - where.start)
            if content != before or None in locations:
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
        """Read it all, and return the bad blocks; `spend` gets the length before each read.

        Raises StoreError if reading fails for a reason other than damage.
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
        return sorted(bad, key=lambda block: (block.stored.revision.id, block.number))
