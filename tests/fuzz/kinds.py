"""What an enemy puts in the place of a file or folder of a repository."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

Maker = Callable[[Path, Path], object]  # what to make, and what the neighbour has in that place


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("inside")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


def node(path: Path, kind: int, major: int, minor: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a device node")
    os.mknod(path, kind | 0o600, os.makedev(major, minor))


def link(path: Path, there: Path) -> None:
    """To what the neighbour has there, or else to another thing of the neighbour's."""
    neighbour = next(each for each in there.parents if each.name == "neighbour")
    other = "restore.sh" if path.suffix else "revisions"
    path.symlink_to(there if there.exists() else neighbour / other)


KINDS: dict[str, Maker] = {
    "fifo": lambda path, there: os.mkfifo(path),
    "link": link,
    "folder": lambda path, there: folder(path),
    "file": lambda path, there: path.write_text("nothing that backy wrote"),
    "loop": lambda path, there: path.symlink_to(path),
    "dangling-link": lambda path, there: path.symlink_to(there.parent / "new"),
    "sparse": lambda path, there: sparse(path),
    "endless-device": lambda path, there: node(path, stat.S_IFCHR, 1, 5),  # /dev/zero
    "missing-device": lambda path, there: node(path, stat.S_IFBLK, 240, 9),  # nobody's
}


def disk(device: Path) -> Maker:
    """A node of a block device of somebody else's, whose reads and writes the kernel counts."""
    number = device.stat().st_rdev
    return lambda path, there: node(path, stat.S_IFBLK, os.major(number), os.minor(number))


def counted(device: Path) -> str:
    """How much was read from it and written to it."""
    return Path("/sys/block", device.name, "stat").read_text()
