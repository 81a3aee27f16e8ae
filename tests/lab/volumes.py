"""Small real file systems of several kinds, and loop block devices."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import reflink

KINDS = ("ext4", "tmpfs", "xfs", "btrfs")
MIB = 1024**2


def missing(kind: str) -> str | None:
    """What this machine lacks for a file system of that kind, or a loop device; or None."""
    if kind in reflink.MKFS:
        return reflink.missing(kind)
    if os.geteuid() != 0:
        return "only root can mount a file system"
    if kind != "tmpfs" and not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    if kind == "ext4" and not shutil.which("mkfs.ext4"):
        return "mkfs.ext4 is not installed"
    return None


@contextmanager
def file_system(kind: str, size: int = 64 * MIB) -> Iterator[Path]:
    """A new file system of one of KINDS, mounted while the context lasts.

    `size` is in bytes and holds for ext4 and tmpfs; the other two have the size of the lab's.
    """
    if kind in reflink.MKFS:
        with reflink.reflink_file_system(kind) as folder:
            yield folder
        return
    base = Path(tempfile.mkdtemp(prefix=f"backy-{kind}-"))
    folder = base / "mounted"
    folder.mkdir()
    try:
        if kind == "ext4":
            (base / "device").touch()
            os.truncate(base / "device", size)
            subprocess.run(["mkfs.ext4", "-q", base / "device"], check=True)
            mount: list[str | Path] = ["mount", "-o", "loop", base / "device", folder]
        else:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        subprocess.run(mount, check=True)
        try:
            yield folder
        finally:
            reflink.unmount(folder)
    finally:
        shutil.rmtree(base)


@contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """A block device whose bytes are those of `file`, while the context lasts."""
    command: list[str | Path] = ["losetup", "--find", "--show", file]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
