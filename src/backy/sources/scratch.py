"""Space for scratch images, which hold what a guest overwrites while it is backed up."""

from __future__ import annotations

import os
from pathlib import Path

from backy.errors import SourceError, translated
from backy.units import format_size

SCRATCH_HINT = "Point `scratch` to a file system with more free space, which QEMU may enter, too."
_SHARE = 10  # a tenth of what the disks hold must be free


def check_space(folder: Path, disks_bytes: int) -> None:
    """Check that `folder` has space for scratch images of disks that hold `disks_bytes`.

    Raises SourceError where too little is free: the guest's writes could fail then.
    """
    with translated(SourceError, f"looking for free space in {folder}", SCRATCH_HINT):
        status = os.statvfs(folder)
    free, needed = status.f_bavail * status.f_frsize, disks_bytes // _SHARE
    if free < needed:
        why = f"{format_size(free)} are free, {format_size(needed)} may be needed"
        raise SourceError(f"{folder}: {why}", SCRATCH_HINT)
