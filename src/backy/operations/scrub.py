"""Scrub: read every stored block again within a promised time, a part of them in each run.

scrub.json says when each slice of each disk was last read. A slice is read in all revisions at
once. New revisions come first, then the slices that were read longest ago. `plan` and `coverage`,
which decide what to read and tell how well the promise is kept, are pure; `now` is an argument.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

from backy.errors import BusyError, DamagedError, StoreError, translated
from backy.image.progress import SILENCE, Pace, Watcher, warned
from backy.model.extent import Kind
from backy.model.revision import Revision, is_id
from backy.operations.heal import Damage, Healer, healing
from backy.operations.origin import Origin, failures
from backy.operations.site import Site
from backy.operations.survey import Range, Survey, check_pages, largest, opened
from backy.operations.verify import Findings, check_script
from backy.repository import status
from backy.repository.records import LARGEST_DISK, AwareTime, encode_record, read_record
from backy.repository.repository import Repository
from backy.stores.index import Index, block_count
from backy.system import files, folders
from backy.system.place import Place
from backy.units import GiB

_MOST_SLICES = 4096  # in all disks, so that scrub.json stays under 1 MiB
_SAVE_SECONDS = 10  # a killed scrub repeats at most the work of this time
_HINT = "Delete it; scrub then reads everything again."


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of a disk: when it was last `read` in all revisions up to the id `upto`.

    `bytes` is how much had to be read, with shared bytes counted once. `read` is None if the slice
    was never read.
    """

    read: AwareTime | None = None
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


class Limits(Pace):
    """Limits of a scrub: it starts no slice after `until`, and reads at most `rate` bytes a second.

    `until` is a time.monotonic(). The first slice is always read, so each run makes progress.
    """

    def __init__(self, until: float | None = None, rate: int | None = None) -> None:
        super().__init__(rate)
        self._until = until
        self._has_begun = False

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._has_begun and self._until is not None and time.monotonic() >= self._until

    def spend(self, length: int) -> None:
        """See Pace."""
        self._has_begun = True
        super().spend(length)


@dataclass(slots=True)
class ScrubResult(Findings):
    """What a scrub found, how many bytes of data it read, and how well the promise is kept now."""

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
    """Scrub a job's repository and record the result in status.json.

    The promise is to read every byte within `within`. `on_damage` is called at once for each
    damaged range. `watcher` is warned if the result cannot be recorded. Raises what Scrub.run
    raises.
    """
    repository = site.repository(job)
    scrub = Scrub(repository, within)
    for text in scrub.history.problems:
        watcher.warn(text)
    result = ScrubResult(unreadable=scrub.history.unreadable)
    origins = site.origins(repository)
    for damage in scrub.run(limits, origins=origins, watcher=watcher):
        result.damages.append(damage)
        on_damage(damage)
    result.unasked = failures(origins)
    result.read, result.pages = scrub.bytes, repository.store.pages.checked
    result.coverage = scrub.coverage()
    result.revisions = len(scrub.history.revisions)
    try:
        _record(repository, result.coverage)
    except StoreError as error:
        if site.handed:  # the daemon would start it again at once
            raise
        watcher.warn(f"the result is not recorded: {error.message}")
    return result


def _record(repository: Repository, covered: Coverage) -> None:
    """Write a summary to status.json: `backy check` cannot read 10,000 files scrub.json."""
    now = datetime.now(UTC).replace(microsecond=0)
    oldest = (now - covered.oldest).replace(microsecond=0) if covered.oldest is not None else None
    scrubbed = status.Scrubbed(now, covered.total, covered.read, oldest)
    status.update(repository.folder, lambda old: replace(old, scrubbed=scrubbed))


def longest_ago(base: Path, names: Iterable[str]) -> list[str]:
    """Jobs in the order of their last scrub. Those that were never scrubbed come first."""

    def last(name: str) -> float:
        try:
            read = (Place.at(base / name) / "scrub.json").status().st_mtime
        except OSError:
            return 0
        return read if read <= time.time() else 0  # the clock was ahead: nobody knows

    return sorted(names, key=last)


