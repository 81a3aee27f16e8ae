"""Small real file systems of several kinds."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab import reflink
from tests.lab.needs import absent, need, no_mounts

KINDS = ("ext4", "tmpfs", "xfs", "btrfs")
MIB = 1024**2


def missing(kind: str) -> str | None:
    """What this machine lacks for a file system of that kind, or a loop device; or None."""
    if kind in reflink.MKFS:
        return reflink.missing(kind)
    return no_mounts() or (absent("mkfs.ext4") if kind == "ext4" else None)


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


class Mounts:
    """One file system of each kind, mounted when a test first asks for it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._mounted: dict[str, Path] = {}

    def __getitem__(self, kind: str) -> Path:
        """The whole file system, which others use, too; the test is skipped where it is missing."""
        if kind not in self._mounted:
            need(missing(kind))
            self._mounted[kind] = self._stack.enter_context(file_system(kind))
        return self._mounted[kind]

    @contextmanager
    def folder(self, kind: str) -> Iterator[Path]:
        """An empty folder on it, which goes with all that is in it at the end of the body."""
        path = Path(tempfile.mkdtemp(dir=self[kind]))
        try:
            yield path
        finally:
            shutil.rmtree(path)
