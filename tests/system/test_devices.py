"""Block devices are files without holes and with another way to ask for their size.

And the page cache: what promises to leave it alone leaves it alone.
"""

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backy.model.extent import Extent, Kind
from backy.system import files
from backy.system.files import PAGE, Cache
from tests.lab.devices import loop_device
from tests.lab.volumes import MIB, Mounts

SIZE = 4 * MIB
PAST_THE_CACHE = pytest.mark.parametrize(
    "cache", [Cache.SPARE, Cache.AVOID], ids=["spare", "avoid"]
)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device of SIZE bytes, all of them x."""
    (tmp_path / "backing").write_bytes(b"x" * SIZE)
    with loop_device(tmp_path / "backing") as device:
        yield device


def bytes_of(device: Path) -> bytes:
    """All of a device, with the eyes of another program."""
    return subprocess.run(["cat", device], capture_output=True, check=True).stdout


def test_a_device_has_the_size_of_its_medium(device: Path) -> None:
    with files.open_to_read(device, Cache.SPARE) as file:
        assert file.is_device
        assert file.status().st_size == 0
        assert file.size() == SIZE


def test_a_device_is_all_data(device: Path) -> None:
    with files.open_to_read(device) as file:
        assert list(file.extents(SIZE)) == [Extent(0, SIZE, Kind.DATA)]


@pytest.mark.parametrize("cache", list(Cache), ids=[each.value for each in Cache])
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        pytest.param(0, MIB, id="whole-pages"),
        pytest.param(MIB, PAGE + 512, id="whole-sectors"),
        pytest.param(MIB - 1, 7, id="over-the-border-of-a-page"),
        pytest.param(SIZE - 700, 700, id="unaligned-up-to-the-end"),
    ],
)
def test_what_is_written_to_a_device_is_there(
    device: Path, cache: Cache, offset: int, length: int
) -> None:
    data = files.buffer(length)
    data[:] = b"y" * length
    with files.open_to_write(device, cache) as file:
        file.write(offset, data)
        file.sync()
        back = files.buffer(length)
        assert file.read_into(offset, back) == length
        assert back == data
    assert bytes_of(device) == b"x" * offset + b"y" * length + b"x" * (SIZE - offset - length)


def test_a_read_beyond_the_end_of_a_device_is_short(device: Path) -> None:
    with files.open_to_read(device, Cache.SPARE) as file:
        assert file.read_into(SIZE - PAGE, files.buffer(2 * PAGE)) == PAGE
        assert file.read_into(SIZE, files.buffer(PAGE)) == 0


def test_a_write_beyond_the_end_of_a_device_fails(device: Path) -> None:
    with (
        files.open_to_write(device, Cache.SPARE) as file,
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
    ):
        file.write(SIZE, files.buffer(PAGE))


@pytest.mark.parametrize("cache", list(Cache), ids=[each.value for each in Cache])
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        pytest.param(0, SIZE, id="all"),
        pytest.param(MIB, 2 * MIB, id="whole-pages"),
        pytest.param(512, 1024, id="whole-sectors"),
        pytest.param(MIB, MIB + 13, id="unaligned-tail"),
        pytest.param(MIB + 13, MIB, id="unaligned-head"),
        pytest.param(SIZE - 13, 13, id="unaligned-up-to-the-end"),
    ],
)
def test_a_range_of_a_device_is_zeroed_and_the_rest_stays(
    device: Path, cache: Cache, offset: int, length: int
) -> None:
    with files.open_to_write(device, cache) as file:
        file.zero(offset, length)
        file.sync()
    assert bytes_of(device) == b"x" * offset + bytes(length) + b"x" * (SIZE - offset - length)


def test_a_device_gives_the_space_of_zeroes_back(device: Path, tmp_path: Path) -> None:
    with files.open_to_write(device) as file:
        file.zero(0, 3 * MIB)
        file.sync()
    os.sync()
    assert (tmp_path / "backing").stat().st_blocks * 512 <= MIB + 64 * 1024


def test_a_device_that_is_mounted_is_not_written_to(device: Path, tmp_path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    (tmp_path / "mounted").mkdir()
    subprocess.run(["mount", device, tmp_path / "mounted"], check=True)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            files.open_to_write(device, Cache.SPARE)
        with files.open_to_read(device, Cache.SPARE) as file:
            assert file.size() == SIZE
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)


def test_a_device_that_is_open_for_writing_is_not_opened_a_second_time(device: Path) -> None:
    with (
        files.open_to_write(device),
        pytest.raises(OSError, match=os.strerror(errno.EBUSY)),
    ):
        files.open_to_write(device)


def test_a_device_cannot_be_cloned(device: Path, tmp_path: Path) -> None:
    with files.open_to_read(device) as origin, files.create(tmp_path / "clone") as clone:
        assert not clone.clone_from(origin)


# The page cache, on ext4, which has O_DIRECT.


@pytest.fixture
def folder(mounts: Mounts) -> Iterator[Path]:
    with mounts.folder("ext4") as folder:
        yield folder


def cached_pages(path: Path) -> int:
    """How many pages of a file the page cache holds, without reading any: mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped,
    ):
        present = (ctypes.c_ubyte * -(-len(mapped) // PAGE))()
        first = ctypes.c_ubyte.from_buffer(mapped)
        try:
            where = ctypes.c_void_p(ctypes.addressof(first))
            assert libc.mincore(where, ctypes.c_size_t(len(mapped)), present) == 0
        finally:
            del first
        return sum(each & 1 for each in present)


def cold_file(path: Path, length: int) -> None:
    """Make a file of which nothing is in the page cache."""
    with path.open("wb", buffering=0) as file:
        file.write(b"x" * length)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached_pages(path) == 0


@PAST_THE_CACHE
def test_whole_pages_are_read_past_the_cache(folder: Path, cache: Cache) -> None:
    cold_file(folder / "file", 64 * PAGE)
    with files.open_to_read(folder / "file", cache) as file:
        assert file.read_into(0, files.buffer(64 * PAGE)) == 64 * PAGE
    assert cached_pages(folder / "file") == 0


@PAST_THE_CACHE
def test_of_a_file_whose_length_is_no_multiple_of_a_page_no_more_than_the_end_is_cached(
    folder: Path, cache: Cache
) -> None:
    cold_file(folder / "file", 63 * PAGE + 100)
    with files.open_to_read(folder / "file", cache) as file:
        assert file.read_into(0, files.buffer(63 * PAGE + 100)) == 63 * PAGE + 100
    assert cached_pages(folder / "file") <= 1


@PAST_THE_CACHE
def test_whole_pages_are_written_past_the_cache(folder: Path, cache: Cache) -> None:
    with files.create(folder / "file", cache) as file:
        file.write(0, files.buffer(64 * PAGE))
    assert cached_pages(folder / "file") == 0


def test_to_use_the_cache_fills_it(folder: Path) -> None:
    cold_file(folder / "file", 64 * PAGE)
    with files.open_to_read(folder / "file", Cache.USE) as file:
        file.read_into(0, files.buffer(64 * PAGE))
    assert cached_pages(folder / "file") == 64


@pytest.mark.parametrize(
    ("cache", "seen"), [(Cache.SPARE, b"x"), (Cache.AVOID, b"y")], ids=["spare", "avoid"]
)
@pytest.mark.parametrize(
    "length", [pytest.param(8 * PAGE, id="whole"), pytest.param(8 * PAGE - 100, id="with-a-tail")]
)
def test_a_medium_that_rotted_under_the_cache_is_seen_by_avoid_only(
    device: Path, tmp_path: Path, cache: Cache, seen: bytes, length: int
) -> None:
    """The cache of the device holds what its backing file no longer does."""
    buffer = files.buffer(length)
    # The cache lasts as long as somebody has the device open.
    with files.open_to_read(device, Cache.USE) as cached:
        assert cached.read_bytes(0, SIZE) == b"x" * SIZE
        with (tmp_path / "backing").open("r+b", buffering=0) as backing:
            backing.write(b"y" * SIZE)
            os.fsync(backing.fileno())
        assert cached.read_bytes(0, SIZE) == b"x" * SIZE
        with files.open_to_read(device, cache) as file:
            assert file.read_into(0, buffer) == length
    assert bytes(buffer) == seen * length