class Scrub:
    """One run over a repository. `run` locks out other scrubs of it."""

    def __init__(self, repository: Repository, within: timedelta) -> None:
        """Raises StoreError if the history cannot be listed."""
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
        """Read what is due until the time is up, heal bad blocks, and yield all damage found.

        A slice that was begun is finished, so each run makes progress, however short it is.
        `bytes` counts what was read. Raises BusyError if the repository is being scrubbed.
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
                    self._save(watcher)

    def _alone(self) -> files.File:
        name = self._repository.name
        with translated(StoreError, f"{name}: locking it"):
            try:
                return folders.locked(self._repository.root)
            except BlockingIOError:
                why = f"{name}: scrub skipped, another one is running"
                raise BusyError(why, "Wait for it to end.") from None

    def _recall(self, watcher: Watcher) -> None:
        """Load what earlier runs read, for the disks of the current history."""
        memory = Memory()
        with warned(watcher, "everything is read again"):
            memory = read_record(self._path, Memory, DamagedError, _HINT, may_be_missing=True)
        for name, size in self._sizes.items():
            length = self._lengths[name]
            old = memory.disks.get(name, ()) if memory.lengths.get(name) == length else ()
            count = block_count(size, length)
            self._slices[name] = [*map(_believable, (*old, *[Slice()] * count))][:count]

    def _save(self, watcher: Watcher) -> None:
        slices_of = {name: tuple(slices) for name, slices in self._slices.items()}
        memory = Memory(self._lengths, slices_of)
        try:
            folders.write_file(self._path, encode_record(memory))
        except OSError as error:
            watcher.warn(f"{self._path} cannot be written: {error.strerror}")
        self._saved = time.monotonic()

    def _read(
        self, name: str, batch: Iterable[SliceRead], limits: Limits, healer: Healer
    ) -> Iterator[Damage]:
        """Read the slices of `batch`, all of one disk, with its revisions open all the time."""
        with opened(self._repository, self._revisions, name) as (holders, damages):
            healer.distrust(damages)
            yield from damages
            for task in batch:
                if limits.is_over():
                    break
                began = datetime.now(UTC).replace(microsecond=0)
                wanted = [holder for holder in holders if holder.revision.id > task.since]
                known = [holder for holder in holders if holder.revision.id <= task.since][-1:]
                before = self.bytes
                # Only of disks that could be opened: a damaged record may claim any size.
                for where in self._range_of(task, largest(holders)).cut():
                    yield from check_pages(wanted, where, healer)
                    survey = Survey(where, wanted, self._seen, known)
                    yield from healer.heal(survey.read(healer.watcher, limits.spend))
                    self.bytes += survey.bytes
                if not healer.is_unrecorded:
                    self._remember(task, began, self.bytes - before, healer.watcher)

    def _range_of(self, task: SliceRead, size: int) -> Range:
        length = self._lengths[task.disk]
        start = task.number * length
        return Range(start, min(start + length, size))

    def _size_of(self, task: SliceRead) -> int:
        """The bytes by which a `Survey` of this task advances the watcher."""
        where = self._range_of(task, self._sizes[task.disk])
        revisions = (revision for revision in self._revisions if revision.id > task.since)
        disks = (revision.disks.get(task.disk) for revision in revisions)
        sizes = (disk.size for disk in disks if disk)
        return sum(max(0, min(where.end, size) - where.start) for size in sizes)

    def _remember(self, task: SliceRead, began: datetime, size: int, watcher: Watcher) -> None:
        """Note that a task is done. Saves scrub.json at most every 10 s."""
        self._has_news = True
        slices = self._slices[task.disk]
        old = slices[task.number] if task.since else Slice(began)
        slices[task.number] = Slice(old.read, self._newest[task.disk], old.bytes + size)
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self._save(watcher)

    def coverage(self) -> Coverage:
        """How well the promise is kept, after a run."""
        now = datetime.now(UTC)
        unread = {name: self._estimates(name) for name in self._slices}
        return coverage(self._slices, self._revisions, unread, now, self._within)

    def _estimates(self, name: str) -> list[int]:
        """The bytes of data that each slice has in the newest revision; it holds at least those."""
        newest = [revision for revision in self._revisions if name in revision.disks][-1:]
        with opened(self._repository, newest, name) as (holders, _):
            slices = Range(0, self._sizes[name]).cut(self._lengths[name])
            return [sum(_data(disk.image.index, where) for disk in holders) for where in slices]


def _data(index: Index, where: Range) -> int:
    """How many bytes of a range are in blocks with data."""
    first, end = (block_count(byte, index.block_size) for byte in (where.start, where.end))
    extents = index.extents(first=first, end=end)  # a page that is lost counts as data
    return sum(extent.length for extent in extents if extent.kind is Kind.DATA)


def _believable(old: Slice) -> Slice:
    """A slice from scrub.json; unread if its values are impossible or its time is in the future."""
    if old.read and old.read.tzinfo and is_id(old.upto) and 0 <= old.bytes <= LARGEST_DISK:
        return old if old.read <= datetime.now(UTC) else Slice()
    return Slice()
