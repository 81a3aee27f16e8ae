"""Real file systems whose files can share extents, each on a loop device of its own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.needs import absent, no_mounts

MKFS = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1,crc=1"], "btrfs": ["mkfs.btrfs", "-q"]}
MOUNT_OPTIONS = {"xfs": "loop,discard", "btrfs": "loop,compress=zstd:1"}
GIB = 1024**3


def missing(kind: str) -> str | None:
    """What this machine lacks for a file system of that kind, or None."""
    return no_mounts() or absent(MKFS[kind][0])


@contextmanager
def reflink_file_system(kind: str, size: int = GIB) -> Iterator[Path]:
    """A new file system of `kind`, "xfs" or "btrfs", mounted while the context lasts.

    `size` is in bytes, at least 300 MiB for XFS; the space is taken only as it is written to.

    Raises CalledProcessError where the file system cannot be made or mounted; nothing is left then.
    """
    base = Path(tempfile.mkdtemp(prefix=f"backy-{kind}-"))
    try:
        device, folder = base / "device", base / "mounted"
        device.touch()
        os.truncate(device, size)
        folder.mkdir()
        subprocess.run([*MKFS[kind], device], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", MOUNT_OPTIONS[kind], device, folder], check=True)
        try:
            yield folder
        finally:
            unmount(folder)
    finally:
        shutil.rmtree(base)


def unmount(folder: Path) -> None:
    """Detach what is mounted on `folder`, now or as soon as its last file is closed.

    A test that failed may have left files open.  The loop device goes with the mount either way,
    since `mount` has set it to clear itself.
    """
    if subprocess.run(["umount", folder], check=False, capture_output=True).returncode:
        subprocess.run(["umount", "--lazy", folder], check=True)
