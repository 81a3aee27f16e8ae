"""How much space the base directory's file system had left in the last weeks: for the trend."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, TypeAdapter

from backy.errors import DamagedError, StoreError, translated
from backy.repository.records import encode_record, read_record
from backy.system import folders

_EVERY = timedelta(hours=1)
_MOST = 14 * 24  # samples: two weeks


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes that the file system has, and has left for us; the latter also at earlier times."""

    capacity: int
    free: int
    samples: Sequence[tuple[datetime, int]] = ()


@dataclass(frozen=True, slots=True)
class _Samples:
    samples: tuple[tuple[AwareDatetime, int], ...] = ()


_SAMPLES = TypeAdapter(_Samples)


def space(base: Path) -> Space:
    """What is left now, and what was. Raises StoreError where the file system cannot be asked."""
    with translated(StoreError, f"looking for space on {base}"):
        now = os.statvfs(base)
    return Space(now.f_blocks * now.f_frsize, now.f_bavail * now.f_frsize, _read(base))


def record_space(base: Path, now: datetime) -> Space:
    """Remember what is left now, once an hour. Raises StoreError where that cannot be written."""
    found = space(base)
    past = [each for each in found.samples if each[0] <= now]  # the clock may have been wrong
    if not past or past[-1][0] <= now - _EVERY:
        samples = (*past, (now.replace(microsecond=0), found.free))[-_MOST:]
        path = base / ".backy" / "space.json"
        with translated(StoreError, f"writing {path}"):
            folders.make_folder(path.parent)
            folders.write_file(path, encode_record(_SAMPLES, _Samples(samples)))
    return found


def _read(base: Path) -> tuple[tuple[datetime, int], ...]:
    with suppress(DamagedError):  # no trend, then
        return read_record(base / ".backy" / "space.json", _SAMPLES, DamagedError, "").samples
    return ()
