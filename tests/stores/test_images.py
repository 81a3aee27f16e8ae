"""An image is a plain, sparse, read-only file that shares with its parent what did not change."""

import fcntl
import os
import struct
from pathlib import Path
from random import Random

import pytest

from backy.errors import DamagedError, StoreError
from backy.model.revision import Revision
from backy.stores.images import ImageStore
from backy.units import KiB, MiB
from tests.conformance.shelf import Shelf
from tests.memory_source import BytesImage, changed, sample

BLOCK = MiB
PAGE = 4096
SHORT = 12_345
FIEMAP = 0xC020660B  # FS_IOC_FIEMAP, linux/fs.h
SHARED = 0x2000  # FIEMAP_EXTENT_SHARED, linux/fiemap.h


@pytest.fixture
def shelf(reflink_folder: Path) -> Shelf:
    """On each kind of file system."""
    return Shelf.new(reflink_folder / "store", ImageStore, BLOCK)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shelf" in metafunc.fixturenames:
        metafunc.parametrize("reflink_folder", ["xfs", "btrfs"], indirect=True)


def image(shelf: Shelf, revision: Revision) -> Path:
    return shelf.store.plain_path(revision, "vda").path


def own_bytes(path: Path) -> int:
    """What a file shares with no other, by FIEMAP (Linux Documentation/filesystems/fiemap.rst)."""
    total = start = 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while True:
            answer = bytearray(struct.pack("=QQLLLL", start, 2**62, 1, 0, 64, 0) + bytes(56 * 64))
            fcntl.ioctl(file.fileno(), FIEMAP, answer)
            count = struct.unpack_from("=QQLLLL", answer)[3]
            for number in range(count):
                at = 32 + 56 * number
                logical, _, length, _, _, flags = struct.unpack_from("=QQQQQL", answer, at)
                total += 0 if flags & SHARED else length
                start = logical + length
            if not count:
                return total


def used(folder: Path) -> int:
    """The bytes that are taken on a file system, once everything has been written to it."""
    os.sync()
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_the_image_is_the_plain_disk_and_cannot_be_written_to(shelf: Shelf) -> None:
    content = sample(2 * BLOCK + SHORT)
    path = image(shelf, shelf.publish(content))
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o7777 == 0o444


def test_zeroes_are_holes(shelf: Shelf) -> None:
    content = bytes(8 * BLOCK) + sample(PAGE) + bytes(8 * BLOCK)
    path = image(shelf, shelf.publish(content))
    assert path.stat().st_size == len(content)
    assert path.stat().st_blocks * 512 <= 2 * PAGE


def test_a_disk_of_zeroes_of_any_size_takes_no_space(shelf: Shelf) -> None:
    size = 20_000 * BLOCK
    with shelf.draft(size) as draft:
        draft.zero(0, size)
    [path] = (shelf.root / "revisions").glob(".*/vda.img")
    assert (path.stat().st_size, path.stat().st_blocks) == (size, 0)


def test_what_is_the_same_is_shared_whole(shelf: Shelf) -> None:
    content = sample(4 * BLOCK + SHORT)
    parent = shelf.publish(content)
    for source in (content, BytesImage(content, parent=content)):
        revision = shelf.publish(source, parent)
        assert own_bytes(image(shelf, revision)) == 0
        assert shelf.read(revision) == content


def test_only_the_pages_that_differ_are_written(shelf: Shelf) -> None:
    content = Random(1).randbytes(8 * BLOCK + SHORT)
    parent = shelf.publish(content)
    pages = sorted(Random(2).sample(range(8 * BLOCK // PAGE), 40))
    new = changed(content, *(page * PAGE + 100 for page in pages), length=1)
    revision = shelf.publish(new, parent)
    assert revision.disks["vda"].stored == 40 * PAGE
    assert own_bytes(image(shelf, revision)) == 40 * PAGE
    assert image(shelf, revision).read_bytes() == new


def test_a_change_in_the_short_last_page_costs_that_page(shelf: Shelf) -> None:
    content = Random(1).randbytes(2 * BLOCK + SHORT)
    parent = shelf.publish(content)
    revision = shelf.publish(changed(content, len(content) - 1), parent)
    assert revision.disks["vda"].stored == SHORT % PAGE
    assert own_bytes(image(shelf, revision)) == PAGE


def test_pages_that_became_zero_are_punched(shelf: Shelf) -> None:
    content = Random(1).randbytes(3 * BLOCK)
    parent = shelf.publish(content)
    new = content[:BLOCK] + bytes(BLOCK) + content[2 * BLOCK : -10 * PAGE] + bytes(10 * PAGE)
    revision = shelf.publish(new, parent)
    path = image(shelf, revision)
    assert path.read_bytes() == new
    assert path.stat().st_blocks * 512 == 2 * BLOCK - 10 * PAGE
    assert (revision.disks["vda"].stored, own_bytes(path)) == (0, 0)


def test_the_file_system_grows_by_hardly_more_than_what_changed(own_reflink_folder: Path) -> None:
    """64 scattered writes of 64 KiB and a run of 4 MiB: what the benchmark has for each GiB."""
    shelf = Shelf.new(own_reflink_folder / "store", ImageStore, BLOCK)
    content = Random(1).randbytes(48 * MiB)
    parent = shelf.publish(content)
    places = Random(2).sample(range(40 * MiB // PAGE // 32), 64)
    new = changed(content, *(place * 32 * PAGE for place in places), length=64 * KiB)
    new = new[: 44 * MiB] + Random(3).randbytes(4 * MiB)
    before = used(own_reflink_folder)
    shelf.publish(new, parent)
    assert used(own_reflink_folder) - before <= 1.1 * (64 * 64 * KiB + 4 * MiB)


def test_removing_the_parent_does_not_change_its_child(shelf: Shelf) -> None:
    content = sample(4 * BLOCK + SHORT)
    parent = shelf.publish(content)
    revision = shelf.publish(changed(content, 5), parent)
    image(shelf, parent).unlink()
    assert shelf.read(revision) == changed(content, 5)


def test_a_missing_image_is_damage(shelf: Shelf) -> None:
    revision = shelf.publish(sample(BLOCK))
    image(shelf, revision).unlink()
    with pytest.raises(DamagedError, match=r"vda\.img is missing"):
        shelf.read(revision)


def test_an_image_that_was_cut_short_is_damaged_and_names_the_block(shelf: Shelf) -> None:
    content = sample(3 * BLOCK)
    revision = shelf.publish(content)
    os.truncate(image(shelf, revision), 2 * BLOCK + 5)
    with pytest.raises(DamagedError, match=r"vda\.img"):
        shelf.read(revision)


def test_a_repository_moved_to_a_file_system_without_reflinks_says_so(tmp_path: Path) -> None:
    shelf = Shelf.new(tmp_path / "store", ImageStore, BLOCK)
    content = sample(2 * BLOCK)
    revision = shelf.publish(content)
    assert shelf.read(revision) == content
    with pytest.raises(StoreError, match="does not share extents"):
        shelf.publish(content, revision)
