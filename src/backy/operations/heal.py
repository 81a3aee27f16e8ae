"""Heal: bring a bad block back from wherever its content still is, or distrust who names it.

Content is good if it has the hash that the index says, wherever it comes from: another revision
(store images), the live source, or a copy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice

from backy.errors import NotFoundError, StoreError
from backy.image.progress import SILENCE, Watcher
from backy.model.extent import Extent, Kind, merge, merge_ranges
from backy.model.revision import Revision, Trust
from backy.operations.origin import Origin, failures
from backy.repository import quarantine
from backy.repository.quarantine import Occurrence, Report
from backy.repository.repository import Repository
from backy.stores.blocks import StoredImage
from backy.system import process
from backy.system.files import Cache

_MOST_TRIED = 100  # places that should have a block's content, in looking for one that has
_MOST_RANGES = 1000  # of a revision; beyond that a whole disk counts as damaged


@dataclass(frozen=True, slots=True)
class Damage(Occurrence):
    """A range of a disk of a revision that was not what it was; in bytes, whole blocks.

    `healed` names where good bytes came from; None means that the range cannot be given back.
    """

    reason: str
    healed: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A disk of a published revision, open for reading."""

    revision: Revision
    disk: str
    image: StoredImage

    def damage(self, offset: int, buffer: memoryview) -> StoreError | None:
        """Fill `buffer`, unless some of what is stored there is not what its name says.

        Raises StoreError where reading failed for a reason that says nothing of what is stored.
        """
        try:
            self.image.readinto(offset, buffer)
        except StoreError as error:
            if error.is_damage:
                return error
            raise
        return None

    def block(self, number: int) -> bytes | None:
        """A block, if what is stored is what its name says. Raises as `damage` does."""
        room = memoryview(bytearray(self.image.index.length_of(number)))
        is_bad = self.damage(number * self.image.block_size, room)
        return None if is_bad else bytes(room)


@dataclass(frozen=True, slots=True)
class Bad:
    """A stored block that was read and is not what its name says."""

    stored: Stored
    number: int
    reason: str

    @property
    def digest(self) -> str:
        """What its hash should be."""
        return self.stored.image.index.digest(self.number)


@contextmanager
def healing(
    repository: Repository, verb: str, origins: Sequence[Origin], watcher: Watcher = SILENCE
) -> Iterator[Healer]:
    """A Healer that asks `origins` in their order; `verb` is what its reports call the command."""
    with ExitStack() as stack:
        for origin in origins:
            stack.callback(origin.close)
        opened = stack.enter_context(ExitStack())
        yield Healer(repository, verb, origins, watcher, opened)


