"""Quarantine: damaged blocks and pages, each kept with a report until somebody deletes it.

quarantine/ID/report.json   when, by which command, which ranges of which revisions, healed or not
quarantine/ID/stored        the damaged bytes from the store, if they could be read
quarantine/ID/source        only of early builds: what the source had in the same place
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from backy.errors import BusyError, DamagedError, StoreError, translated
from backy.model.names import check_disk_name
from backy.model.revision import id_for, is_id
from backy.repository.records import HASH, LARGEST_DISK, AwareTime, encode_record, read_record
from backy.repository.repository import PATIENCE, Repository
from backy.system import folders
from backy.system.place import Place
from backy.units import GiB

MOST = 1000  # reports of one repository; damage found beyond that gets no report
_MOST_EVIDENCE = GiB  # bytes; reports beyond that keep no damaged bytes
_MOST_OCCURRENCES = 1000


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A range with the damaged bytes, in a disk of a revision. In bytes, but whole blocks."""

    revision: str
    disk: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Report:
    """The report.json of one damaged block, or of a page that was damaged in both copies.

    `verb` is the command that found it, `digest` the hash that it should have, `reason` how it is
    damaged. `revisions` are all revisions that had the bad bytes, `occurrences` the first 1,000
    ranges in them. `healed` names where good bytes came from; None means that it is not repaired.
    """

    id: str
    time: AwareTime
    verb: str
    digest: str
    reason: str
    revisions: tuple[str, ...]
    occurrences: tuple[Occurrence, ...]
    healed: str | None = None


def add(repository: Repository, report: Report, stored: bytes) -> Report:
    """Keep a damaged block or page with its report, durably.

    Replaces an earlier report that is not healed yet.

    Returns the report with its id, and with a time that no other report has.

    `stored` is the content of the file of that name, which is left out if that is empty, or if
    there is no space for it. Raises StoreError if there are MOST reports already,
    BusyError if another process writes a report for 30 s.
    """
    with locked(repository) as folder:
        ids = [name for name in folders.list_folder(folder) if is_id(name)]
        suffix = report.digest[:4]
        similar = read_reports(folder, [name for name in ids if name.endswith(suffix)])
        old = [other.id for other in similar if other.digest == report.digest and not other.healed]
        if len(ids) - len(old) >= MOST:
            raise StoreError(f"there are {MOST} reports already", "Look at them, and delete some.")
        now = report.time
        while id_for(now, suffix) in ids:
            now += timedelta(seconds=1)
        first = report.occurrences[:_MOST_OCCURRENCES]
        report = replace(report, id=id_for(now, suffix), time=now, occurrences=first)
        draft = folder / f".{report.id}"
        folders.make_folder(draft)
        with suppress(OSError):
            if stored and len(ids) * repository.settings.block_size < _MOST_EVIDENCE:
                folders.write_file(draft / "stored", stored)
        folders.write_file(draft / "report.json", encode_record(report))
        folders.rename(draft, folder / report.id)
        folders.sync_folder(folder)
        delete_folders(folder, old)
    return report


@contextmanager
def locked(repository: Repository) -> Iterator[Place]:
    """The quarantine folder, made if it is missing, and locked against other writers."""
    folder = repository.root / "quarantine"
    action = f"{repository.name}: writing to {folder}"
    with translated(StoreError, action):
        folders.make_folder(folder)
        folders.sync_folder(repository.root)
        try:
            lock = folders.locked(folder, patience_seconds=PATIENCE)
        except BlockingIOError as error:
            raise BusyError(f"{action}: another process is writing there", "Try again.") from error
        with lock:
            yield folder


def heal(repository: Repository, report: Report, origin: str) -> None:
    """Record that the block of a report is repaired; `origin` names where good bytes came from."""
    path = repository.root / "quarantine" / report.id / "report.json"
    with translated(StoreError, f"{repository.name}: writing {path}"):
        folders.write_file(path, encode_record(replace(report, healed=origin)))


def read_reports(folder: Place, names: Iterable[str]) -> Iterator[Report]:
    """Those of these reports that can be read."""
    for name in filter(is_id, names):
        with suppress(DamagedError):
            yield read_report(folder / name)


def read_report(folder: Place) -> Report:
    """The report in a folder. Raises DamagedError."""

    def check(report: Report) -> None:
        is_valid = report.id == folder.name and bool(HASH.fullmatch(report.digest))
        is_valid = is_valid and not report.time.utcoffset()  # all times on disk are UTC
        for place in report.occurrences:
            check_disk_name(place.disk)
            end = place.start + place.length
            is_valid = is_valid and is_id(place.revision) and 0 <= place.start < end <= LARGEST_DISK
        if not is_valid:
            raise ValueError(f"it is not the report {folder.name}")

    hint = f"Look at {folder}, and delete it."
    return read_record(folder / "report.json", Report, DamagedError, hint, check)


def delete_folders(folder: Place, unwanted: Sequence[str]) -> None:
    """Rename to a hidden name, then delete all hidden folders, also those of killed processes."""
    for name in unwanted:
        folders.rename(folder / name, folder / f".{name}")
    if unwanted:
        folders.sync_folder(folder)
    folders.remove_hidden(folder, is_id)
