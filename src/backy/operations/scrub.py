"""Scrub: every stored block is read again within a promised time, a share at each run.

What was read when is remembered in scrub.json, slice by slice of each disk; a slice is read
through all revisions at once. New revisions come first, then what was read longest ago. What to
read is decided purely; reading is verify's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

from backy.errors import BusyError, DamagedError, StoreError, translated
from backy.image.progress import SILENCE, Watcher
from backy.model.extent import Kind
from backy.model.revision import is_id
from backy.operations.heal import Damage, Healer, healing
from backy.operations.origin import Origin, failures
from backy.operations.scrub_plan import (
    Coverage,
    Memory,
    Slice,
    SliceRead,
    coverage,
    plan,
    slice_length,
)
from backy.operations.site import Site
from backy.operations.survey import Range, Survey, largest, opened
from backy.operations.verify import Findings, check_script
from backy.repository import status
from backy.repository.records import LARGEST_DISK, encode_record, read_record
from backy.repository.repository import Repository
from backy.stores.index import Index, block_count
from backy.system import files, folders, signals

_MOST_SLICES = 4096  # of all disks, so that scrub.json stays under 1 MiB
_SAVE_SECONDS = 10  # what a killed scrub reads again at most
_HINT = "Delete it; everything is read anew then."


class Limits:
    """What a scrub may cost: no new slice after `until`, and no more than `rate` bytes a second.

    `until` is a time.monotonic(). The first slice is read at any rate, so that each run gets on.
    """

    def __init__(self, until: float | None = None, rate: int | None = None) -> None:
        self._until = until
        self._rate = rate
        self._has_begun = False
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._has_begun and self._until is not None and time.monotonic() >= self._until

    def spend(self, length: int) -> None:
        """Wait until `length` more bytes may be read, by any thread."""
        self._has_begun = True
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            wait = max(0.0, self._free - now)
            self._free = max(self._free, now) + length / self._rate
        if wait:
            signals.sleep(wait)


@dataclass(slots=True)
class ScrubResult(Findings):
    """What a scrub found, how many bytes it read, and how the promise is kept afterwards."""

    read: int = 0
    coverage: Coverage = field(default_factory=lambda: Coverage(0, 0, None))
    revisions: int = 0


def scrub_job(
    site: Site,
    job: str,
    within: timedelta,
    limits: Limits,
    *,
    watcher: Watcher = SILENCE,
    on_damage: Callable[[Damage], None] = lambda _: None,
) -> ScrubResult:
    """Scrub a job's repository; each damaged range is told at once. Records how far it came.

    Every byte is to be read within `within`. Raises what Scrub.run raises.
    """
    repository = site.repository(job)
    scrub = Scrub(repository, within)
    for error in scrub.history.unreadable.values():
        watcher.warn(error.message)
    result = ScrubResult(unreadable=scrub.history.unreadable)
    origins = site.origins(repository)
    for damage in scrub.run(limits, origins=origins, watcher=watcher):
        result.damages.append(damage)
        on_damage(damage)
    result.unasked = failures(origins)
    result.read, result.coverage = scrub.bytes, scrub.coverage()
    result.revisions = len(scrub.history.revisions)
    _record(repository, result.coverage)
    return result


def _record(repository: Repository, covered: Coverage) -> None:
    """For `backy check`, which cannot read what each scrub of ten thousand jobs remembers."""
    now = datetime.now(UTC).replace(microsecond=0)
    oldest = (now - covered.oldest).replace(microsecond=0) if covered.oldest is not None else None
    scrubbed = status.Scrubbed(now, covered.total, covered.read, oldest)
    status.update(repository.folder, lambda old: replace(old, scrubbed=scrubbed))


def longest_ago(base: Path, names: Iterable[str]) -> list[str]:
    """Jobs in the order of their last scrub; those that never were come first."""

    def last(name: str) -> float:
        try:
            return (base / name / "scrub.json").stat().st_mtime
        except OSError:
            return 0

    return sorted(names, key=last)


class Scrub:
    """One run over a repository. Nobody else scrubs it meanwhile."""

    def __init__(self, repository: Repository, within: timedelta) -> None:
        """Raises StoreError where the history cannot be listed."""
        self.bytes = 0
        self._repository = repository
        self._within = within
        self.history = repository.history()
        self._revisions = self.history.revisions
        self._sizes: dict[str, int] = {}
        self._newest: dict[str, str] = {}
        for revision in self._revisions:
            for name, disk in revision.disks.items():
                self._sizes[name] = max(disk.size, self._sizes.get(name, 0))
                self._newest[name] = revision.id
        most = max(_MOST_SLICES // max(len(self._sizes), 16), 16)
        self._lengths = {name: slice_length(size, most) for name, size in self._sizes.items()}
        self._slices: dict[str, list[Slice]] = {}
        self._seen: set[bytes] = set()
        self._path = repository.root / "scrub.json"
        self._has_news = False
        self._saved = time.monotonic()

    def run(
        self, limits: Limits, *, origins: Sequence[Origin], watcher: Watcher = SILENCE
    ) -> Iterator[Damage]:
        """Read what is due until the time is up; heal what is bad, or give it as damage.

        A slice that was begun is finished, so each run gets on, however short it is. `bytes`
        counts what was read. Raises BusyError where the repository is being scrubbed.
        """
        with self._alone(), healing(self._repository, "scrub", origins, watcher) as healer:
            check_script(self._repository, watcher)
            self._recall(watcher)
            tasks = plan(self._slices, self._newest, datetime.now(UTC), self._within)
            watcher.begin(sum(self._size_of(task) for task in tasks))
            try:
                for name, batch in groupby(tasks, key=lambda task: task.disk):
                    if limits.is_over():
                        break
                    yield from self._read(name, batch, limits, healer)
            finally:
                if self._has_news:
                    self._save()

    def _alone(self) -> files.File:
        name = self._repository.name
        with translated(StoreError, f"{name}: locking it"):
            try:
                return folders.locked(self._repository.root)
            except BlockingIOError:
                why = f"{name}: scrub skipped, another one is running"
                raise BusyError(why, "Wait for it to end.") from None

    def _recall(self, watcher: Watcher) -> None:
        """What earlier runs read, fitted to the disks that there are now."""
        known = Memory()
        try:
            if self._path.exists():
                known = read_record(self._path, Memory, DamagedError, _HINT)
        except (DamagedError, OSError) as error:
            watcher.warn(f"everything is read anew: {error}")
        for name, size in self._sizes.items():
            length = self._lengths[name]
            old = known.disks.get(name, ()) if known.lengths.get(name) == length else ()
            count = block_count(size, length)
            self._slices[name] = [_believable(each) for each in (*old, *[Slice()] * count)][:count]

    def _save(self) -> None:
        memory = Memory(self._lengths, {name: tuple(each) for name, each in self._slices.items()})
        with translated(StoreError, f"{self._repository.name}: writing {self._path}"):
            folders.write_file(self._path, encode_record(memory))
        self._saved = time.monotonic()

    def _read(
        self, name: str, batch: Iterable[SliceRead], limits: Limits, healer: Healer
    ) -> Iterator[Damage]:
        """Do tasks of one disk, whose revisions stay open meanwhile."""
        with opened(self._repository, self._revisions, name) as (holders, damages):
            healer.distrust(damages)
            yield from damages
            for task in batch:
                if limits.is_over():
                    break
                began = datetime.now(UTC).replace(microsecond=0)
                wanted = [each for each in holders if each.revision.id > task.since]
                known = [each for each in holders if each.revision.id <= task.since][-1:]
                before = self.bytes
                # What cannot be opened may claim any size.
                for where in self._range_of(task, largest(holders)).cut():
                    survey = Survey(where, wanted, self._seen, known)
                    yield from healer.heal(survey.read(healer.watcher, limits.spend))
                    self.bytes += survey.bytes
                if not healer.is_unrecorded:
                    self._remember(task, began, self.bytes - before)

    def _range_of(self, task: SliceRead, size: int) -> Range:
        length = self._lengths[task.disk]
        start = task.number * length
        return Range(task.disk, start, min(start + length, size))

    def _size_of(self, task: SliceRead) -> int:
        """What `Survey` tells the watcher of a task."""
        where = self._range_of(task, self._sizes[task.disk])
        having = [each for each in self._revisions if task.disk in each.disks]
        sizes = [each.disks[task.disk].size for each in having if each.id > task.since]
        return sum(max(0, min(where.end, size) - where.start) for size in sizes)

    def _remember(self, task: SliceRead, began: datetime, size: int) -> None:
        """Note that a task is done; on disk now and then."""
        self._has_news = True
        known = self._slices[task.disk]
        old = known[task.number] if task.since else Slice(began)
        known[task.number] = Slice(old.read, self._newest[task.disk], old.bytes + size)
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self._save()

    def coverage(self) -> Coverage:
        """How the promise is kept, after a run."""
        now = datetime.now(UTC)
        unread = {name: self._estimates(name) for name in self._slices}
        return coverage(self._slices, self._revisions, unread, now, self._within)

    def _estimates(self, name: str) -> list[int]:
        """What each slice holds at least: the newest revision's data."""
        newest = [each for each in self._revisions if name in each.disks][-1:]
        with opened(self._repository, newest, name) as (holders, _):
            slices = Range(name, 0, self._sizes[name]).cut(self._lengths[name])
            return [sum(_data(each.image.index, where) for each in holders) for where in slices]


def _data(index: Index, where: Range) -> int:
    """The bytes of a range that are in blocks with data."""
    first, end = (block_count(each, index.block_size) for each in (where.start, where.end))
    extents = index.extents(first=first, end=end)
    return sum(each.length for each in extents if each.kind is Kind.DATA)


def _believable(each: Slice) -> Slice:
    """A slice as it was remembered; one that cannot be, or was read in the future, is unread."""
    if each.read and each.read.tzinfo and is_id(each.upto) and 0 <= each.bytes <= LARGEST_DISK:
        return each if each.read <= datetime.now(UTC) else Slice()
    return Slice()
