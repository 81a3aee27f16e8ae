"""What every store promises of its indexes and pages: files as docs/formats.md describes them.

What is expected comes from tests.lab.paged, which has no code of backy's. Blocks are as small as a
store may have, so disks of several pages are cheap.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest
from blake3 import blake3

from backy.errors import DamagedError
from backy.image.copy import copy
from backy.model.extent import Kind
from backy.model.revision import Revision
from backy.stores import StoreClass
from backy.stores.blocks import StoredImage
from backy.stores.codec import Codec
from backy.stores.draft import draft_disk
from backy.stores.zstd import ZstdCodec
from tests.conformance.shelf import Shelf, digests
from tests.lab.paged import (
    LINE,
    LINES,
    copies,
    hashes_of,
    index_of,
    page_names,
    pages_of,
    place,
    stored,
    text_of,
)
from tests.memory_source import BytesImage

BLOCK = 4096
SHORT = 1234  # bytes in a short last block
CONTENTS = [bytes([number]) * BLOCK for number in range(5)]
Bad = Callable[[bytes], bytes]
BORDERS = [1, LINES - 1, LINES, LINES + 1, 2 * LINES, 2 * LINES + 1]


def disk_of(blocks: int, short: int = 0, seed: int = 1) -> bytes:
    """Blocks of a few contents, zeroes among them, in an order that no two pages share."""
    return b"".join(Random(seed).choices(CONTENTS, k=blocks)) + b"s" * short


def patched(content: bytes, *numbers: int) -> bytes:
    """Content with other bytes at the start of these blocks."""
    changed = bytearray(content)
    for number in numbers:
        changed[number * BLOCK] ^= 0xFF
    return bytes(changed)


def replaced(path: Path, bad: Bad | None) -> None:
    """Put other content in the place of a file, or nothing."""
    good = path.read_bytes()
    path.unlink()
    if bad:
        path.write_bytes(bad(good))


BAD = [
    pytest.param(lambda good: b"", id="empty"),
    pytest.param(lambda good: good[:-LINE], id="a-line-less"),
    pytest.param(lambda good: b"../../x" + good[7:], id="forged"),
    pytest.param(None, id="missing"),
]


class PagingSuite:
    """One store in `folder`, with one codec."""

    make_store: ClassVar[StoreClass]
    codec: ClassVar[Codec] = ZstdCodec(1)

    @staticmethod
    def digest(content: bytes) -> str:
        """The name of these bytes, by no code of backy's."""
        return blake3(content).hexdigest()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """An empty folder on the file system that the store is for."""
        return tmp_path

    def new_shelf(self, folder: Path, block_size: int) -> Shelf:
        return Shelf.new(folder / "store", type(self).make_store, block_size, self.codec)

    @pytest.fixture
    def paged(self, folder: Path) -> Shelf:
        return self.new_shelf(folder, BLOCK)

    def files_of(self, *contents: bytes) -> dict[str, bytes]:
        """All that must be in `pages` and `twins` if these disks are stored."""
        files: dict[str, bytes] = {}
        for content in contents:
            hashes = hashes_of(content, BLOCK, self.digest)
            for page in pages_of(hashes):
                for path in copies(Path(), self.digest(page)):
                    files[str(path)] = page
            index = index_of(hashes, self.digest)
            files[str(place(Path(), "twins", self.digest(index)))] = index
        return files

    def assert_stored(self, shelf: Shelf, revision: Revision, content: bytes) -> None:
        """The revision has this content, and the index that the description says."""
        index = index_of(hashes_of(content, BLOCK, self.digest), self.digest)
        assert shelf.index(revision).read_bytes() == index
        assert revision.disks["vda"].index_hash == self.digest(index)
        assert shelf.read(revision) == content

    @pytest.mark.parametrize("short", [0, SHORT])
    @pytest.mark.parametrize("blocks", BORDERS)
    def test_index_and_pages_are_the_files_that_the_format_says(
        self, paged: Shelf, blocks: int, short: int
    ) -> None:
        content = disk_of(blocks, short)
        revision = paged.publish(content)
        self.assert_stored(paged, revision, content)
        assert dict(stored(paged.root)) == self.files_of(content)
        for path in [
            each for folder in ("pages", "twins") for each in (paged.root / folder).rglob("*")
        ]:
            assert path.stat().st_mode & 0o7777 == (0o700 if path.is_dir() else 0o600)

    def test_pages_are_shared_by_revisions_and_disks(self, paged: Shelf) -> None:
        content = disk_of(3 * LINES, SHORT)
        first = paged.publish(content)
        before = {path: path.stat().st_ino for pair in paged.pages(first) for path in pair}
        paged.publish(BytesImage(content, parent=content), first)
        paged.publish(content, first)
        with draft_disk(paged.store, paged.new_folder(), "vdb", len(content), None) as draft:
            copy(BytesImage(content), draft)
            draft.finish()
            assert draft.index.page_bytes == 4 * LINE
        assert dict(stored(paged.root)) == self.files_of(content)
        assert {path: path.stat().st_ino for path in before} == before

    def test_a_change_costs_both_copies_of_its_page_and_of_the_index(self, paged: Shelf) -> None:
        content = disk_of(3 * LINES)
        first = paged.publish(content)
        assert first.disks["vda"].pages == 2 * 3 * (LINES * LINE + LINE)
        new = patched(content, LINES, 2 * LINES - 1)
        second = paged.publish(BytesImage(new, parent=content), first)
        assert second.disks["vda"].pages == 2 * (LINES * LINE + 3 * LINE)
        assert dict(stored(paged.root)) == self.files_of(content, new)
        third = paged.publish(BytesImage(new, parent=new), second)
        assert third.disks["vda"].pages == 3 * LINE

    def test_zeroes_of_any_size_are_one_page(self, paged: Shelf) -> None:
        blocks = 100 * LINES
        with paged.draft(blocks * BLOCK) as draft:
            draft.zero(0, blocks * BLOCK)
            draft.finish()
        names = [path for path, _ in stored(paged.root) if path.startswith("pages/")]
        page = text_of([self.digest(bytes(BLOCK))] * LINES)
        assert names == [str(place(Path(), "pages", self.digest(page)))]

    @pytest.mark.parametrize("short", [0, SHORT])
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (251, 252),
            (253, 252),
            (505, 251),
            (251, 505),
        ],
    )
    def test_a_disk_that_is_resized_keeps_what_is_the_same(
        self, paged: Shelf, before: int, after: int, short: int
    ) -> None:
        content = disk_of(max(before, after), short)
        old, new = content[: before * BLOCK] + b"o" * short, content[: after * BLOCK + short]
        parent = paged.publish(old)
        revision = paged.publish(new, parent)
        self.assert_stored(paged, revision, new)
        self.assert_stored(paged, paged.publish(old, revision), old)
        self.assert_stored(paged, parent, old)

    @pytest.mark.parametrize("blocks", [1, LINES, LINES + 1, 600])
    def test_a_parent_of_format_1_gives_its_child_pages(self, paged: Shelf, blocks: int) -> None:
        content = disk_of(blocks, SHORT)
        parent = paged.flat(paged.publish(content))
        assert paged.read(parent) == content
        same = paged.publish(BytesImage(content, parent=content), parent)
        assert (same.disks["vda"].read, same.disks["vda"].stored) == (0, 0)
        self.assert_stored(paged, same, content)
        assert dict(stored(paged.root)) == self.files_of(content)
        new = patched(content, 0, blocks - 1)
        self.assert_stored(paged, paged.publish(BytesImage(new, parent=content), parent), new)
        assert paged.read(parent) == content

    def test_a_parent_of_format_1_may_have_another_size(self, paged: Shelf) -> None:
        content = disk_of(2 * LINES + 9, SHORT)
        parent = paged.flat(paged.publish(content))
        for new in (content[: (LINES + 7) * BLOCK], content + bytes(LINES * BLOCK)):
            self.assert_stored(paged, paged.publish(new, parent), new)

    def test_blocks_may_be_written_in_any_order_by_several_threads(self, paged: Shelf) -> None:
        content, old = disk_of(2 * LINES + 100, SHORT), disk_of(2 * LINES + 100, SHORT, seed=2)
        parent = paged.publish(old)
        starts = list(range(0, len(content), BLOCK))
        Random(3).shuffle(starts)
        with paged.draft(len(content), parent) as draft, ThreadPoolExecutor(4) as pool:
            view = memoryview(content)
            list(pool.map(lambda at: draft.write(at, view[at : at + BLOCK]), starts))
            index_hash = draft.finish()
        assert index_hash == self.digest(
            index_of(hashes_of(content, BLOCK, self.digest), self.digest)
        )

    def test_finish_may_be_called_again_after_more_was_written(self, paged: Shelf) -> None:
        content = disk_of(LINES + 1)
        new = patched(content, 0)
        with paged.draft(len(content)) as draft:
            copy(BytesImage(content), draft)
            before = draft.finish()
            draft.write(0, memoryview(new)[:BLOCK])
            assert (
                before
                != draft.finish()
                == self.digest(index_of(hashes_of(new, BLOCK, self.digest), self.digest))
            )

    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("which", [0, 1], ids=["page", "twin"])
    def test_a_bad_copy_of_a_page_is_replaced_by_the_other(
        self, paged: Shelf, which: int, bad: Bad | None
    ) -> None:
        content = disk_of(2 * LINES, SHORT)
        revision = paged.publish(content)
        good, pair = dict(stored(paged.root)), paged.pages(revision)[1]
        replaced(pair[which], bad)
        assert paged.read(revision) == content
        with paged.open(revision) as image:
            image.index.check_page(1)
        assert dict(stored(paged.root)) == good
        [note] = paged.store.pages.take_notes()
        assert note == f"{pair[which]} was damaged; its other copy was good and replaced it"

    @pytest.mark.parametrize("bad", BAD)
    def test_a_page_without_a_good_copy_is_an_error_that_names_its_range(
        self, paged: Shelf, bad: Bad | None
    ) -> None:
        content = disk_of(3 * LINES, SHORT)
        revision = paged.publish(content)
        for path in paged.pages(revision)[1]:
            replaced(path, bad)
        start, end = LINES * BLOCK, 2 * LINES * BLOCK
        for offset, length in ((start, BLOCK), (start - 1, 2), (end - 1, 2)):
            with pytest.raises(DamagedError, match=rf"\b{start} to {end}\b"):
                paged.read(revision, offset, length)
        assert paged.read(revision, 0, start) == content[:start]
        assert paged.read(revision, end) == content[end:]
        with paged.open(revision) as image:
            self.assert_lost(image, 1)

    def assert_lost(self, image: StoredImage, page: int) -> None:
        """The page is data that cannot be read, and nothing is found in it."""
        lost = range(page * LINES, (page + 1) * LINES)
        kinds = {
            number: extent.kind
            for extent in image.index.extents()
            for number in range(extent.start // BLOCK, -(-extent.end // BLOCK))
        }
        assert {kinds[number] for number in lost} == {Kind.DATA}
        found = image.index.find({self.digest(each) for each in CONTENTS})
        assert {number for number, _ in found} == set(range(image.size // BLOCK)) - set(lost)

    @pytest.mark.parametrize("bad", BAD)
    def test_an_index_that_is_not_the_published_one_is_replaced_by_its_twin(
        self, paged: Shelf, bad: Bad | None
    ) -> None:
        content = disk_of(3 * LINES)
        revision = paged.publish(content)
        index = paged.index(revision)
        good = index.read_bytes()
        replaced(index, bad)
        assert paged.read(revision) == content
        assert index.read_bytes() == good
        [note] = paged.store.pages.take_notes()
        assert note.startswith(f"{index} was damaged")

    @pytest.mark.parametrize("bad", BAD)
    def test_an_index_without_a_good_copy_is_refused(self, paged: Shelf, bad: Bad | None) -> None:
        content = disk_of(3 * LINES)
        revision = paged.publish(content)
        index = paged.index(revision)
        for path in (index, place(paged.root, "twins", self.digest(index.read_bytes()))):
            replaced(path, bad)
        with pytest.raises(DamagedError, match=index.name), paged.open(revision):
            pytest.fail("it was opened")
        with pytest.raises(DamagedError, match=index.name), paged.draft(len(content), revision):
            pytest.fail("it was built upon")

    @pytest.mark.parametrize("bad", BAD)
    def test_an_index_of_format_1_that_is_not_the_published_one_is_refused(
        self, paged: Shelf, bad: Bad | None
    ) -> None:
        content = disk_of(3)
        revision = paged.flat(paged.publish(content))
        index = paged.index(revision)
        replaced(index, bad)
        with pytest.raises(DamagedError, match=index.name), paged.open(revision):
            pytest.fail("it was opened")
        with pytest.raises(DamagedError, match=index.name), paged.draft(len(content), revision):
            pytest.fail("it was built upon")


class LosingSuite(PagingSuite):
    """What drafts and purges do with pages that are lost or unused."""

    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    @pytest.mark.parametrize("bad", [None, lambda good: bytes(len(good))], ids=["missing", "torn"])
    def test_blocks_of_a_page_that_the_parent_lost_must_be_written_again(
        self, paged: Shelf, when: str, bad: Bad | None
    ) -> None:
        content = disk_of(3 * LINES, SHORT)
        parent = paged.publish(content)
        pair = paged.pages(parent)[1]

        def lose() -> None:
            for path in pair:
                replaced(path, bad)

        if when == "before":
            lose()
        with paged.draft(len(content), parent) as draft:
            if when == "meanwhile":
                lose()
            start, end = LINES * BLOCK, 2 * LINES * BLOCK
            draft.write(start + BLOCK, memoryview(content)[start + BLOCK : start + 2 * BLOCK])
            assert draft.lost() == [range(LINES, 2 * LINES)]
            with pytest.raises(DamagedError, match=f"block {LINES} was never written"):
                draft.finish()
            draft.write(start, memoryview(content)[start:end])
            assert draft.lost() == []
            assert draft.finish() == parent.disks["vda"].index_hash
        assert dict(stored(paged.root)) == self.files_of(content)
        assert paged.read(parent) == content

    def test_a_page_that_nobody_reads_is_missed_if_its_name_is(self, paged: Shelf) -> None:
        content = disk_of(2 * LINES)
        parent = paged.publish(content)
        for path in paged.pages(parent)[1]:
            path.unlink()
        with paged.draft(len(content), parent) as draft:
            assert draft.lost() == [range(LINES, 2 * LINES)]

    @pytest.mark.parametrize("which", [0, 1], ids=["page", "twin"])
    def test_a_draft_brings_back_a_copy_of_its_parents_page_that_is_missing(
        self, paged: Shelf, which: int
    ) -> None:
        content = disk_of(2 * LINES)
        parent = paged.publish(content)
        good = dict(stored(paged.root))
        paged.pages(parent)[1][which].unlink()
        with paged.draft(len(content), parent) as draft:
            assert draft.lost() == []
        assert dict(stored(paged.root)) == good

    def test_where_the_disk_was_resized_a_lost_page_at_its_old_end_is_written_again(
        self, paged: Shelf
    ) -> None:
        content = disk_of(LINES + 9)
        parent = paged.publish(content)
        for path in paged.pages(parent)[1]:
            path.unlink()
        new = content + disk_of(3, seed=5)
        with paged.draft(len(new), parent) as draft:
            assert draft.lost() == [range(LINES, LINES + 12)]

    @pytest.mark.parametrize("bad", BAD)
    def test_a_name_is_no_proof_that_a_page_is_whole(self, paged: Shelf, bad: Bad | None) -> None:
        """After a power cut, a page of a draft that was never published may be torn."""
        content = disk_of(LINES, SHORT)
        good = self.files_of(content)
        first = paged.publish(content)
        for pair in paged.pages(first):
            for path in pair:
                replaced(path, bad)
        second = paged.publish(content)
        assert dict(stored(paged.root)) == good
        self.assert_stored(paged, second, content)

    def test_collect_deletes_exactly_the_pages_that_are_not_used(self, paged: Shelf) -> None:
        contents = [disk_of(3 * LINES)]
        for number in (5, LINES):
            contents.append(patched(contents[-1], number))
        first = paged.publish(contents[0])
        second = paged.publish(contents[1], first)
        third = paged.publish(contents[2], second)
        all_files = dict(stored(paged.root))
        folder = paged.pages(first)[0][1].parent
        draft = folder / f".{folder.name}{'0' * 62}.4711"
        draft.write_bytes(b"a draft's")
        freed = paged.collect(first, third)
        kept = dict(stored(paged.root))
        assert kept == self.files_of(contents[0], contents[2])
        pages = sum(len(all_files[path]) for path in all_files.keys() - kept.keys())
        assert freed >= pages + len(b"a draft's") > 9
        for revision, content in ((first, contents[0]), (third, contents[2])):
            self.assert_stored(paged, revision, content)
        paged.collect()
        assert dict(stored(paged.root)) == {}

    def test_digests_are_those_of_the_blocks(self, paged: Shelf) -> None:
        content = disk_of(LINES + 3, SHORT)
        revision = paged.publish(content)
        assert digests(paged, revision) == hashes_of(content, BLOCK, self.digest)
        assert page_names(paged.folder(revision)) == [
            self.digest(page) for page in pages_of(digests(paged, revision))
        ]
