"""What the tests of the source "libvirt" have in common: sources, revisions, and what is read."""

from datetime import UTC, datetime
from pathlib import Path

from backy.image.image import Image
from backy.model.extent import Kind
from backy.model.revision import Consistency, Disk, Revision
from backy.sources import Request, Snapshot
from backy.sources.libvirt import LibvirtSource
from tests.lab.libvirt import MIB, Machine
from tests.snapshots import opened, pulled

IDS = [f"20261123T0049{number:02}Z-x7k2" for number in range(60)]
SERVER = "tested"


def source(machine: Machine, **settings: object) -> LibvirtSource:
    there = {"domain": machine.name, "uri": machine.libvirt.uri, "server": SERVER}
    folders = {"scratch": scratch(machine), "swtpm": str(machine.folder / "swtpm")}
    return LibvirtSource(**there | folders | {"freeze": False} | settings)


def scratch(machine: Machine) -> str:
    return str(machine.libvirt.folder / "scratch")


def revision(number: int, **sizes: int) -> Revision:
    """What was published of the disks."""
    disks = {
        name: Disk(size=size, block_size=MIB, index_hash="", read=0, changed=0, stored=0)
        for name, size in sizes.items()
    }
    return Revision(
        id=IDS[number], time=datetime.now(UTC), parent=None, seconds=0,
        consistency=Consistency.CRASH, disks=disks,
    )  # fmt: skip


def sizes(snapshot: Snapshot) -> dict[str, int]:
    return {name: image.size for name, image in snapshot.disks.items()}


def same(image: Image) -> int:
    """How many bytes it says are as in the parent."""
    return sum(each.length for each in image.extents() if each.kind is Kind.SAME)


def published(
    machine: Machine, number: int = 0, **settings: object
) -> tuple[Revision, dict[str, bytes]]:
    """A first revision, which was kept, and what it has."""
    with opened(source(machine, **settings), Request(IDS[number], None)) as snapshot:
        got = pulled(snapshot)
        snapshot.keep_checkpoint()
        return revision(number, **sizes(snapshot)), got


def checkpoint(number: int, server: str = SERVER) -> str:
    return f"backy-{IDS[number]}-{server}"


def leftovers(machine: Machine) -> list[Path]:
    return list(Path(scratch(machine)).glob(f"*{machine.uuid}*"))
