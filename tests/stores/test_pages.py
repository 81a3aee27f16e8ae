"""A page is kept twice, and each copy makes up for the other, whatever can be written."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backy.errors import DamagedError, StoreError
from backy.operations.verify import verify
from backy.stores.pages import NamedFiles, Pages
from backy.stores.zstd import ZstdCodec
from backy.system import files
from backy.system.place import Place
from tests.lab.handmade import digest_of
from tests.lab.paged import copies, place, stored, text_of
from tests.lab.repositories import BLOCK, Made

PAGE = text_of([digest_of(bytes([number])) for number in range(5)])
NAME = digest_of(PAGE)


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    return Pages(Place.at(tmp_path), ZstdCodec(1))


def inodes(root: Path) -> dict[str, int]:
    return {path: (root / path).stat().st_ino for path, _ in stored(root)}


def test_a_page_is_written_once_whoever_puts_it(pages: Pages, tmp_path: Path) -> None:
    assert pages.put(PAGE) == (NAME, 2 * len(PAGE))
    before = inodes(tmp_path)
    assert pages.put(PAGE) == (NAME, 0)
    assert pages.put_copy(pages.twins, NAME, PAGE) == 0
    assert inodes(tmp_path) == before
    assert [path.read_bytes() for path in copies(tmp_path, NAME)] == [PAGE, PAGE]


def test_a_torn_copy_is_replaced_by_a_new_file_and_the_good_one_is_left(
    pages: Pages, tmp_path: Path
) -> None:
    """Who has the torn one open keeps it: a published revision may be read meanwhile."""
    pages.put(PAGE)
    page, twin = copies(tmp_path, NAME)
    page.write_bytes(PAGE[:100] + bytes(len(PAGE) - 100))
    before = inodes(tmp_path)
    assert pages.put(PAGE) == (NAME, len(PAGE))
    after = inodes(tmp_path)
    assert {path for path in after if after[path] != before[path]} == {
        str(page.relative_to(tmp_path))
    }
    assert page.read_bytes() == twin.read_bytes() == PAGE


def test_threads_that_put_the_same_page_all_succeed(pages: Pages, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = {name for name, _ in pool.map(pages.put, [PAGE] * 64)}
    assert names == {NAME}
    assert {path for path, _ in stored(tmp_path)} == {
        str(path.relative_to(tmp_path)) for path in copies(tmp_path, NAME)
    }


def test_a_plain_read_does_not_look_at_the_twin_and_a_check_does(
    pages: Pages, tmp_path: Path
) -> None:
    pages.put(PAGE)
    twin = copies(tmp_path, NAME)[1]
    twin.unlink()
    assert pages.get(NAME, 5) == PAGE
    assert not twin.exists()
    assert pages.get(NAME, 5, is_checked=True) == PAGE
    assert twin.read_bytes() == PAGE


@pytest.mark.parametrize("count", [0, 1, 4, 6, 252])
def test_a_page_with_another_number_of_lines_is_refused_and_left(
    pages: Pages, tmp_path: Path, count: int
) -> None:
    pages.put(PAGE)
    with pytest.raises(DamagedError, match=NAME):
        pages.get(NAME, count)
    assert [path.read_bytes() for path in copies(tmp_path, NAME)] == [PAGE, PAGE]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_where_nothing_can_be_written_the_good_copy_is_read_and_the_bad_one_noted(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    pages.put(PAGE)
    page, _ = copies(tmp_path, NAME)
    page.write_bytes(b"")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "create", refuse)
    assert pages.get(NAME, 5) == PAGE
    [note] = pages.take_notes()
    assert note == f"{page} is damaged, and cannot be replaced: {os.strerror(number)}"
    assert pages.take_notes() == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.ESTALE])
def test_an_error_of_this_machine_is_no_damage_and_nothing_is_written(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    pages.put(PAGE)
    before = inodes(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "open_to_read", refuse)
    reads: list[Callable[[], object]] = [
        lambda: pages.get(NAME, 5),
        lambda: pages.get(NAME, 5, is_checked=True),
        lambda: pages.put(PAGE),
    ]
    for read in reads:
        with pytest.raises(StoreError) as caught:
            read()
        assert not caught.value.is_damage
    assert inodes(tmp_path) == before
    assert pages.take_notes() == []


@pytest.mark.parametrize("which", ["index", "twin"])
@pytest.mark.parametrize(
    "bad",
    [None, b"", b"f" * 64, (b"f" * 64 + b"\n") * 2, bytes(65), b"f" * 64 + b"\n"],
    ids=["missing", "empty", "cut-short", "too-long", "torn", "another"],
)
def test_an_index_and_its_twin_make_up_for_each_other_when_they_are_verified(
    tmp_path: Path, which: str, bad: bytes | None
) -> None:
    made = Made(tmp_path)
    revision = made.backup(bytes(5 * BLOCK))
    index = made.folder(revision) / "vda.blocks"
    twin = place(made.root, "twins", revision.disks["vda"].index_hash)
    good = index.read_bytes()
    damaged = index if which == "index" else twin
    damaged.unlink()
    if bad is not None:
        damaged.write_bytes(bad)
    assert list(verify(made.repository, [revision], origins=[])) == []
    assert index.read_bytes() == twin.read_bytes() == good


def test_an_index_and_its_twin_that_are_both_bad_are_left_as_they_are(tmp_path: Path) -> None:
    made = Made(tmp_path)
    revision = made.backup(bytes(5 * BLOCK))
    index = made.folder(revision) / "vda.blocks"
    twin = place(made.root, "twins", revision.disks["vda"].index_hash)
    bad = index.read_bytes()[:-1]
    index.write_bytes(bad)
    twin.write_bytes(bad)
    [damage] = verify(made.repository, [revision], origins=[])
    assert (damage.start, damage.length, damage.healed) == (0, 5 * BLOCK, None)
    assert index.read_bytes() == twin.read_bytes() == bad


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_without_unnamed_files_pages_are_written_under_their_names(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> files.File:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "create_unnamed", refuse)
    pages.put(PAGE)
    assert [path.read_bytes() for path in copies(tmp_path, NAME)] == [PAGE, PAGE]


def test_a_named_file_is_in_a_folder_of_its_first_two_digits(tmp_path: Path) -> None:
    path = NamedFiles(Place.at(tmp_path), ".zst").path(NAME)
    assert path.path == tmp_path / NAME[:2] / f"{NAME}.zst"