@dataclass(eq=False)
class Healer:
    """Deals with the bad blocks that one command finds, whichever thread finds them.

    `stack` gets what it keeps open once it had something to do. `is_unrecorded` says that some
    damage may not be noted in a revision that has it: nothing may be called whole, or read, on
    the word of this command.
    """

    repository: Repository
    verb: str
    origins: Sequence[Origin]
    watcher: Watcher
    stack: ExitStack
    is_unrecorded: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: set[object] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)
    _opened: list[Stored] = field(default_factory=list)
    _opened_ids: list[str] = field(default_factory=list)

    def treat(self, found: Sequence[Bad]) -> list[Damage]:
        """Heal blocks wherever they are stored, or distrust the revisions that name them.

        Gives every range of every revision that had the bad bytes, but for bytes that this
        command dealt with before. Ranges that touch are joined; the reason is the first one's.
        """
        with self._lock:
            return _joined(each for bad in found for each in self._treat(bad)[1])

    def rescue(self, bad: Bad) -> tuple[bytes | None, list[Damage]]:
        """As `treat`, and the content, if any origin has it, even where it cannot be kept."""
        with self._lock:
            return self._treat(bad)

    def distrust(self, found: Iterable[Occurrence]) -> None:
        """Record in each revision what it cannot give back."""
        ranges: dict[str, list[Occurrence]] = {}
        for each in found:
            ranges.setdefault(each.revision, []).append(each)
        for revision_id, bad in ranges.items():
            try:
                self.repository.change(revision_id, partial(distrusted, found=bad))
            except NotFoundError:  # removed meanwhile
                pass
            except StoreError as error:
                self.is_unrecorded = True
                self.watcher.warn(f"not marked as distrusted: {error.message}")

    def _treat(self, bad: Bad) -> tuple[bytes | None, list[Damage]]:
        whole = bad.stored.block(bad.number)
        if whole is not None:
            self.watcher.warn(f"whole now, but not when it was first read: {bad.reason}")
            return whole, []
        self._open_all()
        places = self._same_place(bad)
        good, origin = next(self._good(bad), (None, ""))
        place = places[0].revision.id, places[0].disk, bad.number
        key = bad.digest if self.repository.store.shares_blocks else place
        if good is None and key in self._known:
            return None, []
        self._known.add(key)
        found = list(self._occurrences(bad, places))
        evidence = {"stored": bad.stored.image.read_stored(bad.number)}
        if good is None:
            evidence["source"] = self._elsewhere(bad)
            self._warn_of_failures()
        report = self._report(bad, found, evidence)
        healed = origin if good and self._mend(bad, places, memoryview(good)) else None
        if not healed:
            self.distrust(found)
        elif report:
            try:
                quarantine.heal(self.repository, report, healed)
            except StoreError as error:
                self.watcher.warn(f"not noted as healed: {error.message}")
        return good, [Damage(**asdict(each), reason=bad.reason, healed=healed) for each in found]

    def _open_all(self) -> None:
        """Open every disk of the history whose index is whole.

        They stay open until the history is another one: opening an index means to hash it.
        """
        history = self.repository.history()
        self.is_unrecorded |= bool(history.unreadable)
        ids = [revision.id for revision in history.revisions]
        if ids != self._opened_ids:
            self.stack.close()
            self._opened = list(self._open(history.revisions))
            self._opened_ids = ids

    def _open(self, history: Sequence[Revision]) -> Iterator[Stored]:
        process.allow_open_files(4 * sum(len(each.disks) for each in history) + 1000)
        for revision in history:
            for disk in revision.disks:
                try:
                    self.stack.enter_context(self.repository.reading(revision))
                    opened = self.repository.store.open(revision, disk, Cache.AVOID)
                    image = self.stack.enter_context(opened)
                except NotFoundError:
                    pass
                except StoreError:
                    given_up = (0, revision.disks[disk].size) in revision.damaged.get(disk, ())
                    self.is_unrecorded |= not given_up
                else:
                    yield Stored(revision, disk, image)

    def _alike(self, bad: Bad) -> Iterator[Stored]:
        """Where the same content should be in the same place, in bytes of their own or shared."""
        for each in self._opened:
            index = each.image.index
            is_there = each.disk == bad.stored.disk and bad.number < index.blocks
            if is_there and index.digest(bad.number) == bad.digest:
                yield each

    def _same_place(self, bad: Bad) -> list[Stored]:
        """Images that have the bad bytes, each in its own file. A chunk is one place for all."""
        if self.repository.store.shares_blocks:
            return [bad.stored]
        return [each for each in self._alike(bad) if each.block(bad.number) is None] or [bad.stored]

    def _occurrences(self, bad: Bad, places: Sequence[Stored]) -> Iterator[Occurrence]:
        """Every range of every revision that has the bad bytes."""
        if self.repository.store.shares_blocks:
            for each in self._opened:
                # Where a record lies about the size, the last block is bad in that revision only.
                index, length = each.image.index, bad.stored.image.index.length_of(bad.number)
                found = (number for number, _ in index.find([bad.digest]))
                yield from _ranges(each, (n for n in found if index.length_of(n) == length))
        else:
            for each in places:
                yield from _ranges(each, [bad.number])

    def _good(self, bad: Bad) -> Iterator[tuple[bytes, str]]:
        """The block's content, and where it is from, as often as there is a whole one."""
        length = bad.stored.image.index.length_of(bad.number)
        if bad.digest == self.repository.codec.zero_digest(length):
            yield bytes(length), "its name, which is that of zeroes"
        tried = set()
        for each, number in islice(self._namesakes(bad), _MOST_TRIED):
            if not self.repository.store.shares_blocks:
                block = each.block(number)
                if block is not None:
                    yield block, f"revision {each.revision.id}"
            if (each.disk, number) not in tried:
                tried.add((each.disk, number))
                for origin in self.origins:
                    block = origin.read(each.revision, each.disk, number, bad.digest)
                    if block is not None and self.repository.codec.digest(block) == bad.digest:
                        yield block, origin.name

    def _namesakes(self, bad: Bad) -> Iterator[tuple[Stored, int]]:
        """Where blocks of that name should be: in the same place first, then anywhere."""
        yield bad.stored, bad.number
        yield from ((each, bad.number) for each in self._alike(bad))
        for each in reversed(self._opened):
            yield from ((each, number) for number, _ in each.image.index.find([bad.digest]))

    def _elsewhere(self, bad: Bad) -> bytes:
        """The other side of the mismatch: what the first origin that can be read has there."""
        place = bad.stored.revision, bad.stored.disk, bad.number, bad.digest
        return next(filter(None, (origin.read(*place) for origin in self.origins)), b"")

    def _warn_of_failures(self) -> None:
        """Name the origins that could not be asked; each of them once, whatever fails later."""
        for origin in self.origins:
            if origin.failure and origin.name not in self._warned:
                self._warned.add(origin.name)
                self.watcher.warn(*failures([origin]))

    def _report(
        self, bad: Bad, found: Sequence[Occurrence], evidence: Mapping[str, bytes]
    ) -> Report | None:
        """Keep what was found; a store that is full or read-only must not stop the healing."""
        report = Report(
            id="",
            time=datetime.now(UTC).replace(microsecond=0),
            verb=self.verb,
            digest=bad.digest,
            reason=bad.reason,
            revisions=tuple(sorted({each.revision for each in found})),
            occurrences=tuple(found),
        )
        try:
            return quarantine.add(self.repository, report, evidence)
        except StoreError as error:
            self.watcher.warn(f"no report was kept: {error.message}")
            return None

    def _mend(self, bad: Bad, places: Sequence[Stored], block: memoryview) -> bool:
        """Put good bytes where bad ones are, and look again; whether all are good now."""
        try:
            for each in places:
                each.image.repair(bad.number, block)
        except StoreError as error:
            self.watcher.warn(f"healing failed: {error.message}")
            return False
        return all(each.block(bad.number) is not None for each in places)


