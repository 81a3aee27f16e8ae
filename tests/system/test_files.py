"""The door to files keeps its promises on every file system, and the real ones are asked."""

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backy.model.extent import Extent, Kind
from backy.system import files, folders
from backy.system.files import PAGE, Cache
from tests.lab import volumes
from tests.lab.volumes import MIB, Mounts

ALL = pytest.mark.parametrize("folder", volumes.KINDS, indirect=True)
CACHES = pytest.mark.parametrize("cache", list(Cache), ids=[each.value for each in Cache])


@pytest.fixture
def folder(request: pytest.FixtureRequest, mounts: Mounts) -> Iterator[Path]:
    with mounts.folder(request.param) as folder:
        yield folder


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes of which no two pages are alike."""
    pages = (f"{seed}:{number}|".encode().ljust(PAGE, b"x") for number in range(length // PAGE + 1))
    return b"".join(pages)[:length]


def filled(content: bytes) -> memoryview:
    """These bytes in a buffer that O_DIRECT takes."""
    buffer = files.buffer(len(content))
    buffer[:] = content
    return buffer


def extents_of(path: Path, size: int) -> list[tuple[int, int, Kind]]:
    with files.open_to_read(path) as file:
        return [(each.start, each.length, each.kind) for each in file.extents(size)]


def test_a_buffer_has_the_length_that_was_asked_for_and_can_be_written() -> None:
    buffer = files.buffer(PAGE + 5)
    assert len(buffer) == PAGE + 5
    buffer[:] = b"x" * (PAGE + 5)
    assert bytes(buffer) == b"x" * (PAGE + 5)


READS = [
    pytest.param(0, 3 * PAGE, id="whole-pages"),
    pytest.param(0, 10 * PAGE, id="past-the-end"),
    pytest.param(PAGE, 2 * PAGE + 5, id="unaligned-length"),
    pytest.param(7, PAGE, id="unaligned-offset"),
    pytest.param(4 * PAGE, PAGE, id="the-short-last-page"),
    pytest.param(9 * PAGE, PAGE, id="all-of-it-beyond-the-end"),
    pytest.param(0, 11, id="less-than-a-page"),
]


@ALL
@CACHES
@pytest.mark.parametrize(("offset", "length"), READS)
def test_a_read_gives_what_is_there_up_to_the_end_of_the_file(
    folder: Path, cache: Cache, offset: int, length: int
) -> None:
    content = pattern(4 * PAGE + 100)
    (folder / "file").write_bytes(content)
    with files.open_to_read(folder / "file", cache) as file:
        assert file.size() == len(content)
        buffer = files.buffer(length)
        done = file.read_into(offset, buffer)
        assert bytes(buffer[:done]) == content[offset : offset + length]
        assert file.read_bytes(offset, length) == content[offset : offset + length]


@ALL
@CACHES
def test_a_buffer_that_is_not_at_a_page_is_filled_too(folder: Path, cache: Cache) -> None:
    content = pattern(4 * PAGE)
    (folder / "file").write_bytes(content)
    buffer = memoryview(bytearray(4 * PAGE + 1))[1:]
    with files.open_to_read(folder / "file", cache) as file:
        assert file.read_into(0, buffer) == len(buffer)
    assert bytes(buffer) == content


@ALL
@CACHES
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        pytest.param(0, 2 * PAGE, id="whole-pages"),
        pytest.param(PAGE, PAGE + 17, id="unaligned-length"),
        pytest.param(3, PAGE, id="unaligned-offset"),
        pytest.param(6 * PAGE, 2 * PAGE, id="longer-than-the-file"),
        pytest.param(0, 0, id="nothing"),
    ],
)
def test_a_write_changes_its_range_and_nothing_else(
    folder: Path, cache: Cache, offset: int, length: int
) -> None:
    old, new = pattern(7 * PAGE), pattern(length, seed=2)
    (folder / "file").write_bytes(old)
    with files.open_to_write(folder / "file", cache) as file:
        file.write(offset, filled(new) if new else b"")
        file.sync()
    expected = old[:offset] + new + old[offset + length :]
    assert (folder / "file").read_bytes() == expected


@ALL
@CACHES
def test_bytes_that_are_not_at_a_page_are_written_too(folder: Path, cache: Cache) -> None:
    content = memoryview(b"x" + pattern(4 * PAGE))[1:]
    with files.create(folder / "file", cache) as file:
        file.write(0, content)
    assert (folder / "file").read_bytes() == bytes(content)


@ALL
def test_reads_see_what_was_written_past_the_cache_and_in_it(folder: Path) -> None:
    with files.create(folder / "file", Cache.SPARE) as file:
        file.write(0, filled(pattern(4 * PAGE)))
        file.write(PAGE + 1, b"in the cache")
        file.write(2 * PAGE, filled(pattern(PAGE, seed=2)))
        buffer = files.buffer(4 * PAGE)
        assert file.read_into(0, buffer) == 4 * PAGE
    expected = bytearray(pattern(4 * PAGE))
    expected[PAGE + 1 : PAGE + 13] = b"in the cache"
    expected[2 * PAGE : 3 * PAGE] = pattern(PAGE, seed=2)
    assert bytes(buffer) == expected


@ALL
def test_several_threads_read_and_write_one_file(folder: Path) -> None:
    with files.create(folder / "file", Cache.SPARE) as file:

        def work(number: int) -> None:
            for step in range(8):
                offset = (step * 4 + number) * PAGE
                file.write(offset, filled(pattern(PAGE, seed=offset)))
                buffer = files.buffer(PAGE)
                file.read_into(offset, buffer)
                assert bytes(buffer) == pattern(PAGE, seed=offset)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    expected = b"".join(pattern(PAGE, seed=number * PAGE) for number in range(32))
    assert (folder / "file").read_bytes() == expected


@ALL
def test_holes_are_zero_and_the_rest_is_data(folder: Path) -> None:
    with files.create(folder / "file") as file:
        file.resize(8 * MIB)
        file.write(2 * MIB, b"x" * MIB)
        file.write(6 * MIB, b"x" * MIB)
        file.sync()
    assert extents_of(folder / "file", 8 * MIB) == [
        (0, 2 * MIB, Kind.ZERO),
        (2 * MIB, MIB, Kind.DATA),
        (3 * MIB, 3 * MIB, Kind.ZERO),
        (6 * MIB, MIB, Kind.DATA),
        (7 * MIB, MIB, Kind.ZERO),
    ]


@ALL
@pytest.mark.parametrize(
    ("written", "size", "expected"),
    [
        pytest.param(0, 3 * MIB + 5, [Extent(0, 3 * MIB + 5, Kind.ZERO)], id="only-a-hole"),
        pytest.param(MIB, MIB, [Extent(0, MIB, Kind.DATA)], id="only-data"),
        pytest.param(2 * MIB, MIB + 7, [Extent(0, MIB + 7, Kind.DATA)], id="less-than-the-file"),
        pytest.param(MIB, 0, [], id="of-nothing"),
        pytest.param(
            MIB,
            2 * MIB,
            [Extent(0, MIB, Kind.DATA), Extent(MIB, MIB, Kind.ZERO)],
            id="more-than-the-file",
        ),
    ],
)
def test_extents_cover_exactly_the_size_that_was_asked_for(
    folder: Path, written: int, size: int, expected: list[Extent]
) -> None:
    with files.create(folder / "file") as file:
        file.write(0, b"x" * written)
        if not written:
            file.resize(size)
        file.sync()
        assert list(file.extents(size)) == expected


ZEROED = [
    pytest.param(0, 4 * MIB, id="all"),
    pytest.param(MIB, MIB, id="whole-blocks"),
    pytest.param(MIB + 1, 2 * MIB, id="unaligned"),
    pytest.param(3 * MIB - 7, MIB + 7, id="unaligned-up-to-the-end"),
    pytest.param(5, 6, id="six-bytes"),
]


@ALL
@CACHES
@pytest.mark.parametrize(("offset", "length"), ZEROED)
def test_a_zeroed_range_reads_as_zeroes_and_the_rest_as_before(
    folder: Path, cache: Cache, offset: int, length: int
) -> None:
    old = b"x" * (4 * MIB)
    (folder / "file").write_bytes(old)
    with files.open_to_write(folder / "file", cache) as file:
        file.zero(offset, length)
    assert (folder / "file").read_bytes() == old[:offset] + bytes(length) + old[offset + length :]


@ALL
def test_the_space_of_a_zeroed_range_is_given_back(folder: Path) -> None:
    (folder / "file").write_bytes(os.urandom(4 * MIB))
    with files.open_to_write(folder / "file") as file:
        file.sync()
        file.zero(0, 3 * MIB)
        file.sync()
        assert file.status().st_blocks * 512 <= MIB + 64 * 1024
        assert file.size() == 4 * MIB


@pytest.mark.parametrize("folder", ["xfs", "btrfs"], indirect=True)
def test_a_clone_has_the_bytes_and_its_changes_are_its_own(folder: Path) -> None:
    content = pattern(MIB + 5)
    (folder / "origin").write_bytes(content)
    with files.open_to_read(folder / "origin") as origin, files.create(folder / "clone") as clone:
        assert clone.clone_from(origin)
        assert clone.size() == len(content)
        clone.write(0, b"changed")
    assert (folder / "origin").read_bytes() == content
    assert (folder / "clone").read_bytes() == b"changed" + content[7:]


@pytest.mark.parametrize("folder", ["ext4", "tmpfs"], indirect=True)
def test_where_extents_cannot_be_shared_a_clone_says_so_and_changes_nothing(folder: Path) -> None:
    (folder / "origin").write_bytes(b"x")
    with files.open_to_read(folder / "origin") as origin, files.create(folder / "clone") as clone:
        assert not clone.clone_from(origin)
    assert (folder / "clone").read_bytes() == b""


def test_a_file_on_another_file_system_cannot_be_cloned(mounts: Mounts) -> None:
    with mounts.folder("xfs") as here, mounts.folder("btrfs") as there:
        (there / "origin").write_bytes(b"x")
        with files.open_to_read(there / "origin") as origin, files.create(here / "clone") as clone:
            assert not clone.clone_from(origin)


@ALL
@CACHES
def test_a_file_without_a_name_is_a_file_that_leaves_nothing(folder: Path, cache: Cache) -> None:
    with files.create_unnamed(folder, cache) as file:
        file.write(0, filled(pattern(2 * PAGE)))
        buffer = files.buffer(2 * PAGE)
        assert file.read_into(0, buffer) == 2 * PAGE
        assert bytes(buffer) == pattern(2 * PAGE)
        assert stat.S_IMODE(file.status().st_mode) == 0o600
        assert list(folder.iterdir()) == []
    assert list(folder.iterdir()) == []


@ALL
def test_everything_can_be_made_durable(folder: Path) -> None:
    with files.create(folder / "file") as file:
        file.write(0, b"x")
        file.start_writeback()
        file.sync()
        file.barrier()
    folders.sync_folder(folder)
    with files.open_to_read(folder / "file") as file:
        file.barrier()
        assert file.read_bytes(0, 9) == b"x"


@ALL
@CACHES
def test_an_open_that_fails_leaves_no_descriptor(folder: Path, cache: Cache) -> None:
    (folder / "file").write_bytes(b"x")
    with files.open_to_read(folder / "file", cache) as first:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(FileExistsError):
            files.create(folder / "file", cache)
        with pytest.raises(FileNotFoundError):
            files.open_to_read(folder / "none", cache)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        first.close()
        first.close()
        assert len(list(Path("/proc/self/fd").iterdir())) < before


def test_a_file_that_cannot_be_opened_for_o_direct_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 9)
    real = os.open

    def without_direct(
        name: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", without_direct)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="Too many open files"):
        files.open_to_read(path, files.Cache.SPARE)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with files.open_to_read(path) as file:
        assert file.read_bytes(0, 9) == b"x" * 9


def test_an_open_file_is_not_inherited(tmp_path: Path) -> None:
    with files.create(tmp_path / "file", Cache.SPARE) as file:
        assert not os.get_inheritable(file.descriptor)
        listed = subprocess.run(
            ["ls", "-l", "/proc/self/fd"],
            capture_output=True,
            text=True,
            check=True,
            close_fds=False,
        )
    assert str(tmp_path / "file") not in listed.stdout


def test_a_protected_file_can_be_written_by_nobody(tmp_path: Path) -> None:
    with files.create(tmp_path / "file") as file:
        file.protect()
        assert stat.S_IMODE(file.status().st_mode) & 0o222 == 0


def test_what_is_new_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    files.create(tmp_path / "file").close()
    folders.write_file(tmp_path / "record", b"x")
    folders.make_folder(tmp_path / "folder")
    for name in ("file", "record", "folder"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o077 == 0


def test_a_fifo_in_the_place_of_a_file_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        folders.read_file(tmp_path / "fifo", 100)


@pytest.mark.parametrize("mode", ["a", "r+"], ids=["appended-to", "written-to-before"])
def test_the_standard_output_continues_where_the_stream_is(tmp_path: Path, mode: str) -> None:
    """As in `backy restore vm1 - >> file`, and in `(echo header; backy restore vm1 -) > file`."""
    (tmp_path / "out").write_text("before ")
    program = "from backy.system import files; files.append_to_standard_output(b'image')"
    with (tmp_path / "out").open(mode) as out:
        out.seek(0, os.SEEK_END)
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before image"


def test_all_of_a_large_write_goes_through_a_pipe() -> None:
    program = "from backy.system import files; files.append_to_standard_output(bytes(3_000_000))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout == bytes(3_000_000)
