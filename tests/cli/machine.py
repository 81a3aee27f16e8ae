"""Pieces of a machine: small file systems, a user without rights."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tests.lab.needs import absent, need, no_mounts
from tests.lab.reflink import unmount

MIB = 1024**2


@contextmanager
def ext4(folder: Path, size: int, *options: str) -> Iterator[Path]:
    """A new file system of that size; its files cannot share extents. `options` are for mkfs."""
    need(no_mounts())
    device, mounted = folder / "ext4.device", folder / "ext4"
    device.touch()
    os.truncate(device, size)
    mounted.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", *options, device], check=True)
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


@contextmanager
def exhausted(folder: Path, what: str) -> Iterator[None]:
    """Take all "blocks" or "inodes" of a file system, so that it refuses a new folder."""
    crumbs = folder / "crumbs"
    crumbs.mkdir()
    with ballast(folder, MIB) if what == "blocks" else nullcontext():
        if what == "blocks":
            _take(lambda number: (crumbs / f"{number}.folder").mkdir())
        _take(lambda number: _durable(crumbs / str(number), bytes(4096 * (what == "blocks"))))
        yield
        shutil.rmtree(crumbs)


def _take(make: Callable[[int], object]) -> None:
    """Make what takes space until even a sync frees none."""
    number = failures = 0
    while failures < 3:
        number += 1
        try:
            make(number)
            failures = 0
        except OSError:
            failures += 1
            os.sync()


def _durable(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        if content:
            file.flush()
            os.fsync(file.fileno())


def without_rights() -> list[str]:
    """A command before a command, which then may not read what its files' modes forbid.

    Root may read everything, but only by a capability, which this gives away.
    """
    if os.geteuid() != 0:
        return []
    need(absent("setpriv"))
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", "--inh-caps=-all"]
