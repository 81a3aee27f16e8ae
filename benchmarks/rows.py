"""The rows of the table: how each is called, what it needs, and the function that runs it."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import (
    boot,
    delta,
    differential,
    frequency,
    growth,
    mount,
    nbd,
    ours,
    peers,
    reader,
    serve,
)
from benchmarks.space import show_size
from benchmarks.trial import Settings, Trial, on_floor

PACKAGES = {
    "restic": "restic",
    "borg": "borgbackup",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-nbd": "qemu-utils",
    "qemu-io": "qemu-utils",
    "nbdcopy": "libnbd-bin",
    "nbdkit": "nbdkit",
    "zstd": "zstd",
    "mkfs.xfs": "xfsprogs",
    "mkfs.ext4": "e2fsprogs",
    "losetup": "mount",
    "fusermount3": "fuse3",
    "qemu-system-x86_64": "qemu-system-x86",
    "syslinux": "syslinux",
    "mcopy": "mtools",
}
BOOT_PROGRAMS = ("qemu-system-x86_64", "qemu-img", "syslinux", "mcopy", "mkfs.ext4")
XFS_PROGRAMS = ("mkfs.xfs", "losetup")
TOLD_PROGRAMS = ("qemu-storage-daemon", "qemu-img")
TOLD = ("told-chunks", "told-images", "sparse-told-chunks", "sparse-told-images")
SPARSE = ("sparse-chunks", "sparse-images")
OWN_LIMITS = ("growth", "frequency")
SERVERS = ("mount", "nbd", "serve")
READER = ("together", "latency", "differential", "boot")
OURS = ("chunks", "images", *TOLD, *SPARSE, *OWN_LIMITS, *READER, "version", "fleet", *SERVERS)
PEERS = ("restic", "borg", "qemu-img", "zstd", "cp", "dd", "cp-xfs")
KEYS = (*OURS, *PEERS, "floor")
ARITHMETIC = ("blake3", "zstandard")
GROUPS = {"backy": OURS, "peers": PEERS, "all": KEYS}
NEEDED = {
    "chunks": ARITHMETIC,
    "floor": ARITHMETIC,
    "nbd": ("backy",),
    "growth": ("backy",),
    "frequency": ("backy",),
    "latency": (*ARITHMETIC, "pytest"),
    "boot": ("backy", "pytest"),
}
FLOOR_MODES = ("full", "unchanged", "changed", "verify")


@dataclass(frozen=True, slots=True)
class Row:
    """`key` is the word of --only, `name` the heading in the tables."""

    key: str
    name: str
    run: Callable[[Trial], None]
    programs: tuple[str, ...] = ()
    on_xfs: bool = False
    on_ext4: bool = False
    needs_root: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it runs backy."""
        return self.key in OURS


def all_rows(settings: Settings) -> list[Row]:
    """Every row there is, in the order of the tables."""
    chunk_rows = [
        Row("chunks", f"backy chunks {show_size(size)}", partial(ours.chunks, block_bytes=size))
        for size in settings.block_sizes_bytes
    ]
    return [
        *chunk_rows,
        Row("images", "backy images", ours.images, XFS_PROGRAMS, on_xfs=True),
        Row("told-chunks", "backy chunks told what changed", delta.chunks, TOLD_PROGRAMS),
        Row(
            "told-images",
            "backy images told what changed",
            delta.images,
            (*TOLD_PROGRAMS, *XFS_PROGRAMS),
            on_xfs=True,
        ),
        Row("restic", "restic", peers.restic, ("restic",)),
        Row("borg", "borg zstd,1 fixed 4 MiB", peers.borg, ("borg",)),
        Row("qemu-img", "qemu-img qcow2 zstd", peers.qemu_img, ("qemu-img",)),
        Row("zstd", f"zstd -1 -T{settings.cores}", peers.zstd, ("zstd",)),
        Row("cp", "cp --sparse=always", peers.cp),
        Row("dd", "dd oflag=direct conv=sparse", peers.dd),
        Row("cp-xfs", "cp --sparse=always on XFS", peers.cp_xfs, XFS_PROGRAMS, on_xfs=True),
        Row("sparse-chunks", "backy chunks, 1 TiB sparse", ours.sparse_chunks),
        Row(
            "sparse-images",
            "backy images, 1 TiB sparse",
            ours.sparse_images,
            XFS_PROGRAMS,
            on_xfs=True,
        ),
        Row(
            "sparse-told-chunks",
            "backy chunks 1 TiB told",
            delta.sparse_chunks,
            TOLD_PROGRAMS,
        ),
        Row(
            "sparse-told-images",
            "backy images 1 TiB told",
            delta.sparse_images,
            (*TOLD_PROGRAMS, *XFS_PROGRAMS),
            on_xfs=True,
        ),
        Row(
            "growth",
            "backy chunks, what a revision takes",
            growth.growth,
            ("mkfs.ext4", "losetup"),
            on_ext4=True,
        ),
        Row("frequency", "backy, long histories and many jobs", frequency.frequency),
        Row("together", "backy chunks, four restores", reader.together),
        Row(
            "latency",
            "backy chunks, 10 ms a read",
            reader.latency,
            ("mkfs.ext4", "losetup"),
            needs_root=True,
        ),
        Row("version", "backy --version", ours.version),
        Row("fleet", "backy check, 10,000 jobs", ours.fleet),
        Row("mount", "backy mount", mount.mount, ("fusermount3",)),
        Row("nbd", "backy NBD client", nbd.nbd, ("qemu-nbd", "nbdcopy")),
        Row(
            "differential",
            "backy restore of what differs",
            differential.differential,
            ("qemu-img", "qemu-nbd", "qemu-io"),
        ),
        Row(
            "serve",
            "backy NBD server",
            serve.serve,
            ("nbdcopy", "nbdkit", "zstd", *XFS_PROGRAMS),
            on_xfs=True,
        ),
        Row("boot", "backy boot", boot.boot, BOOT_PROGRAMS),
        Row("floor", f"arithmetic on {settings.cores} cores", floor),
    ]


def choose(rows: list[Row], words: list[str]) -> list[Row]:
    """The rows that the words of --only name. Raises ValueError for a word that names none."""
    keys: set[str] = set()
    for word in words:
        if word not in GROUPS and word not in KEYS:
            raise ValueError(f"{word!r} is no row; there are {', '.join((*GROUPS, *KEYS))}")
        keys.update(GROUPS.get(word, (word,)))
    return [row for row in rows if row.key in keys]


def missing(row: Row, settings: Settings) -> str | None:
    """Why a row cannot run here, with what to do about it; None where it can."""
    if row.is_ours and shutil.which(settings.backy) is None:
        return "backy is not installed: run `make install` or give --backy"
    if needed := NEEDED.get(row.key):
        absent = [name for name in needed if not importlib.util.find_spec(name)]
        if absent:
            return f"{' and '.join(absent)} missing: run with the Python of .venv"
    for program in row.programs:
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {PACKAGES[program]}"
    if (row.on_xfs or row.on_ext4 or row.needs_root) and os.geteuid() != 0:
        return "only root can mount its file system"
    return None


def floor(trial: Trial) -> None:
    """Hash and compress what the other rows store, and store nothing."""
    scratch = trial.folder / "frames"
    block_bytes = trial.settings.block_sizes_bytes[0]
    images: list[str | Path] = [
        "--image",
        trial.workload.image,
        "--changed",
        trial.workload.changed_image,
    ]
    for mode in FLOOR_MODES:
        on_floor(trial, mode, scratch, block_bytes, images)
    trial.drop(scratch)
