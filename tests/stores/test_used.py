"""What is in use is never called unused, and what cannot be read may use anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from backy.stores.index import PagedIndex
from backy.stores.pages import NamedFiles, Pages
from backy.stores.used import Used, UsedDigests
from backy.stores.zstd import ZstdCodec
from backy.system import files
from backy.system.place import Place
from tests.lab.handmade import digest_of
from tests.lab.paged import LINES, copies, page_names, stored, text_of, write_pages

BLOCK = 16


def hashes(first: int, count: int) -> list[str]:
    return [digest_of(number.to_bytes(4)) for number in range(first, first + count)]


class Counting(Pages):
    """Pages that count what is read of them."""

    def __init__(self, root: Path) -> None:
        super().__init__(Place.at(root), ZstdCodec(1))
        self.names_read: list[str] = []

    def get(self, name: str, count: int, *, is_checked: bool = False) -> bytes:
        self.names_read.append(name)
        return super().get(name, count, is_checked=is_checked)


@contextmanager
def opened(root: Path, shelf: Pages, disk: str, count: int) -> Iterator[PagedIndex]:
    with files.open_to_read(root / f"{disk}.blocks") as file:
        yield PagedIndex(file, count * BLOCK, BLOCK, shelf)


def removed(used: Used, root: Path) -> set[str]:
    """The files that are deleted in `pages` and `twins`."""
    before = dict(stored(root)).keys()
    for name in ("pages", "twins"):
        used.remove_others(NamedFiles(Place.at(root) / name), lambda _: None, are_pages=True)
    return before - dict(stored(root)).keys()


def test_each_page_is_read_once_however_many_indexes_share_it(tmp_path: Path) -> None:
    shelf, used = Counting(tmp_path), Used(has_named_blocks=True)
    lines = hashes(0, 3 * LINES)
    for number in range(4):
        name = f"disk{number}"
        index_hash = write_pages(tmp_path, lines, tmp_path, name)
        with opened(tmp_path, shelf, name, len(lines)) as index:
            used.add(index, index_hash)
        lines = [digest_of(b"new"), *lines[1:]]
    assert len(shelf.names_read) == len(set(shelf.names_read)) == 4
    assert all(used.is_block(each) for each in [*lines, *hashes(0, 1)])
    assert removed(used, tmp_path) == set()


def test_a_store_without_names_of_blocks_reads_no_page(tmp_path: Path) -> None:
    shelf, used = Counting(tmp_path), Used(has_named_blocks=False)
    index_hash = write_pages(tmp_path, hashes(0, LINES), tmp_path)
    write_pages(tmp_path, hashes(9, LINES), tmp_path, "other")
    with opened(tmp_path, shelf, "vda", LINES) as index:
        used.add(index, index_hash)
    assert shelf.names_read == []
    assert len(removed(used, tmp_path)) == 3


def test_a_page_that_is_lost_keeps_all_blocks_but_no_pages(tmp_path: Path) -> None:
    shelf, used = Pages(Place.at(tmp_path), ZstdCodec(1)), Used(has_named_blocks=True)
    index_hash = write_pages(tmp_path, hashes(0, 2 * LINES), tmp_path)
    other = write_pages(tmp_path, hashes(1, LINES), tmp_path, "other")
    for path in copies(tmp_path, page_names(tmp_path)[0]):
        path.write_bytes(b"")
    with opened(tmp_path, shelf, "vda", 2 * LINES) as index:
        used.add(index, index_hash)
    [text] = used.unknown
    assert "vda.blocks" in text
    assert used.is_block(digest_of(b"any block at all"))
    gone = [
        str(path.relative_to(tmp_path))
        for path in copies(tmp_path, page_names(tmp_path, "other")[0])
    ]
    assert removed(used, tmp_path) == {*gone, f"twins/{other[:2]}/{other}"}


def test_an_index_that_is_lost_keeps_everything(tmp_path: Path) -> None:
    used = Used(has_named_blocks=True)
    write_pages(tmp_path, hashes(0, LINES), tmp_path)
    used.add_unknown("an index")
    assert used.unknown == ["an index"]
    assert used.is_block(digest_of(b"any block at all"))
    assert removed(used, tmp_path) == set()


def test_what_nobody_made_here_stays_and_is_told(tmp_path: Path) -> None:
    write_pages(tmp_path, hashes(0, 3), tmp_path)
    path = copies(tmp_path, page_names(tmp_path)[0])[0]
    foreign = [path.with_name("README"), tmp_path / "pages" / "xy", path.with_suffix(".zst")]
    for each in foreign:
        each.write_bytes(b"")
    left: list[Path] = []
    used = Used(has_named_blocks=True)
    pages = NamedFiles(Place.at(tmp_path) / "pages")
    used.remove_others(pages, lambda place: left.append(place.path), are_pages=True)
    assert sorted(left) == sorted(foreign)
    assert all(each.exists() for each in foreign)
    assert not path.exists()


@given(numbers=st.sets(st.integers(0, 2**32 - 1), max_size=50))
def test_a_set_of_digests_never_forgets_one(numbers: set[int]) -> None:
    names = [digest_of(number.to_bytes(4)) for number in numbers]
    digests = UsedDigests()
    digests.add_all(text_of(names))
    assert all(name in digests for name in names)


def test_a_set_of_digests_hardly_ever_has_one_that_was_not_added() -> None:
    digests = UsedDigests()
    digests.add_all(text_of(hashes(0, 1000)))
    assert sum(name in digests for name in hashes(1000, 1000)) <= 1
