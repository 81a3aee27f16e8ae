"""Quarantine: what was found damaged, kept with a report until somebody deletes it.

quarantine/ID/report.json   when, by which command, where, which revisions, healed from where
quarantine/ID/stored        the bytes that the store had there, unless none could be read
quarantine/ID/source        what the source has there now, where that is something else
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from backy.errors import BusyError, DamagedError, NotFoundError, StoreError, translated
from backy.model.names import check_disk_name
from backy.model.revision import id_for, is_id
from backy.repository.records import HASH, LARGEST_DISK, encode_record, read_record
from backy.repository.repository import Repository
from backy.system import folders
from backy.system.place import Place

MOST = 1000  # reports of one repository; what is found beyond that is only said and distrusted
_MOST_OCCURRENCES = 1000
_PATIENCE = 30  # seconds to wait for another process that writes a report


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A range of a disk of a revision that has the damaged bytes; bytes, whole blocks."""

    revision: str
    disk: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Report:
    """What report.json says of one damaged block. `healed` names where good bytes came from.

    `verb` is the command that found it, `digest` what its hash should be, `reason` why it is bad;
    `revisions` are all that had the bad bytes, `occurrences` the first 1,000 ranges in them.
    """

    id: str
    time: datetime
    verb: str
    digest: str
    reason: str
    revisions: tuple[str, ...]
    occurrences: tuple[Occurrence, ...]
    healed: str | None = None


def add(repository: Repository, report: Report, evidence: Mapping[str, bytes]) -> Report:
    """Keep a damaged block with its report, durably; an unhealed report of it is replaced.

    Gives the report with its id, and a time that no other has.

    `evidence` are the files beside the report, "stored" and "source"; empty ones are left out,
    and so are all where there is no space. Raises StoreError where there are MOST reports.
    """
    with _locked(repository) as folder:
        there = [name for name in folders.list_folder(folder) if is_id(name)]
        suffix = report.digest[:4]
        alike = _reports(folder, [name for name in there if name.endswith(suffix)])
        old = [each for each in alike if each.digest == report.digest and not each.healed]
        if len(there) - len(old) >= MOST:
            raise StoreError(f"there are {MOST} already", "Look at them, and delete some.")
        now = report.time
        while id_for(now, suffix) in there:
            now += timedelta(seconds=1)
        places = report.occurrences[:_MOST_OCCURRENCES]
        report = replace(report, id=id_for(now, suffix), time=now, occurrences=places)
        draft = folder / f".{report.id}"
        folders.make_folder(draft)
        for name, content in evidence.items():
            with suppress(OSError):
                if content:
                    folders.write_file(draft / name, content)
        folders.write_file(draft / "report.json", encode_record(report))
        folders.rename(draft, folder / report.id)
        folders.sync_folder(folder)
        _delete(folder, old)
    return report


@contextmanager
def _locked(repository: Repository) -> Iterator[Place]:
    """The folder, made if need be; nobody else changes it meanwhile."""
    folder = repository.root / "quarantine"
    what = f"{repository.name}: writing to {folder}"
    with translated(StoreError, what):
        folders.make_folder(folder)
        folders.sync_folder(repository.root)
        try:
            lock = folders.locked(folder, patience_seconds=_PATIENCE)
        except BlockingIOError as error:
            raise BusyError(f"{what}: somebody else does", "Try again.") from error
        with lock:
            yield folder


def heal(repository: Repository, report: Report, origin: str) -> None:
    """Note that a report's block is good again, and where its content came from."""
    path = repository.root / "quarantine" / report.id / "report.json"
    with translated(StoreError, f"{repository.name}: writing {path}"):
        folders.write_file(path, encode_record(replace(report, healed=origin)))


def reports(repository: Repository) -> list[Report]:
    """All reports, oldest first; one that cannot be read is left out, and none is changed by it."""
    folder = repository.root / "quarantine"
    with translated(StoreError, f"listing {folder}"):
        return list(_reports(folder, folders.list_folder(folder)))


def _reports(folder: Place, names: Iterable[str]) -> Iterator[Report]:
    for name in filter(is_id, names):
        with suppress(DamagedError):
            yield _read(folder / name)


def find(repository: Repository, report_id: str) -> Report:
    """The report with this id. Raises NotFoundError, or DamagedError where it is unreadable."""
    reports = repository.root / "quarantine"
    with translated(StoreError, f"{repository.name}: looking for report {report_id!r}"):
        is_there = is_id(report_id) and (reports / report_id).exists()
    if not is_there:
        hint = f"backy reports {repository.name} lists them."
        raise NotFoundError(f"{repository.name}: there is no report {report_id!r}", hint)
    return _read(reports / report_id)


def files(repository: Repository, report: Report) -> list[Path]:
    """The evidence that lies beside a report, by name, for people."""
    folder = repository.root / "quarantine" / report.id
    return [(folder / name).path for name in ("stored", "source") if (folder / name).exists()]


def _read(folder: Place) -> Report:
    def check(report: Report) -> None:
        can_be = report.id == folder.name and bool(HASH.fullmatch(report.digest))
        can_be = can_be and not report.time.utcoffset()  # all times on disk are UTC
        for each in report.occurrences:
            check_disk_name(each.disk)
            end = each.start + each.length
            can_be = can_be and is_id(each.revision) and 0 <= each.start < end <= LARGEST_DISK
        if not can_be:
            raise ValueError(f"it is not the report {folder.name}")

    hint = f"Look at {folder}, and delete it."
    return read_record(folder / "report.json", Report, DamagedError, hint, check)


def delete(repository: Repository, unwanted: Sequence[Report]) -> None:
    """Delete reports and what they keep."""
    with _locked(repository) as folder:
        _delete(folder, unwanted)


def _delete(folder: Place, unwanted: Sequence[Report]) -> None:
    """Hide, then remove what is hidden, also what a killed process left of a draft."""
    for report in unwanted:
        folders.rename(folder / report.id, folder / f".{report.id}")
    if unwanted:
        folders.sync_folder(folder)
    folders.remove_hidden(folder)
