"""Look at the reports in the quarantine of a repository, and delete them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from backy.errors import NotFoundError, StoreError, translated
from backy.model.revision import is_id
from backy.repository.quarantine import (
    Report,
    delete_folders,
    locked,
    read_report,
    read_reports,
)
from backy.repository.repository import Repository
from backy.system import folders


def reports(repository: Repository) -> Iterator[Report]:
    """All readable reports, oldest first, read one by one. Changes nothing. Raises StoreError."""
    folder = repository.root / "quarantine"
    with translated(StoreError, f"listing {folder}"):
        names = folders.list_folder(folder)
    yield from read_reports(folder, names)


def find(repository: Repository, report_id: str) -> Report:
    """The report with this id. Raises NotFoundError, or DamagedError if it cannot be read."""
    reports = repository.root / "quarantine"
    with translated(StoreError, f"{repository.name}: looking for report {report_id!r}"):
        is_there = is_id(report_id) and (reports / report_id).exists()
    if not is_there:
        hint = f"backy reports {repository.name} lists them."
        raise NotFoundError(f"{repository.name}: there is no report {report_id!r}", hint)
    return read_report(reports / report_id)


def files(repository: Repository, report: Report) -> list[Path]:
    """The paths of the files beside a report, for people to look at."""
    folder = repository.root / "quarantine" / report.id
    return [(folder / name).path for name in ("stored", "source") if (folder / name).exists()]


def delete(repository: Repository, unwanted: Sequence[str]) -> None:
    """Delete the reports with these ids, and the files beside them."""
    with locked(repository) as folder:
        delete_folders(folder, unwanted)
