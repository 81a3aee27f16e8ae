"""Quarantine: what was found damaged, kept with a report until somebody deletes it.

quarantine/ID/report.json   when, by which command, where, which revisions, healed from where
quarantine/ID/stored        the bytes that the store had there, unless none could be read
quarantine/ID/source        what the source has there now, where that is something else
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import TypeAdapter

from backy import disk
from backy.errors import (
    BusyError,
    ConfigError,
    DamagedError,
    NotFoundError,
    StoreError,
    translated,
)
from backy.records import LARGEST_DISK, encode_record, read_record
from backy.repository import Repository
from backy.revision import check_disk_name, id_for, is_id

MOST = 1000  # reports of one repository; what is found beyond that is only said and distrusted
_MOST_OCCURRENCES = 1000
_PATIENCE = 30  # seconds to wait for another process that writes a report
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A range of a disk of a revision that has the damaged bytes; bytes, whole blocks."""

    revision: str
    disk: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One damaged block: which command found it, its hash, why it is bad, and where it is used."""

    verb: str
    digest: str
    reason: str
    occurrences: Sequence[Occurrence]


@dataclass(frozen=True, slots=True)
class Report:
    """What report.json says of one damaged block. `healed` names where good bytes came from.

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


_REPORT = TypeAdapter(Report)


def add(repository: Repository, finding: Finding, evidence: Mapping[str, bytes]) -> Report | None:
    """Keep a damaged block with its report, durably; an unhealed report of it is replaced.

    `evidence` are the files beside the report, "stored" and "source"; empty ones are left out,
    and so are all where there is no space. Gives None where the quarantine has MOST reports.
    """
    with _locked(repository) as folder:
        there = [name for name in disk.list_folder(folder) if is_id(name)]
        suffix = finding.digest[:4]
        alike = _reports(folder, [name for name in there if name.endswith(suffix)])
        old = [each for each in alike if each.digest == finding.digest and not each.healed]
        if len(there) - len(old) >= MOST:
            return None
        now = datetime.now(UTC).replace(microsecond=0)
        while id_for(now, suffix) in there:
            now += timedelta(seconds=1)
        report = _report(finding, id_for(now, suffix), now)
        draft = folder / f".{report.id}"
        disk.make_folder(draft)
        for name, content in evidence.items():
            with suppress(OSError):
                if content:
                    disk.write_file(draft / name, content)
        disk.write_file(draft / "report.json", encode_record(_REPORT, report))
        disk.rename(draft, folder / report.id)
        disk.sync_folder(folder)
        _delete(folder, old)
    return report


def _report(finding: Finding, report_id: str, now: datetime) -> Report:
    return Report(
        id=report_id,
        time=now,
        verb=finding.verb,
        digest=finding.digest,
        reason=finding.reason,
        revisions=tuple(sorted({each.revision for each in finding.occurrences})),
        occurrences=tuple(finding.occurrences[:_MOST_OCCURRENCES]),
    )


@contextmanager
def _locked(repository: Repository) -> Iterator[Path]:
    """The folder, made if need be; nobody else changes it meanwhile."""
    folder = repository.root / "quarantine"
    what = f"{repository.name}: writing to {folder}"
    with ExitStack() as stack, translated(StoreError, what):
        disk.make_folder(folder)
        disk.sync_folder(repository.root)
        try:
            stack.enter_context(disk.locked(folder, patience_seconds=_PATIENCE))
        except BlockingIOError as error:
            raise BusyError(f"{what}: somebody else does", "Try again.") from error
        yield folder


def heal(repository: Repository, report: Report, origin: str) -> Report:
    """Note that a report's block is good again, and where its content came from."""
    report = replace(report, healed=origin)
    path = repository.root / "quarantine" / report.id / "report.json"
    with translated(StoreError, f"{repository.name}: writing {path}"):
        disk.write_file(path, encode_record(_REPORT, report))
    return report


def reports(repository: Repository) -> list[Report]:
    """All reports, oldest first; one that cannot be read is left out, and none is changed by it."""
    folder = repository.root / "quarantine"
    with translated(StoreError, f"listing {folder}"):
        return list(_reports(folder, disk.list_folder(folder)))


def _reports(folder: Path, names: Iterable[str]) -> Iterator[Report]:
    for name in filter(is_id, names):
        with suppress(DamagedError):
            yield _read(folder / name)


def find(repository: Repository, report_id: str) -> Report:
    """The report with this id. Raises NotFoundError, or DamagedError where it is unreadable."""
    folder = repository.root / "quarantine" / report_id
    if not is_id(report_id) or not folder.exists():
        there = f"backy reports --job {repository.name} lists them."
        raise NotFoundError(f"{repository.name}: there is no report {report_id!r}", there)
    return _read(folder)


def files(repository: Repository, report: Report) -> list[Path]:
    """The evidence that lies beside a report."""
    folder = repository.root / "quarantine" / report.id
    return [folder / name for name in ("stored", "source") if (folder / name).is_file()]


def _read(folder: Path) -> Report:
    path = folder / "report.json"
    hint = f"Look at {folder}, and delete it."
    report = read_record(path, _REPORT, DamagedError, hint)
    try:
        for each in report.occurrences:
            check_disk_name(each.disk)
    except ConfigError as error:
        raise DamagedError(f"{path}: {error.message}", hint) from error
    can_be = all(
        is_id(each.revision) and 0 <= each.start < each.start + each.length <= LARGEST_DISK
        for each in report.occurrences
    )
    if not can_be or report.id != folder.name or not _HASH.fullmatch(report.digest):
        raise DamagedError(f"{path} is not the report {folder.name}", hint)
    return report


def delete(repository: Repository, unwanted: Sequence[Report]) -> None:
    """Delete reports and what they keep."""
    with _locked(repository) as folder:
        _delete(folder, unwanted)


def _delete(folder: Path, unwanted: Sequence[Report]) -> None:
    """Hide, then remove what is hidden, also what a killed process left of a draft."""
    for report in unwanted:
        disk.rename(folder / report.id, folder / f".{report.id}")
    if unwanted:
        disk.sync_folder(folder)
    for name in disk.list_folder(folder):
        if name.startswith("."):
            disk.remove_tree(folder / name)
