"""Pieces of a machine: small file systems, block devices, a user without rights."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.reflink import unmount

MIB = 1024**2


def need_loop_devices() -> None:
    """Skip the test where no file can be made a block device."""
    if os.geteuid() != 0:
        pytest.skip("only root can use loop devices and mount")
    if not Path("/dev/loop-control").exists():
        pytest.skip("there are no loop devices")


@contextmanager
def loop_device(file: Path, size: int | None = None) -> Iterator[Path]:
    """A block device that is this file, which is made first where it has a `size`."""
    need_loop_devices()
    if size is not None:
        file.touch()
        os.truncate(file, size)
    command = ["losetup", "--find", "--show", str(file)]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def ext4(folder: Path, size: int) -> Iterator[Path]:
    """A new file system of that size; its files cannot share extents."""
    need_loop_devices()
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
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", "--inh-caps=-all"]
