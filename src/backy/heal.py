"""Heal: bring a bad block back from wherever its content still is, or distrust who names it.

Content is good if it has the hash that the index says, wherever it comes from: another revision
(store images), the live source, or a copy.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Protocol

from backy import process, quarantine
from backy.disk import Cache
from backy.errors import (
    ConfigError,
    NotFoundError,
    SourceError,
    StoreError,
)
from backy.image import SILENCE, Image, Watcher
from backy.index import digest_of, zero_digest
from backy.quarantine import Occurrence
from backy.repository import Repository
from backy.revision import Revision, Trust
from backy.sources import open_source
from backy.stores.blocks import StoredImage

_MOST_TRIED = 100  # places that should have a block's content, in looking for one that has
_MOST_RANGES = 1000  # of a revision; beyond that a whole disk counts as damaged


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of a disk of a revision that was not what it was; in bytes, whole blocks.

    `healed` names where good bytes came from; None means that the range cannot be given back.
    """

    revision: str
    disk: str
    start: int
    length: int
    reason: str
    healed: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A disk of a published revision, open for reading."""

    revision: Revision
    disk: str
    image: StoredImage

    def block(self, number: int) -> bytes | None:
        """A block, if what is stored is what its name says.

        Raises StoreError where reading failed for a reason that says nothing of what is stored.
        """
        room = memoryview(bytearray(self.image.index.length_of(number)))
        try:
            self.image.readinto(number * self.image.block_size, room)
        except StoreError as error:
            if not error.is_damage:
                raise
            return None
        return bytes(room)

    def names(self, number: int, digest: str) -> bool:
        """Whether the block of that number has that name."""
        index = self.image.index
        return number < index.blocks and index.digest(number) == digest


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


class Origin(Protocol):
    """Where good content may still be. Asked from one thread at a time."""

    name: str
    """What reports and messages call it."""

    def images(self) -> Mapping[str, Image]:
        """The disks as they are there; none where it cannot be reached, which is no error."""


class LiveSource:
    """The source as it is now; opened at the first need, and closed with `stack`."""

    name = "the source"

    def __init__(self, settings: Mapping[str, object], stack: ExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._images: Mapping[str, Image] | None = None

    def images(self) -> Mapping[str, Image]:
        """See Origin."""
        if self._images is None:
            self._images = {}
            with suppress(SourceError, ConfigError):
                snapshot = open_source(self._settings).snapshot(None)
                self._images = self._stack.enter_context(snapshot).disks
        return self._images


@contextmanager
def healing(
    repository: Repository, verb: str, origins: Sequence[Origin] = (), watcher: Watcher = SILENCE
) -> Iterator[Healer]:
    """A Healer that has the live source and then `origins`; `verb` is what reports call it."""
    with ExitStack() as stack:
        live = LiveSource(repository.settings.source, stack)
        opened = stack.enter_context(ExitStack())
        yield Healer(repository, verb, [live, *origins], watcher, opened)


class Healer:
    """Deals with the bad blocks that one command finds, whichever thread finds them.

    `stack` gets what it keeps open once it had something to do.
    """

    def __init__(
        self,
        repository: Repository,
        verb: str,
        origins: Sequence[Origin],
        watcher: Watcher,
        stack: ExitStack,
    ) -> None:
        self._repository = repository
        self._verb = verb
        self._origins = origins
        self._watcher = watcher
        self._lock = threading.Lock()
        self._known: set[object] = set()
        self.is_unrecorded = False
        """Whether some damage may not be noted in a revision that has it: nothing may be called
        whole, or read, on the word of this command."""
        self._stack = stack
        self._opened: list[Stored] = []
        self._opened_ids: list[str] = []

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

    def distrust(self, found: Iterable[Damage | Occurrence]) -> None:
        """Record in each revision what it cannot give back."""
        ranges: dict[str, list[Damage | Occurrence]] = {}
        for each in found:
            ranges.setdefault(each.revision, []).append(each)
        for revision in self._repository.history() if ranges else []:
            if bad := ranges.pop(revision.id, None):
                try:
                    self._repository.change(revision, partial(distrusted, found=bad))
                except NotFoundError:  # removed meanwhile
                    pass
                except StoreError as error:
                    self.is_unrecorded = True
                    self._watcher.warn(f"not marked as distrusted: {error.message}")
        for revision_id in ranges:
            if (self._repository.root / "revisions" / revision_id).exists():
                self.is_unrecorded = True
                self._watcher.warn(f"not marked as distrusted: {revision_id} cannot be read")

    def _treat(self, bad: Bad) -> tuple[bytes | None, list[Damage]]:
        whole = bad.stored.block(bad.number)
        if whole is not None:
            self._watcher.warn(f"whole now, but not when it was first read: {bad.reason}")
            return whole, []
        self._open_all()
        places = list(self._same_place(bad))
        good, origin = next(self._good(bad), (None, ""))
        key = (bad.digest, *((each.revision.id, each.disk, bad.number) for each in places[:1]))
        if good is None and key in self._known:
            return None, []
        self._known.add(key)
        found = list(self._occurrences(bad, places))
        evidence = {"stored": bad.stored.image.evidence(bad.number)}
        if good is None:
            evidence["source"] = self._elsewhere(bad)
        report = self._report(bad, found, evidence)
        healed = origin if good and self._mend(bad, places, memoryview(good)) else None
        if not healed:
            self.distrust(found)
        elif report:
            try:
                quarantine.heal(self._repository, report, healed)
            except StoreError as error:
                self._watcher.warn(f"not noted as healed: {error.message}")
        return good, [
            Damage(each.revision, each.disk, each.start, each.length, bad.reason, healed)
            for each in found
        ]

    def _open_all(self) -> None:
        """Open every disk of the history whose index is whole.

        They stay open until the history is another one: opening an index means to hash it.
        """
        history = self._repository.history()
        self.is_unrecorded |= bool(self._repository.damaged)
        if [revision.id for revision in history] != self._opened_ids:
            self._stack.close()
            self._opened = list(self._open(history))
            self._opened_ids = [revision.id for revision in history]

    def _open(self, history: Sequence[Revision]) -> Iterator[Stored]:
        process.allow_open_files(4 * sum(len(each.disks) for each in history) + 1000)
        for revision in history:
            for disk in revision.disks:
                try:
                    self._stack.enter_context(self._repository.reading(revision))
                    opened = self._repository.store.open(revision, disk, Cache.AVOID)
                    image = self._stack.enter_context(opened)
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
            if each.disk == bad.stored.disk and each.names(bad.number, bad.digest):
                yield each

    def _same_place(self, bad: Bad) -> Iterator[Stored]:
        """Images that have the bad bytes, each in its own file. A chunk is one place for all."""
        if not self._repository.store.shares_blocks:
            yield from (each for each in self._alike(bad) if each.block(bad.number) is None)

    def _occurrences(self, bad: Bad, places: Sequence[Stored]) -> Iterator[Occurrence]:
        """Every range of every revision that has the bad bytes."""
        if self._repository.store.shares_blocks:
            for each in self._opened:
                # Where a record lies about the size, the last block is bad in that revision only.
                index, length = each.image.index, bad.stored.image.index.length_of(bad.number)
                found = (number for number, _ in index.find([bad.digest]))
                yield from _ranges(each, (n for n in found if index.length_of(n) == length))
        else:
            for each in places or [bad.stored]:
                yield from _ranges(each, [bad.number])

    def _good(self, bad: Bad) -> Iterator[tuple[bytes, str]]:
        """The block's content, and where it is from, as often as there is a whole one."""
        length = bad.stored.image.index.length_of(bad.number)
        if bad.digest == zero_digest(length):
            yield bytes(length), "its name, which is that of zeroes"
        tried = set()
        for each, number in islice(self._namesakes(bad), _MOST_TRIED):
            if not self._repository.store.shares_blocks:
                block = each.block(number)
                if block is not None:
                    yield block, f"revision {each.revision.id}"
            if (each.disk, number) not in tried:
                tried.add((each.disk, number))
                for origin in self._origins:
                    block = self._from(origin, each, number)
                    if digest_of(block) == bad.digest:
                        yield block, origin.name

    def _namesakes(self, bad: Bad) -> Iterator[tuple[Stored, int]]:
        """Where blocks of that name should be: in the same place first, then anywhere."""
        yield bad.stored, bad.number
        yield from ((each, bad.number) for each in self._alike(bad))
        for each in reversed(self._opened):
            yield from ((each, number) for number, _ in each.image.index.find([bad.digest]))

    def _from(self, origin: Origin, stored: Stored, number: int) -> bytes:
        """What an origin has in a block's place; empty where it has nothing there."""
        image, index = origin.images().get(stored.disk), stored.image.index
        start, block = number * index.block_size, bytearray(index.length_of(number))
        if not image or image.size < start + len(block):
            return b""
        try:
            image.readinto(start, memoryview(block))
        except (SourceError, StoreError):
            return b""
        return bytes(block)

    def _elsewhere(self, bad: Bad) -> bytes:
        """The other side of the mismatch: what the first origin that can be read has there."""
        there = (self._from(origin, bad.stored, bad.number) for origin in self._origins)
        return next(filter(None, there), b"")

    def _report(
        self, bad: Bad, found: Sequence[Occurrence], evidence: Mapping[str, bytes]
    ) -> quarantine.Report | None:
        """Keep what was found; a store that is full or read-only must not stop the healing."""
        finding = quarantine.Finding(self._verb, bad.digest, bad.reason, found)
        try:
            report = quarantine.add(self._repository, finding, evidence)
        except StoreError as error:
            self._watcher.warn(f"no report was kept: {error.message}")
            return None
        if not report:
            self._watcher.warn(f"no report was kept: there are {quarantine.MOST} already")
        return report

    def _mend(self, bad: Bad, places: Sequence[Stored], block: memoryview) -> bool:
        """Put good bytes where bad ones are, and look again; whether all are good now."""
        try:
            for each in places or [bad.stored]:
                each.image.mend(bad.number, block)
        except StoreError as error:
            self._watcher.warn(f"healing failed: {error.message}")
            return False
        return all(each.block(bad.number) is not None for each in places or [bad.stored])


