"""Free space and inodes in the file system of the base directory, now and in the last two weeks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from backy.errors import DamagedError, StoreError, translated
from backy.repository.records import AwareTime, encode_record, read_record
from backy.system import folders

_INTERVAL = timedelta(hours=1)
_MOST_SAMPLES = 14 * 24  # two weeks


@dataclass(frozen=True, slots=True)
class Space:
    """The size of a file system and its free space, in bytes; `samples` has the latter by time.

    `inodes` has the same in numbers of inodes; None if the file system does not count them.
    """

    capacity: int
    free: int
    samples: Sequence[tuple[datetime, int]] = ()
    inodes: Space | None = None


@dataclass(frozen=True, slots=True)
class _Samples:
    samples: tuple[tuple[AwareTime, int], ...] = ()
    inodes: tuple[tuple[AwareTime, int], ...] = ()


def space(base: Path) -> Space:
    """The space now, with all samples. Raises StoreError if the file system does not answer."""
    with translated(StoreError, f"asking for the free space of {base}"):
        now = os.statvfs(base)
    past = _Samples()
    with suppress(DamagedError):  # without samples there is no trend
        past = read_record(base / ".backy" / "space.json", _Samples, DamagedError, "")
    # btrfs makes inodes as it needs them, and says 0.
    inodes = Space(now.f_files, now.f_favail, past.inodes) if now.f_files else None
    return Space(now.f_blocks * now.f_frsize, now.f_bavail * now.f_frsize, past.samples, inodes)


def record_space(base: Path, now: datetime) -> Space:
    """Record a sample, if the last one is an hour old. Raises StoreError if that fails."""
    current = space(base)
    past = [sample for sample in current.samples if sample[0] <= now]  # the clock may have been set
    if not past or past[-1][0] <= now - _INTERVAL:
        inodes = _with_sample(current.inodes, now) if current.inodes else ()
        path = base / ".backy" / "space.json"
        with translated(StoreError, f"writing {path}"):
            folders.make_folder(path.parent)
            content = encode_record(_Samples(_with_sample(current, now), inodes))
            folders.write_file(path, content)
    return current


def _with_sample(left: Space, now: datetime) -> tuple[tuple[datetime, int], ...]:
    past = (sample for sample in left.samples if sample[0] <= now)
    return (*past, (now.replace(microsecond=0), left.free))[-_MOST_SAMPLES:]
