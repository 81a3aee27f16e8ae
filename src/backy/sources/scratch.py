"""Folders and space for scratch images: what a guest overwrites while it is backed up."""

import errno
import os
from pathlib import Path

from backy.errors import SourceError, translated
from backy.system import folders
from backy.units import format_size

SCRATCH_HINT = "Point `scratch` to a file system with more free space, which QEMU may enter, too."
_SHARE = 10  # a tenth of what the disks hold must be free


def default_scratch() -> Path:
    """Where scratch images are by default: below the folder for the state of backy.

    Not in /tmp or /var/tmp: everybody may write there, and the shipped unit has its own, which a
    QEMU outside of it does not see.
    """
    is_root = os.geteuid() == 0
    return (Path("/var/lib") if is_root else Path.home() / ".local/state") / "backy/scratch"


def make_private(folder: Path) -> None:
    """Make a folder, and the one above it: others can pass through, and change nothing in it.

    They may exist. Raises OSError if the folder belongs to somebody else.
    """
    for each in (folder.parent, folder):
        if not each.exists():
            folders.make_folder(each)
            folders.allow(each, 0o711)
    if not is_ours(folder):
        raise PermissionError(errno.EPERM, "it belongs to somebody else")


def is_ours(folder: Path) -> bool:
    """Whether we made a folder, and not somebody else who may write to the folder above it."""
    return folder.lstat().st_uid == os.geteuid()


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
