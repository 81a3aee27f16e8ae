"""What files occupy, what is free, and what is in the page cache."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30
READ_BYTES = 1 * MIB
SUFFIXES = {"": 1, "K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Usage:
    """Allocated bytes and number of files below a folder; a hard-linked file counts once."""

    allocated_bytes: int
    files: int


def parse_size(text: str) -> int:
    """Bytes in a size such as 8GiB, 64M or 4096. Raises ValueError where it is none."""
    number = text.strip().rstrip("iBb").rstrip("KMGTkmgt")
    suffix = text.strip()[len(number) :].upper().removesuffix("B").removesuffix("I")
    if suffix not in SUFFIXES or not number.isdigit():
        raise ValueError(f"{text!r} is no size; write for instance 8GiB or 512MiB")
    return int(number) * SUFFIXES[suffix]


def show_size(size_bytes: int) -> str:
    """The size in the largest unit that divides it, for instance 8GiB."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", 1 << 10)):
        if size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"


def usage_of(path: Path) -> Usage:
    """What a file or folder occupies on its file system, as `du` counts it."""
    linked: set[int] = set()
    allocated_bytes = files = 0
    for entry in chain([path], _below(path)):
        status = entry.lstat()
        files += not stat.S_ISDIR(status.st_mode)
        if status.st_ino in linked:
            continue
        allocated_bytes += status.st_blocks * 512
        # Only these are remembered: what this process holds shows in the peaks of its children.
        if status.st_nlink > 1:
            linked.add(status.st_ino)
    return Usage(allocated_bytes, files)


def used_bytes(mountpoint: Path) -> int:
    """Bytes in use on a file system. The only honest size where files share extents."""
    status = os.statvfs(mountpoint)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def free_bytes(path: Path) -> int:
    """Bytes that may still be written to the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def file_system_of(path: Path) -> str:
    """Type of the file system that holds `path`, for instance ext4."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    kind = "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == number:
            kind = right.split()[0]
    return kind


def cache(path: Path) -> None:
    """Read a file, or every file of a folder, so that the page cache holds it."""
    buffer = bytearray(READ_BYTES)
    for file in _files(path):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def evict(path: Path) -> None:
    """Take a file, or every file of a folder, out of the page cache. It must have been synced."""
    for file in _files(path):
        with file.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (entry for entry in _below(path) if entry.is_file())
    else:
        yield path


def _below(path: Path) -> Iterator[Path]:
    # Path.rglob remembers every folder it has seen, 80 MiB for a whole system.
    for folder, folders, files in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in folders)
        yield from (Path(folder, name) for name in sorted(files))