def distrusted(revision: Revision, found: Iterable[Damage | Occurrence]) -> Revision:
    """The revision, with these ranges added to its damage."""
    damaged = {disk: list(ranges) for disk, ranges in revision.damaged.items()}
    for each in found:
        damaged.setdefault(each.disk, []).append((each.start, each.length))
    damaged = {disk: united(ranges) for disk, ranges in damaged.items()}
    while sum(map(len, damaged.values())) > _MOST_RANGES:
        most = max(damaged, key=lambda disk: len(damaged[disk]))
        damaged[most] = [(0, revision.disks[most].size)]
    kept = {disk: tuple(ranges) for disk, ranges in damaged.items()}
    return replace(revision, trust=Trust.DISTRUSTED, damaged=kept)


def united(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges as (start, length), ascending; those that touch or overlap are one."""
    united: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        before, so_far = united[-1] if united else (0, -1)
        if start <= before + so_far:
            united[-1] = before, max(so_far, start + length - before)
        else:
            united.append((start, length))
    return united


def _ranges(stored: Stored, numbers: Iterable[int]) -> list[Occurrence]:
    """Ascending block numbers of a disk as ranges; the whole disk where they are too many."""
    index = stored.image.index
    at = partial(Occurrence, stored.revision.id, stored.disk)
    found: list[Occurrence] = []
    for number in numbers:
        start, length = number * index.block_size, index.length_of(number)
        if found and found[-1].start + found[-1].length == start:
            found[-1] = replace(found[-1], length=found[-1].length + length)
        elif len(found) < _MOST_RANGES:
            found.append(at(start, length))
        else:
            return [at(0, index.size)]
    return found


def _joined(damages: Iterable[Damage]) -> list[Damage]:
    joined: list[Damage] = []
    for each in sorted(damages, key=lambda each: (each.revision, each.disk, each.start)):
        last = joined[-1] if joined else None
        if last and (last.revision, last.disk, last.start + last.length, last.healed) == (
            each.revision,
            each.disk,
            each.start,
            each.healed,
        ):
            joined[-1] = replace(last, length=last.length + each.length)
        else:
            joined.append(each)
    return joined
