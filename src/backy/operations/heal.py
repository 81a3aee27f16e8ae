"""Heal: repair a damaged block from wherever its content still is, or distrust its revisions.

Content is good if it has the hash that the index says, wherever it comes from: another revision
(store images), the live source, or a copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice

from backy.errors import DamageIgnored, NotFoundError, StoreError
from backy.image.progress import SILENCE, Watcher, warned
from backy.model.extent import Extent, Kind, merge, merge_ranges
from backy.model.revision import Revision, Trust, whole_seconds
from backy.operations import page_heal
from backy.operations.origin import Origin, failures
from backy.repository import quarantine
from backy.repository.quarantine import Occurrence, Report
from backy.repository.repository import Repository
from backy.stores.blocks import StoredImage
from backy.stores.index import PAGE_LINES, Found
from backy.system import process
from backy.system.files import Cache

_MOST_TRIED = 100  # places where a block's content should be, before it is given up
_MOST_RANGES = 1000  # of a revision; with more than that, a whole disk counts as damaged


@dataclass(frozen=True, slots=True)
class Damage(Occurrence):
    """A range of a disk of a revision whose stored bytes were wrong or missing; whole blocks.

    `healed` says where good bytes came from; None means that the range is lost.
    """

    reason: str
    healed: str | None = None


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """A disk of a published revision, open for reading."""

    revision: Revision
    disk: str
    image: StoredImage

    def damage(self, offset: int, buffer: memoryview) -> StoreError | None:
        """Fill `buffer`. If stored bytes are damaged, give the error that says so instead.

        Raises StoreError if reading failed for another reason, such as missing rights.
        """
        try:
            self.image.readinto(offset, buffer)
        except StoreError as error:
            if not error.is_damage:
                raise
            return error.without_frames()
        return None

    def digest(self, number: int) -> str | None:
        """The digest of a block, or None if its page is lost. Raises as `damage` does."""
        with DamageIgnored():
            return self.image.index.digest(number)
        return None

    def block(self, number: int) -> bytes | None:
        """A block, or None if it is damaged. Raises as `damage` does."""
        buffer = memoryview(bytearray(self.image.index.length_of(number)))
        return None if self.damage(number * self.image.block_size, buffer) else bytes(buffer)


@dataclass(frozen=True, slots=True)
class BadBlock:
    """A stored block that was read and does not have its hash."""

    stored: StoredDisk
    number: int
    reason: str

    @property
    def digest(self) -> str:
        """What its hash should be."""
        return self.stored.image.index.digest(self.number)


Unusable = Callable[[Revision, str, NotFoundError | StoreError], bool]


def open_disks(
    repository: Repository, disks: list[tuple[Revision, str]], stack: ExitStack, unusable: Unusable
) -> Iterator[StoredDisk]:
    """These disks of published revisions, to be read from the medium; `stack` closes them.

    They are locked against purge. `unusable` gets the error of each that cannot be opened, and says
    whether to go on without it.
    """
    process.allow_open_files(4 * len(disks) + 1000)
    for revision, disk in disks:
        try:
            stack.enter_context(repository.reading(revision))
            image = stack.enter_context(repository.store.open(revision, disk, Cache.AVOID))
        except (NotFoundError, StoreError) as error:
            if not unusable(revision, disk, error):
                raise
        else:
            yield StoredDisk(revision, disk, image)


@contextmanager
def healing(
    repository: Repository, verb: str, origins: Sequence[Origin], watcher: Watcher = SILENCE
) -> Iterator[Healer]:
    """A Healer that asks `origins` in this order; `verb` names the command in its reports."""
    with ExitStack() as stack:
        for origin in origins:
            stack.callback(origin.close)
        yield Healer(repository, verb, origins, watcher, stack.enter_context(ExitStack()))
        for text in repository.store.pages.take_notes():
            watcher.warn(text)


@dataclass(eq=False)
class Healer:
    """Repairs the bad blocks that one command finds. Any thread may call it.

    `stack` closes what it opens when it has something to repair. `is_unrecorded` means that damage
    may be missing from the record of a revision that has it. Then this command must not call any
    revision verified, nor any slice read. `checked` has the pages that `check_pages` has read.
    """

    repository: Repository
    verb: str
    origins: Sequence[Origin]
    watcher: Watcher
    stack: ExitStack
    is_unrecorded: bool = False
    checked: set[tuple[str, int, bool]] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _handled: set[object] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)
    _opened: list[StoredDisk] = field(default_factory=list)
    _opened_ids: list[str] = field(default_factory=list)
    _pages: page_heal.PageMap = field(default_factory=dict)

    def heal(self, blocks: Iterable[BadBlock]) -> list[Damage]:
        """Repair blocks wherever they are stored, or distrust the revisions that have them.

        Gives each range of each revision that had the bad bytes, but not those of bytes that this
        command handled before. Ranges that touch are joined and have the reason of the first.
        """
        return _joined(damage for bad in blocks for damage in self.recover(bad)[1])

    def recover(self, bad: BadBlock) -> tuple[bytes | None, list[Damage]]:
        """Do the same for one block, and give its content if it was found anywhere.

        The content is good even if the store could not be repaired with it.
        """
        with self._lock:
            if bad.stored.digest(bad.number) is not None:
                return self._recover(bad)
            damages = self.heal_page(bad.stored, bad.number // PAGE_LINES, bad.reason)
            if bad.stored.digest(bad.number) is None:
                return None, damages
            whole = bad.stored.block(bad.number)
            good, more = (whole, []) if whole is not None else self._recover(bad)
            return good, [*damages, *more]

    def _recover(self, bad: BadBlock) -> tuple[bytes | None, list[Damage]]:
        """As `recover`, for a block whose digest is known."""
        whole = bad.stored.block(bad.number)
        if whole is not None:
            self.watcher.warn(f"damaged when it was first read, but not now: {bad.reason}")
            return whole, []
        self._open_all()
        places = self._same_place(bad)
        good, origin = next(self._good_copies(bad), (None, ""))
        place = places[0].revision.id, places[0].disk, bad.number
        key = bad.digest if self.repository.store.shares_blocks else place
        if good is None and key in self._handled:
            return None, []
        self._handled.add(key)
        occurrences = list(self._occurrences(bad, places))
        if good is None:
            self._warn_of_failures()
        stored = bad.stored.image.read_stored(bad.number)

        def repair() -> str:
            return origin if good and self._repair(bad, places, memoryview(good)) else ""

        found = self._found(bad.digest, bad.reason, occurrences)
        return good, self._settled(found, stored, repair)

    def heal_page(self, stored: StoredDisk, page: int, reason: str) -> list[Damage]:
        """Make a page again that is lost in both copies, or distrust the revisions that have it.

        Gives each range of each revision that it names, unless this command handled it before.
        """
        name, count = stored.image.index.name(page), stored.image.index.lines_of(page)
        with self._lock:
            if (name, count) in self._handled:
                return []
            self._handled.add((name, count))
            self._open_all()
            if not self._pages:
                self._pages = page_heal.pages_of(self._opened)
            known = self._pages.get((name, count), {}).items()
            others = ((each, number) for number, disks in known for each in disks)
            places = [(stored, page), *others]

            def repair() -> str:
                with warned(self.watcher, "healing failed"):
                    if made := page_heal.make_again(self, places, name):
                        return made
                self._warn_of_failures()
                return ""

            lost = page_heal.lost_ranges(stored, places)
            return _joined(self._settled(self._found(name, reason, lost), b"", repair))

    def _found(self, digest: str, reason: str, lost: Sequence[Occurrence]) -> Report:
        """A report of damage, which has no id yet."""
        now, revisions = whole_seconds(datetime.now(UTC)), sorted({each.revision for each in lost})
        return Report("", now, self.verb, digest, reason, tuple(revisions), tuple(lost))

    def _settled(self, found: Report, stored: bytes, repair: Callable[[], str]) -> list[Damage]:
        """Keep the evidence, and `repair`; distrust the revisions unless it gives an origin.

        A store that is full or read-only must not stop the repair.
        """
        lost, kept = found.occurrences, found
        with warned(self.watcher, "no report was kept"):
            kept = quarantine.add(self.repository, found, stored)
        healed = repair() or None
        if not healed:
            self.distrust(lost)
        elif kept.id:
            with warned(self.watcher, "not noted as healed"):
                quarantine.heal(self.repository, kept, healed)
        return [Damage(e.revision, e.disk, e.start, e.length, found.reason, healed) for e in lost]

    def distrust(self, lost: Iterable[Occurrence]) -> None:
        """Record the lost ranges in each revision that has them."""
        ranges: dict[str, list[Occurrence]] = {}
        for place in lost:
            ranges.setdefault(place.revision, []).append(place)
        for revision_id, bad in ranges.items():
            try:
                self.repository.change(revision_id, partial(distrusted, ranges=bad))
            except NotFoundError:  # removed meanwhile
                pass
            except StoreError as error:
                self.is_unrecorded = True
                self.watcher.warn(f"not marked as distrusted: {error.message}")

    def _open_all(self) -> None:
        """Open every disk of the history that has a good index.

        They stay open until the history changes, because opening an index hashes all of it.
        """
        history = self.repository.history()
        self.is_unrecorded |= bool(history.unreadable)
        ids = [revision.id for revision in history.revisions]
        if ids != self._opened_ids:
            self.stack.close()
            disks = [(revision, disk) for revision in history.revisions for disk in revision.disks]
            self._opened = list(open_disks(self.repository, disks, self.stack, self._unusable))
            self._opened_ids = ids
            self._pages.clear()

    def _unusable(self, revision: Revision, disk: str, error: NotFoundError | StoreError) -> bool:
        given_up = (0, revision.disks[disk].size) in revision.damaged.get(disk, ())
        self.is_unrecorded |= isinstance(error, StoreError) and not given_up
        return True

    def _alike(self, bad: BadBlock) -> Iterator[StoredDisk]:
        """The disks that should have the same content in the same place, shared or not."""
        for stored in self._opened:
            has_block = stored.disk == bad.stored.disk and bad.number < stored.image.index.blocks
            if has_block and stored.digest(bad.number) == bad.digest:
                yield stored

    def _same_place(self, bad: BadBlock) -> list[StoredDisk]:
        """The disks whose own file has the bad bytes. A chunk is one place for all disks."""
        if self.repository.store.shares_blocks:
            return [bad.stored]
        return [disk for disk in self._alike(bad) if disk.block(bad.number) is None] or [bad.stored]

    def _occurrences(self, bad: BadBlock, places: Sequence[StoredDisk]) -> Iterator[Occurrence]:
        """Each range of each revision that has the bad bytes."""
        if self.repository.store.shares_blocks:
            known: Found = {}
            for stored in self._opened:
                # If a record is wrong about the size, the last block is bad in that revision only.
                index, length = stored.image.index, bad.stored.image.index.length_of(bad.number)
                numbers = (number for number, _ in index.find([bad.digest], known))
                yield from _ranges(stored, (n for n in numbers if index.length_of(n) == length))
        else:
            for stored in places:
                yield from _ranges(stored, [bad.number])

    def _good_copies(self, bad: BadBlock) -> Iterator[tuple[bytes, str]]:
        """Good content for the block, and where it is from; as often as there is one."""
        length = bad.stored.image.index.length_of(bad.number)
        if bad.digest == self.repository.codec.zero_digest(length):
            yield bytes(length), "its hash, which is that of zeroes"
        tried = set()
        for stored, number in islice(self._places_of(bad), _MOST_TRIED):
            if not self.repository.store.shares_blocks:
                block = stored.block(number)
                if block is not None:
                    yield block, f"revision {stored.revision.id}"
            if (stored.disk, number) not in tried:
                tried.add((stored.disk, number))
                for origin in self.origins:
                    block = origin.read(stored.revision, stored.disk, number, bad.digest)
                    if block is not None and self.repository.codec.digest(block) == bad.digest:
                        yield block, origin.name

    def _places_of(self, bad: BadBlock) -> Iterator[tuple[StoredDisk, int]]:
        """Where blocks with this hash should be: in the same place first, then anywhere."""
        yield bad.stored, bad.number
        yield from ((stored, bad.number) for stored in self._alike(bad))
        known: Found = {}
        for stored in reversed(self._opened):
            found = stored.image.index.find([bad.digest], known)
            yield from ((stored, number) for number, _ in found)

    def _warn_of_failures(self) -> None:
        """Name the origins that could not be asked; each of them once, whatever fails later."""
        for origin in self.origins:
            if origin.failure and origin.name not in self._warned:
                self._warned.add(origin.name)
                self.watcher.warn(*failures([origin]))

    def _repair(self, bad: BadBlock, places: Sequence[StoredDisk], block: memoryview) -> bool:
        """Replace the bad bytes, and read them again. False if they are not all good now."""
        try:
            for stored in places:
                stored.image.repair(bad.number, block)
        except StoreError as error:
            self.watcher.warn(f"healing failed: {error.message}")
            return False
        return all(stored.block(bad.number) is not None for stored in places)


def distrusted(revision: Revision, ranges: Iterable[Occurrence]) -> Revision:
    """The revision, distrusted, with these ranges added to its damaged ranges."""
    by_disk = {disk: list(old) for disk, old in revision.damaged.items()}
    for lost in ranges:
        by_disk.setdefault(lost.disk, []).append((lost.start, lost.length))
    damaged = {disk: tuple(merge_ranges(all_of_disk)) for disk, all_of_disk in by_disk.items()}
    while sum(map(len, damaged.values())) > _MOST_RANGES:
        most = max(damaged, key=lambda disk: len(damaged[disk]))
        damaged[most] = ((0, revision.disks[most].size),)
    return replace(revision, trust=Trust.DISTRUSTED, damaged=damaged)


def _ranges(stored: StoredDisk, numbers: Iterable[int]) -> list[Occurrence]:
    """Ranges for ascending block numbers of a disk; the whole disk if there are too many."""
    index = stored.image.index
    blocks = (Extent(n * index.block_size, index.length_of(n), Kind.DATA) for n in numbers)
    ranges = list(islice(merge(blocks), _MOST_RANGES + 1))
    if len(ranges) > _MOST_RANGES:
        ranges = [Extent(0, index.size, Kind.DATA)]
    return [Occurrence(stored.revision.id, stored.disk, bad.start, bad.length) for bad in ranges]


def _joined(damages: Iterable[Damage]) -> list[Damage]:
    joined: list[Damage] = []
    for damage in sorted(damages, key=lambda damage: (damage.revision, damage.disk, damage.start)):
        last = joined[-1] if joined else damage
        start = last.start + last.length
        if damage == replace(last, start=start, length=damage.length, reason=damage.reason):
            joined[-1] = replace(last, length=last.length + damage.length)
        else:
            joined.append(damage)
    return joined