def distrusted(revision: Revision, found: Iterable[Occurrence]) -> Revision:
    """The revision, with these ranges added to its damage."""
    ranges = {disk: list(known) for disk, known in revision.damaged.items()}
    for each in found:
        ranges.setdefault(each.disk, []).append((each.start, each.length))
    damaged = {disk: tuple(merge_ranges(known)) for disk, known in ranges.items()}
    while sum(map(len, damaged.values())) > _MOST_RANGES:
        most = max(damaged, key=lambda disk: len(damaged[disk]))
        damaged[most] = ((0, revision.disks[most].size),)
    return replace(revision, trust=Trust.DISTRUSTED, damaged=damaged)


def _ranges(stored: Stored, numbers: Iterable[int]) -> list[Occurrence]:
    """Ascending block numbers of a disk as ranges; the whole disk where they are too many."""
    index = stored.image.index
    blocks = (Extent(n * index.block_size, index.length_of(n), Kind.DATA) for n in numbers)
    found = list(islice(merge(blocks), _MOST_RANGES + 1))
    if len(found) > _MOST_RANGES:
        found = [Extent(0, index.size, Kind.DATA)]
    return [Occurrence(stored.revision.id, stored.disk, each.start, each.length) for each in found]


def _joined(damages: Iterable[Damage]) -> list[Damage]:
    joined: list[Damage] = []
    for each in sorted(damages, key=lambda each: (each.revision, each.disk, each.start)):
        last = joined[-1] if joined else each
        start = last.start + last.length
        if each == replace(last, start=start, length=each.length, reason=each.reason):
            joined[-1] = replace(last, length=last.length + each.length)
        else:
            joined.append(each)
    return joined
