"""A fresh file system on a loop device, for as long as it is needed."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.measure import BenchmarkError, output_of

UNMOUNT_ATTEMPTS = 10
MAKE_XFS = ("mkfs.xfs", "-q", "-m", "reflink=1")
MAKE_EXT4 = ("mkfs.ext4", "-q")


@contextmanager
def mounted(
    backing: Path, mountpoint: Path, size_bytes: int, maker: Sequence[str] = MAKE_XFS
) -> Iterator[Path]:
    """Make `backing`, run `maker` on it and mount it; all of that is gone at the end.

    The backing file is new and sparse each time: a tool that wrote into space which an earlier
    one had allocated would save the allocation below, and look faster than it is.
    """
    remove(backing, mountpoint)
    mountpoint.mkdir(exist_ok=True)
    try:
        with backing.open("wb") as file:
            file.truncate(size_bytes)
        device = _attach(backing)
        output_of([*maker, device])
        output_of(["mount", device, str(mountpoint)])
        yield mountpoint
    finally:
        remove(backing, mountpoint)


def remove(backing: Path, mountpoint: Path) -> None:
    """Unmount, detach and delete whatever there is of it; also what a killed run left."""
    for attempt in range(UNMOUNT_ATTEMPTS):
        if not os.path.ismount(mountpoint):
            break
        with suppress(BenchmarkError):
            output_of(["umount", str(mountpoint)])
            break
        time.sleep(attempt)
    if backing.exists():
        for device in _devices(backing):
            output_of(["losetup", "--detach", device])
        backing.unlink()
    if mountpoint.is_dir():
        mountpoint.rmdir()


def direct_io(backing: Path) -> bool:
    """Whether the loop device of `backing` goes past the page cache."""
    text = output_of(["losetup", "--noheadings", "--output", "DIO", "--associated", str(backing)])
    return text.strip() == "1"


def _attach(backing: Path) -> str:
    command = ["losetup", "--find", "--show"]
    try:
        return output_of([*command, "--direct-io=on", str(backing)]).strip()
    except BenchmarkError:
        # Not every file system can; losetup may have made the device nevertheless.
        for device in _devices(backing):
            output_of(["losetup", "--detach", device])
        return output_of([*command, str(backing)]).strip()


def _devices(backing: Path) -> list[str]:
    command = ["losetup", "--noheadings", "--output", "NAME", "--associated", str(backing)]
    return output_of(command).split()
