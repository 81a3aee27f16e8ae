"""How the chunks of a disk lie on the medium, in the order in which a restore reads them.

    .venv/bin/python benchmarks/layout.py [--backy PROGRAM] [--chunks N] [--deltas N]

On a sparse 100 GiB loop device with ext4, XFS and btrfs it makes a first backup and then deltas
that change 1 % of the blocks each, and looks where the chunks of the newest revision are (FIEMAP).
A jump is where the next chunk begins more than 16 MiB from the end of the one before. Seconds are
an estimate for a hard disk of 7,200 rpm that reads 180 MB/s: half a turn for each chunk that does
not follow at once, and for a seek 2 ms, and 14 ms more times the root of its share of the disk.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

MIB, GIB = 1 << 20, 1 << 30
DEVICE_BYTES = 100 * GIB
JUMP_BYTES = 16 * MIB
RATE_BYTES = 180_000_000  # a second
HALF_TURN_SECONDS = 60 / 7200 / 2
FIEMAP, SYNC = 0xC020660B, 1  # linux/fs.h, linux/fiemap.h
MAKERS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where chunks lie: jumps and bytes between neighbours, for 1,000 chunks; seconds for all."""

    chunks: int
    jumps: float
    distance_bytes: float
    seconds: float
    in_order_seconds: float


def main() -> int:
    """Print a row for each file system and each moment."""
    parser = argparse.ArgumentParser(description=__doc__)
    beside = Path(__file__).resolve().parent.parent / ".venv/bin/backy"
    parser.add_argument("--backy", type=Path, default=beside)
    parser.add_argument("--chunks", type=int, default=1200, help="of the disk, 1 MiB each")
    parser.add_argument("--deltas", type=int, default=50)
    parser.add_argument("--only", choices=MAKERS, action="append")
    options = parser.parse_args()
    print(
        "| file system | after | chunks | jumps a 1,000 | distance a chunk | seconds | in order |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.only or MAKERS:
        with tempfile.TemporaryDirectory() as folder, mounted(Path(folder), name) as mountpoint:
            for moment, layout in measured(mountpoint, Path(folder), options):
                print(row(name, moment, layout), flush=True)
    return 0


@contextmanager
def mounted(folder: Path, name: str) -> Iterator[Path]:
    """A fresh file system of 100 GiB, which takes only what is written to it."""
    device, mountpoint = folder / "device", folder / "mounted"
    mountpoint.mkdir()
    with device.open("wb") as file:
        file.truncate(DEVICE_BYTES)
    subprocess.run([*MAKERS[name], device], check=True)
    subprocess.run(["mount", "-o", "loop", device, mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", mountpoint], check=True)


def measured(
    mountpoint: Path, folder: Path, options: argparse.Namespace
) -> Iterator[tuple[str, Layout]]:
    """The layout after the first backup, and after the deltas."""
    image, draw = folder / "disk.img", random.Random(1)
    with image.open("wb") as file:
        for _ in range(options.chunks):
            file.write(block(draw))
    base = mountpoint / "base"
    command = [options.backy, "--base-dir", base, "backup", "vm1", "--source", image]
    run([*command, "--store", "chunks"])
    yield "first backup", layout(base / "vm1")
    for _ in range(options.deltas):
        with image.open("r+b") as file:
            for number in draw.sample(range(options.chunks), max(1, options.chunks // 100)):
                file.seek(number * MIB)
                file.write(block(draw))
        run(command)
    yield f"{options.deltas} deltas", layout(base / "vm1")


def block(draw: random.Random) -> bytes:
    """A block that compresses to about half of it, as disks do."""
    return draw.randbytes(MIB // 2) + bytes(range(256)) * (MIB // 512)


def run(command: Sequence[str | Path]) -> None:
    """Run it quietly. Raises CalledProcessError if it fails."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def layout(repository: Path) -> Layout:
    """How the chunks of the newest revision lie."""
    os.sync()
    revision = max(path for path in (repository / "revisions").iterdir())
    names = (revision / "vda.blocks").read_text().split()
    pages = (repository / "pages" / each[:2] / each for each in names)
    digests = [digest for page in pages for digest in page.read_text().split()]
    chunks = [repository / "chunks" / each[:2] / f"{each}.zst" for each in digests]
    places = [(place(path), path.stat().st_size) for path in chunks]
    distances = [abs(after - (start + size)) for (start, size), (after, _) in pairwise(places)]
    gaps = [distance for distance in distances if distance > 64 << 10]
    reading = sum(size for _, size in places) / RATE_BYTES
    seeking = sum(HALF_TURN_SECONDS + seek_seconds(gap) for gap in gaps)
    jumps = sum(distance > JUMP_BYTES for distance in distances)
    many = len(distances)
    return Layout(
        len(chunks), 1000 * jumps / many, sum(distances) / many, reading + seeking, reading
    )


def seek_seconds(distance_bytes: int) -> float:
    """What a head takes: a short move costs 2 ms, one over the whole disk 16 ms."""
    return 0.002 + 0.014 * math.sqrt(distance_bytes / DEVICE_BYTES)


def place(path: Path) -> int:
    """Where the first byte of a file is on the medium."""
    with path.open("rb") as file:
        request = bytearray(struct.pack("=QQIIII", 0, 1 << 62, SYNC, 0, 1, 0) + bytes(56))
        fcntl.ioctl(file, FIEMAP, request)
    return int(struct.unpack_from("=Q", request, 32 + 8)[0])


def row(name: str, moment: str, found: Layout) -> str:
    """A line of the table."""
    cells = (
        name, moment, str(found.chunks), f"{found.jumps:.0f}",
        f"{found.distance_bytes / MIB:,.1f} MiB", f"{found.seconds:.1f}",
        f"{found.in_order_seconds:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
