"""restores.json in a repository: the last restores of its job, the newest last."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from backy.errors import DamagedError, StoreError, translated, visible
from backy.model.revision import is_id
from backy.repository.records import AwareTime, encode_record, read_record
from backy.repository.repository import Repository
from backy.repository.status import locked
from backy.system import folders
from backy.system.place import Place

MOST = 100  # restores that are kept
DONE = "done"
_LONGEST_TEXT = 300  # characters of a text that is kept, so that the file stays below 1 MiB
_LATEST = 10  # restores from which a rate is taken
_HINT = "Delete it; the next restore writes a new one."


@dataclass(frozen=True, slots=True)
class RestoreRecord:
    """One restore. `targets` names them by disk; `data` and `written` are bytes of a whole restore.

    `result` is "unfinished" while it runs and after it was killed, "done", or why it failed.
    """

    id: str
    time: AwareTime
    revision: str
    targets: str
    asked_by: str
    data: int = 0
    written: int = 0
    seconds: float = 0
    result: str = "unfinished"


@dataclass(frozen=True, slots=True)
class _Restores:
    restores: tuple[RestoreRecord, ...] = ()


def read_restores(root: Place) -> tuple[RestoreRecord, ...]:
    """The restores that are kept in the repository `root`, oldest first. Raises DamagedError."""
    path = root / "restores.json"
    try:
        return read_record(path, _Restores, DamagedError, _HINT, _check).restores
    except DamagedError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return ()
        raise


def _check(kept: _Restores) -> None:
    for record in kept.restores:
        if not is_id(record.id) or not is_id(record.revision):
            raise ValueError(f"{record.id!r:.40} is no restore of {record.revision!r:.40}")


def keep_restore(repository: Repository, record: RestoreRecord) -> None:
    """Write a restore down, durably, in the place of what was written of it before.

    A damaged file counts as an empty one. Raises StoreError.
    """
    targets, asked_by, result = (
        visible(text)[:_LONGEST_TEXT] for text in (record.targets, record.asked_by, record.result)
    )
    record = replace(record, targets=targets, asked_by=asked_by, result=result)
    with (
        translated(StoreError, f"{repository.name}: writing restores.json"),
        locked(repository.folder) as root,
    ):
        others: list[RestoreRecord] = []
        with suppress(DamagedError):
            others = [each for each in read_restores(root) if each.id != record.id]
        kept = _Restores((*others, record)[-MOST:])
        folders.write_file(root / "restores.json", encode_record(kept))


def rate_of(records: Sequence[RestoreRecord]) -> float:
    """The bytes of data a second of the last restores; 0 if nobody knows."""
    done = [record for record in records if record.result == DONE][-_LATEST:]
    seconds = sum(record.seconds for record in done)
    return sum(record.data for record in done) / seconds if seconds else 0.0
