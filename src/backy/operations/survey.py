"""Survey: read a range of a disk in many revisions, and the bytes that they share only once.

Shared bytes are recognized by the name of the chunk, or by their location on the medium in an
image. Reads bypass the page cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b

from backy.errors import DamagedError, NotFoundError, StoreError
from backy.image.progress import SILENCE, Watcher
from backy.image.workers import in_parallel
from backy.model.revision import Revision
from backy.operations.heal import BadBlock, Damage, Healer, StoredDisk, open_disks
from backy.repository.repository import Repository
from backy.stores.blocks import BY_DIGEST
from backy.stores.index import PAGE_LINES, FlatIndex, block_count
from backy.stores.pages import LINE
from backy.system.files import Cache
from backy.units import GiB

_REMEMBERED = 1 << 18  # keys of blocks that were read: 30 MiB; forgotten blocks are read again


Disks = Sequence[StoredDisk]


@contextmanager
def opened(
    repository: Repository, revisions: Sequence[Revision], name: str
) -> Iterator[tuple[list[StoredDisk], list[Damage]]]:
    """The disk `name` of all `revisions` that have it, open; and the damage of those not usable.

    The open ones are locked against purge. Revisions that were removed meanwhile are left out.
    """
    damages: list[Damage] = []

    def unusable(revision: Revision, name: str, error: NotFoundError | StoreError) -> bool:
        is_damaged = isinstance(error, DamagedError) and error.is_damage
        is_gone = isinstance(error, NotFoundError)
        if (is_damaged or is_gone) and repository.has(revision.id):
            damages.append(Damage(revision.id, name, 0, revision.disks[name].size, error.message))
        return is_damaged or is_gone

    having = [(revision, name) for revision in revisions if name in revision.disks]
    with ExitStack() as stack:
        holders = list(open_disks(repository, having, stack, unusable))
        for holder in holders:
            _check_index(repository, holder)
        yield holders, damages


def _check_index(repository: Repository, stored: StoredDisk) -> None:
    """Read both copies of an index from the medium; replace a bad one by the good one.

    It was opened before, since a size that somebody forged would take terabytes of memory.
    """
    pages, revision, index = repository.store.pages, stored.revision, stored.image.index
    if revision.format == 1:  # there is one copy, which was hashed when it was opened
        pages.checked += index.blocks * LINE
        return
    name = revision.disks[stored.disk].index_hash
    path, twin = repository.folder_of(revision) / f"{stored.disk}.blocks", pages.twin(name)
    with suppress(DamagedError):
        content, other = (pages.read(each, name, index.pages, Cache.AVOID) for each in (path, twin))
        if content and not other:
            pages.mend(twin, content)
        elif other and not content:
            pages.mend(path, other, is_index=True)


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes from `start` to before `end` of a disk; whole blocks."""

    start: int
    end: int

    def cut(self, length: int = GiB) -> Iterator[Range]:
        """Its parts of `length` bytes; the last may be shorter. 1 GiB suits a Survey."""
        for start in range(self.start, self.end, length):
            yield Range(start, min(start + length, self.end))


def largest(holders: Disks) -> int:
    """The size of the largest of these disks in bytes; 0 if there are none."""
    return max((holder.image.size for holder in holders), default=0)


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a page of a disk that is in a range: its first block, and where it is stored."""

    holder: StoredDisk
    page: int
    name: str
    first: int
    locations: Sequence[bytes | None]

    def key(self) -> bytes | None:
        """Equal for parts with the same bytes in the same locations; None if one is not known."""
        if None in self.locations:
            return None
        image, end = self.holder.image, self.first + len(self.locations)
        # With the length, because a revision.json may be wrong about the size of its disk.
        start, length = self.first % PAGE_LINES, image.index.length_of(end - 1)
        # Of format 1 apart: it may have lines that are lost as a page of format 2.
        is_flat = isinstance(image.index, FlatIndex)
        numbers = (n.to_bytes(8) for n in (start, len(self.locations), length, is_flat))
        # This is asked for each page of each revision, so millions of times.
        by_digest = self.locations.count(BY_DIGEST) == len(self.locations)
        places = () if by_digest else filter(None, self.locations)
        return _hash(self.name.encode(), *numbers, *places)

    def blocks(self) -> Iterator[tuple[int, bytes | None]]:
        """The blocks that must be read, each with a key that is equal for shared bytes.

        The key is a hash of 128 bits; it is None if the location is not known. A hole need not be
        read if the index says zero. A page that is lost has none: `check_pages` found it before.
        """
        index = self.holder.image.index
        zero = index.codec.zero_digest(index.block_size).encode()
        for number, location in enumerate(self.locations, self.first):
            try:
                digest = index.line(number)
            except DamagedError:
                return
            if location is None:
                yield number, None
            elif location == BY_DIGEST:
                yield number, digest[:24] + index.length_of(number).to_bytes(8)
            elif location or digest != zero:
                yield number, _hash(digest, location)


def _hash(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=16).digest()


def _parts(holder: StoredDisk, where: Range) -> Iterator[_Part]:
    image = holder.image
    first, end = _blocks_of(holder, where)
    if first < end:
        locations = image.blocks.locations(first, end - first)
        for page, start, stop, name in image.index.parts(first, end):
            yield _Part(holder, page, name, start, locations[start - first : stop - first])


def _blocks_of(holder: StoredDisk, where: Range) -> tuple[int, int]:
    size = holder.image.block_size
    return where.start // size, block_count(min(where.end, holder.image.size), size)


def check_pages(holders: Disks, where: Range, healer: Healer) -> Iterator[Damage]:
    """Read all copies of the pages of a range from the medium, each page once in this command.

    Gives the ranges of those that were lost in both copies, healed or not.
    """
    for holder in holders:
        for page, _, _, name in holder.image.index.parts(*_blocks_of(holder, where)):
            index = holder.image.index
            # An index of format 1 has lines of its own, however a page of format 2 may be.
            key = name, index.lines_of(page), isinstance(index, FlatIndex)
            if key not in healer.checked:
                healer.checked.add(key)
                try:
                    index.check_page(page)
                except DamagedError as error:
                    yield from healer.heal_page(holder, page, error.message)


class Survey:
    """The stored bytes of a range of a disk in `holders`, shared bytes only once.

    `seen` has the keys of blocks that were read before, and gets those of the blocks to read here.
    `known` are disks whose blocks need not be read. `bytes` is how much there is to read.
    """

    def __init__(self, where: Range, holders: Disks, seen: set[bytes], known: Disks = ()) -> None:
        self.bytes = 0
        self._size = 0
        self._steps: list[tuple[StoredDisk, int]] = []
        if len(seen) > _REMEMBERED:
            seen.clear()
        old = [part for disk in known for part in _parts(disk, where)]
        skipped = {key for part in old if (key := part.key())}
        for holder in holders:
            self._size += max(0, min(where.end, holder.image.size) - where.start)
            for part in _parts(holder, where):
                key = part.key()
                if key is None or (key not in skipped and key not in seen):
                    if key:
                        seen.add(key)
                    self._add(part, seen, [each for each in old if each.page == part.page])

    def _add(self, part: _Part, seen: set[bytes], known: Sequence[_Part]) -> None:
        """Note the blocks of a part that are neither in `seen` nor in `known`."""
        skipped = {key for each in known for _, key in each.blocks() if key}
        for number, key in part.blocks():
            if key not in skipped and key not in seen:
                if key:
                    seen.add(key)
                self._steps.append((part.holder, number))
                self.bytes += part.holder.image.index.length_of(number)

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
