"""Pieces of a machine: small file systems, a user without rights."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.needs import absent, need, no_mounts
from tests.lab.reflink import unmount

MIB = 1024**2


@contextmanager
def ext4(folder: Path, size: int) -> Iterator[Path]:
    """A new file system of that size; its files cannot share extents."""
    need(no_mounts())
    device, mounted = folder / "ext4.device", folder / "ext4"
    device.touch()
    os.truncate(device, size)
    mounted.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", device], check=True)
    subprocess.run(["mount", "-o", "loop", device, mounted], check=True)
    try:
        shutil.rmtree(mounted / "lost+found")
        yield mounted
    finally:
        unmount(mounted)


def used(folder: Path) -> int:
    """Bytes that are taken on the file system of a folder."""
    os.sync()
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@contextmanager
def ballast(folder: Path, leave: int) -> Iterator[None]:
    """Take all space on the file system of `folder` but `leave` bytes, or a little less."""
    os.sync()
    path = folder / "ballast"
    status = os.statvfs(folder)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leave)
    try:
        yield
    finally:
        path.unlink()
        os.sync()


def without_rights() -> list[str]:
    """A command before a command, which then may not read what its files' modes forbid.

    Root may read everything, but only by a capability, which this gives away.
    """
    if os.geteuid() != 0:
        return []
    need(absent("setpriv"))
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", "--inh-caps=-all"]
