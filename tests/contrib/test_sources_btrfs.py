"""Images in a subvolume, on a real btrfs: whatever can change a file, its delta has."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from backy.model.revision import Consistency
from backy.sources import Request
from tests.contrib.test_sources import Chain, revision, say
from tests.snapshots import opened

KIB, MIB = 1024, 1024**2
SIZE = 8 * MIB

pytestmark = pytest.mark.parametrize("own_reflink_folder", ["btrfs"], indirect=True)


class Vm:
    """A subvolume with an image, and backups of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.subvolume = folder / "vm1"
        subprocess.run(["btrfs", "-q", "subvolume", "create", self.subvolume], check=True)
        self.image = self.subvolume / "vm1.img"
        self.image.write_bytes(Random(0).randbytes(SIZE))
        disks = {"vda": "vm1.img"}
        self.snapshots = folder / ".backy"
        self.settings = {"subvolume": str(self.subvolume), "disks": disks}
        self.chain = Chain("btrfs-image", **self.settings)

    def write(self, offset: int, content: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    def resize(self, *sizes: int) -> None:
        for size in sizes:
            os.truncate(self.image, size)

    def fallocate(self, *options: str, offset: int, length: int) -> None:
        place = [f"--offset={offset}", f"--length={length}"]
        subprocess.run(["fallocate", *options, *place, self.image], check=True)

    def clone(self, origin: Path, offset: int) -> None:
        """Share 64 KiB of another file, which is older than the parent."""
        command = f"reflink {origin} 0 {offset} {64 * KIB}"
        subprocess.run(["xfs_io", "-c", command, self.image], check=True, capture_output=True)


@pytest.fixture
def vm(own_reflink_folder: Path) -> Vm:
    return Vm(own_reflink_folder)


CHANGES: dict[str, Callable[[Vm], None]] = {
    "nothing": lambda vm: None,
    "a-write": lambda vm: vm.write(MIB + 5, b"changed"),
    "compressible-data": lambda vm: vm.write(MIB, bytes(1000) + b"x" * 300_000),
    "a-hole": lambda vm: vm.fallocate("--punch-hole", offset=2 * MIB, length=MIB),
    "a-hole-of-odd-size": lambda vm: vm.fallocate("--punch-hole", offset=MIB + 77, length=99_999),
    "a-hole-at-the-end": lambda vm: vm.fallocate("--punch-hole", offset=7 * MIB, length=MIB),
    "written-zeroes": lambda vm: vm.write(3 * MIB, bytes(MIB)),
    "preallocated-zeroes": lambda vm: vm.fallocate("--zero-range", offset=4 * MIB, length=MIB),
    "an-older-file-cloned-in": lambda vm: vm.clone(vm.subvolume / "older", 5 * MIB),
    "shorter-and-as-long-again": lambda vm: vm.resize(3 * MIB, SIZE),
}


READ = {"nothing": 0, "a-write": 4 * KIB, "shorter-and-as-long-again": 5 * MIB}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_delta_restores_to_what_the_snapshot_has(vm: Vm, change: str) -> None:
    (vm.subvolume / "older").write_bytes(Random(7).randbytes(64 * KIB))
    vm.fallocate("--punch-hole", offset=6 * MIB, length=100 * KIB)
    assert vm.chain.backup().contents == {"vda": vm.image.read_bytes()}
    CHANGES[change](vm)
    taken = vm.chain.backup()
    assert taken.contents == {"vda": vm.image.read_bytes()}
    assert taken.full_read_reasons == {}
    assert taken.consistency is Consistency.CRASH
    assert taken.data["vda"] <= READ.get(change, 2 * MIB)


def test_ten_deltas_under_random_changes(vm: Vm) -> None:
    noise = Random(1)
    vm.chain.backup()
    for _ in range(10):
        for _ in range(noise.randrange(1, 8)):
            offset, length = noise.randrange(SIZE - 300_000), noise.randrange(1, 300_000)
            match noise.randrange(4):
                case 0:
                    vm.fallocate("--punch-hole", offset=offset, length=length)
                case 1:
                    vm.fallocate("--zero-range", offset=offset, length=length)
                case 2:
                    vm.write(offset, b"z" * length)
                case _:
                    vm.write(offset, noise.randbytes(length))
        taken = vm.chain.backup()
        assert taken.contents == {"vda": vm.image.read_bytes()}
        assert taken.full_read_reasons == {}


def test_what_is_written_after_the_snapshot_is_not_in_it(vm: Vm) -> None:
    vm.chain.backup()
    before = vm.image.read_bytes()
    with opened(vm.chain.source, Request(revision(1, {}).id)) as snapshot:
        vm.write(0, b"later")
        content = bytearray(SIZE)
        snapshot.disks["vda"].readinto(0, memoryview(content))
    assert content == before


def test_only_the_newest_snapshot_stays_and_foreign_ones_too(vm: Vm) -> None:
    vm.chain.backup()
    foreign = vm.snapshots / "vm1-mine"
    subprocess.run(["btrfs", "-q", "subvolume", "snapshot", vm.subvolume, foreign], check=True)
    for _ in range(2):
        vm.chain.backup()
    vm.chain.backup(is_kept=False)
    vm.chain.take(None, revision(8, {}), is_kept=False)  # as `heal` does
    there = {path.name for path in vm.snapshots.iterdir()}
    assert there == {"vm1-mine", f"vm1-{revision(2, {}).id}"}


def test_a_file_in_the_place_of_the_image_is_read_in_full(vm: Vm) -> None:
    vm.chain.backup()
    vm.image.unlink()
    vm.image.write_bytes(Random(5).randbytes(SIZE))
    taken = vm.chain.backup()
    assert "is not the same file" in taken.full_read_reasons["vda"]
    assert taken.contents == {"vda": vm.image.read_bytes()}


def test_a_parent_whose_snapshot_is_gone_is_read_in_full(vm: Vm) -> None:
    vm.chain.backup()
    vm.chain.source.remove_all_except([])
    taken = vm.chain.backup()
    assert "the snapshot of the parent does not exist" in taken.full_read_reasons["vda"]
    assert taken.contents == {"vda": vm.image.read_bytes()}


def test_a_map_for_another_parent_is_refused(vm: Vm) -> None:
    vm.chain.backup()
    asked = {"revision": revision(0, {}).id, "parent": revision(7, {}).id, "disk": "vda"}
    ended = say("btrfs-image", "extents", settings=vm.settings, **asked)
    assert ended.returncode == 1
    assert ended.stdout == ""


def test_a_name_that_btrfs_would_write_in_another_way_is_refused(vm: Vm) -> None:
    vm.image.rename(vm.subvolume / "my vm.img")
    vm.image = vm.subvolume / "my vm.img"
    vm.chain = Chain("btrfs-image", subvolume=str(vm.subvolume), disks={"vda": "my vm.img"})
    vm.chain.backup()
    vm.write(0, b"changed")
    taken = vm.chain.backup()
    assert "may only have letters" in taken.full_read_reasons["vda"]
    assert taken.contents == {"vda": vm.image.read_bytes()}
