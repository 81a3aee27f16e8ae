"""Where bytes are on the medium is told only where equal places mean equal bytes."""

import os
from pathlib import Path
from random import Random

import pytest

from backy.system import files
from backy.system.files import PAGE, File
from backy.units import MiB

NOISE = Random(1).randbytes(MiB)
Place = tuple[int, int, int | None]


def stored(path: Path, content: bytes = NOISE) -> File:
    """A file whose content has reached the medium."""
    file = files.create(path)
    file.write(0, content)
    file.sync()
    return file


def by_page(file: File, start: int, length: int) -> dict[int, int | None]:
    """Where each page is; extents may be split in any way."""
    return {
        page: None if physical is None else physical + page - offset
        for offset, size, physical in file.physical_extents(start, length)
        for page in range(offset, offset + size, PAGE)
    }


@pytest.mark.parametrize("reflink_folder", ["xfs", "btrfs"], indirect=True)
def test_a_clone_is_where_its_origin_is_until_it_is_written_to(reflink_folder: Path) -> None:
    with stored(reflink_folder / "a") as origin, files.create(reflink_folder / "b") as clone:
        assert clone.clone_from(origin)
        before = by_page(origin, 0, MiB)
        assert len(before) == MiB // PAGE
        assert None not in before.values()
        assert len(set(before.values())) == len(before)
        assert by_page(clone, 0, MiB) == before
        clone.unshare_only_what_is_written()
        clone.write(5 * PAGE, NOISE[:PAGE])
        clone.sync()
        after = by_page(clone, 0, MiB)
        assert {page for page in before if after[page] != before[page]} == {5 * PAGE}
        assert by_page(origin, 0, MiB) == before


def test_only_the_range_that_was_asked_for_is_told(reflink_folder: Path) -> None:
    with stored(reflink_folder / "a") as file:
        everything = by_page(file, 0, MiB)
        part = by_page(file, 3 * PAGE, 2 * PAGE)
        assert part == {page: everything[page] for page in (3 * PAGE, 4 * PAGE)}


def test_holes_are_left_out(reflink_folder: Path) -> None:
    with files.create(reflink_folder / "a") as file:
        file.resize(MiB)
        file.write(8 * PAGE, NOISE[:PAGE])
        file.sync()
        assert set(by_page(file, 0, MiB)) == {8 * PAGE}


def test_more_extents_than_the_system_tells_at_once_are_all_told(reflink_folder: Path) -> None:
    with files.create(reflink_folder / "a") as file:
        file.resize(1000 * PAGE)
        for page in range(0, 1000, 2):
            file.write(page * PAGE, NOISE[:PAGE])
        file.sync()
        assert set(by_page(file, 0, 1000 * PAGE)) == {page * PAGE for page in range(0, 1000, 2)}


@pytest.mark.parametrize("reflink_folder", ["btrfs"], indirect=True)
def test_nobody_can_say_where_a_compressed_page_is(reflink_folder: Path) -> None:
    with stored(reflink_folder / "a", b"compressible " * 100_000) as file:
        assert None in by_page(file, 0, MiB).values()


def test_nobody_can_say_where_a_page_is_that_was_allocated_but_not_written(
    reflink_folder: Path,
) -> None:
    with files.create(reflink_folder / "a") as file:
        os.posix_fallocate(file.descriptor, 0, MiB)
        assert set(by_page(file, 0, MiB).values()) == {None}


def test_a_file_system_without_places_says_so() -> None:
    with files.create_unnamed(Path("/dev/shm")) as file:
        file.write(0, NOISE)
        with pytest.raises(OSError, match="not supported"):
            list(file.physical_extents(0, MiB))


def test_a_protected_file_can_be_opened_to_write_and_is_protected_again(tmp_path: Path) -> None:
    with stored(tmp_path / "a") as file:
        file.protect()
    with files.open_protected(tmp_path / "a") as file:
        file.write(PAGE, b"new")
    assert (tmp_path / "a").read_bytes()[PAGE : PAGE + 3] == b"new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o444


def test_it_is_protected_again_after_an_error(tmp_path: Path) -> None:
    with stored(tmp_path / "a") as file:
        file.protect()
    with pytest.raises(OSError, match="full"), files.open_protected(tmp_path / "a"):
        raise OSError(28, "full")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o444
