"""A VM whose disks are images of a Ceph cluster, and the repository that it is backed up to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from backy.model.revision import Revision
from backy.operations.backup import backup
from backy.repository.create import create
from backy.repository.records import Settings
from backy.repository.repository import Repository
from backy.sources import Request, Snapshot, TakenSnapshot
from backy.sources.rbd import RbdSource
from backy.units import KiB, MiB
from tests.conformance.image import read
from tests.lab.ceph import Cluster

SIZE = 16 * MiB
OBJECTS = ("--object-size", "1M")
BLOCK = 64 * KiB
SERVER = "server1"
NEW = "20300101T000000Z-abcd"  # the revision in the making of Machine.snapshot
_numbers = count()


def unique(word: str) -> str:
    """A name that no other test of this session has."""
    return f"{word}{next(_numbers)}"


@dataclass
class Machine:
    """A VM with these images by disk; `settings` are those of its source beside them."""

    ceph: Cluster
    base: Path
    images: dict[str, str]
    store: str = "chunks"
    settings: dict[str, object] = field(default_factory=dict)
    repository: Repository = field(init=False)

    def __post_init__(self) -> None:
        self.repository = create(self.base, "vm1", Settings(self.store, BLOCK))

    def source(self, **settings: object) -> RbdSource:
        known = {"conf": str(self.ceph.conf), "server": SERVER, "timeout": 60}
        return RbdSource(**{"disks": self.images, **known, **self.settings, **settings})

    def backup(self) -> Revision:
        """Back it up, and hold every disk against what Ceph itself reads of its snapshot."""
        revision = self.run()
        for disk in self.images:
            assert self.stored(revision, disk) == self.ceph.export(self.point(disk)), disk
        return revision

    def run(self) -> Revision:
        """Back it up, and look at nothing."""
        return backup(self.repository, self.source())

    def stored(self, revision: Revision, disk: str) -> bytes:
        with self.repository.store.open(revision, disk) as image:
            return read(image, 0, image.size)

    def points(self, disk: str = "vda") -> list[str]:
        """The snapshots of a disk's image."""
        return self.ceph.snapshots(self.images[disk])

    def ours(self, disk: str = "vda") -> list[str]:
        """Those that this server's backups took."""
        return [name for name in self.points(disk) if name.startswith("backy-") and SERVER in name]

    def point(self, disk: str = "vda") -> str:
        """The only one of these, as Ceph's programs are told of it."""
        [name] = self.ours(disk)
        return f"{self.images[disk]}@{name}"

    def last(self) -> Revision:
        return self.repository.history().revisions[-1]

    @contextmanager
    def taken(self, *, is_frozen: bool = False, **settings: object) -> Iterator[TakenSnapshot]:
        """A snapshot that is taken and left as by a backup that fails."""
        history = self.repository.history().revisions
        request = Request(NEW, history[-1] if history else None, is_frozen)
        with self.source(**settings).snapshot(request) as taken:
            yield taken

    @contextmanager
    def snapshot(self, *, is_frozen: bool = False, **settings: object) -> Iterator[Snapshot]:
        """One that is also opened."""
        with self.taken(is_frozen=is_frozen, **settings) as taken, taken.open() as snapshot:
            yield snapshot

    def write(self, *commands: str, disk: str = "vda") -> None:
        self.ceph.write(self.images[disk], *commands)

    def resize(self, size: int, disk: str = "vda") -> None:
        words = ["--no-progress", "--allow-shrink", "--size", f"{size}B"]
        self.ceph.rbd("resize", *words, self.images[disk])


def commands(chance: Random, size: int) -> list[str]:
    """What a VM may do to a disk of `size` bytes, in the words of qemu-io."""
    return [_command(chance, size) for _ in range(chance.randint(1, 8))]


def _command(chance: Random, size: int) -> str:
    length = min(chance.choice([512, 4 * KiB, 64 * KiB, 300 * 512, MiB, 5 * MiB]), size)
    start = chance.randrange((size - length) // 512 + 1) * 512
    words = chance.choice([f"write -P {chance.randrange(1, 256)}"] * 3 + ["write -z -u", "discard"])
    return f"{words} {start} {length}"


def servers_of(ceph: Cluster, image: str) -> list[int]:
    """The processes that read a snapshot of an image, or wait for something of it.

    Other tests may have an image of that name at this time, in another cluster.
    """
    word, cluster = image.rpartition("/")[2].encode(), str(ceph.conf).encode()
    lines: dict[Path, bytes] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            lines[path] = path.read_bytes()
    return [
        int(path.parent.name) for path, line in lines.items() if word in line and cluster in line
    ]


def with_one_disk(ceph: Cluster, base: Path) -> Machine:
    """A VM whose disk has data in 64 KiB."""
    image = ceph.create(f"rbd/{unique('vm')}", SIZE, *OBJECTS)
    ceph.write(image, "write -P 1 3M 64k")
    return Machine(ceph, base, {"vda": image})


def with_two_disks(ceph: Cluster, base: Path) -> Machine:
    """A VM whose disks have the same size, and data in the same places."""
    images = [ceph.create(f"rbd/{unique('vm')}", SIZE, *OBJECTS) for _ in range(2)]
    for number, image in enumerate(images, 1):
        ceph.write(image, f"write -P {number} 0 1M", f"write -P {number} 8M 64k")
    return Machine(ceph, base, dict(zip(("vda", "vdb"), images, strict=True)))
