"""Plausibility check: whether a new revision has far less data than its parent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from backy.errors import BackyError
from backy.model.revision import Revision
from backy.repository.repository import Repository
from backy.stores.data import data_bytes
from backy.units import format_size

_SUSPICIOUS_FACTOR = 2  # warn if the parent has more than this many times as much data


def suspicion(repository: Repository, revision: Revision) -> str:
    """Why a new revision may be wrong: it has far less data than its parent, or lacks a disk.

    "" if it seems fine, or if the parent cannot be read. This warns of backups that succeed, but
    of an emptied disk or of the wrong one.
    """
    with suppress(BackyError):
        if revision.parent:
            parent = repository.find(revision.parent)
            return next(_losses(repository, revision, parent), "")
    return ""


def _losses(repository: Repository, revision: Revision, parent: Revision) -> Iterator[str]:
    for name, old in parent.disks.items():
        new = revision.disks.get(name)
        if not new:
            yield f"disk {name} is gone"
        elif new.changed or new.size < old.size:
            # More than this cannot be gone, so a parent with much more data needs no counting.
            gone = new.changed + max(0, old.size - new.size)
            most = gone * _SUSPICIOUS_FACTOR // (_SUSPICIOUS_FACTOR - 1)
            before = _data_bytes(repository, parent, name, most)
            if before > most:
                continue
            now = _data_bytes(repository, revision, name)
            if now * _SUSPICIOUS_FACTOR < before:
                yield f"disk {name} has {format_size(now)} of data, it had {format_size(before)}"


def _data_bytes(
    repository: Repository, revision: Revision, name: str, enough: int | None = None
) -> int:
    with repository.store.open_index(revision, name) as index:
        return data_bytes(index, enough)
