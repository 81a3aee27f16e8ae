"""An index is a list of pages, or of blocks; it says what a naive reading of the files says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backy.errors import DamagedError
from backy.model.extent import Extent, Kind
from backy.stores.data import data_blocks, data_bytes
from backy.stores.draft import IndexDraft
from backy.stores.index import (
    PAGE_LINES,
    FlatIndex,
    Index,
    PagedIndex,
    block_count,
    check_hash,
)
from backy.stores.pages import LINE, Pages
from backy.stores.zstd import ZstdCodec
from backy.system import files
from backy.system.place import Place
from tests.golden.compare import FOLDER, assert_golden
from tests.lab.handmade import digest_of
from tests.lab.paged import (
    LINES,
    copies,
    hashes_of,
    in_blocks,
    index_of,
    pages_of,
    place,
    stored,
    text_of,
    write_pages,
)

BLOCK = 16
CODEC = ZstdCodec(1)
FORMATS = [1, 2]
CONTENTS = [bytes(BLOCK), b"a" * BLOCK, b"b" * BLOCK]
NAMES = [digest_of(each) for each in CONTENTS]


@contextmanager
def opened(root: Path, content: bytes, number: int = 2, block: int = BLOCK) -> Iterator[Index]:
    """The index of these bytes in format 1 or 2, written by the description of the format."""
    hashes = hashes_of(content, block)
    path = root / f"{digest_of(content)[:8]}.blocks"
    if number == 1:
        path.write_bytes(text_of(hashes))
    else:
        write_pages(root, hashes, root, path.stem)
    with files.open_to_read(path) as file:
        if number == 1:
            yield FlatIndex(file, len(content), block, CODEC)
        else:
            yield PagedIndex(file, len(content), block, Pages(Place.at(root), CODEC))


@contextmanager
def made(content: bytes, number: int = 2, block: int = BLOCK) -> Iterator[Index]:
    with TemporaryDirectory() as folder, opened(Path(folder), content, number, block) as index:
        yield index


@contextmanager
def draft_in(
    root: Path, size: int, parent: Index | None = None, block: int = BLOCK
) -> Iterator[IndexDraft]:
    with files.create(Place.at(root) / "scratch") as scratch:
        (root / "scratch").unlink()
        yield IndexDraft(scratch, size, block, Pages(Place.at(root), CODEC), parent)


def finished(draft: IndexDraft, root: Path) -> bytes:
    """The index that was written. Its hash and its twin must be right."""
    index_hash = draft.finish(Place.at(root) / "new.blocks")
    content = (root / "new.blocks").read_bytes()
    assert index_hash == digest_of(content)
    assert place(root, "twins", index_hash).read_bytes() == content
    return content


def by_block(extents: Iterator[Extent], size: int) -> dict[int, Kind]:
    """The kind of each block; fails where extents overlap, leave gaps or cut a block."""
    kinds: dict[int, Kind] = {}
    end = None
    for extent in extents:
        assert end in {None, extent.start}
        end = extent.end
        assert extent.start % BLOCK == 0
        assert end % BLOCK == 0 or end == size
        for start in range(extent.start, end, BLOCK):
            kinds[start // BLOCK] = extent.kind
    return kinds


def golden_disk() -> tuple[int, bytes]:
    """300 blocks and a short one: text, zeroes, and bytes; as `b3sum --no-names` names them."""
    block = 256
    content = b"".join(
        [b"backy\n" * 50, bytes(block), bytes(range(256))][number % 3][:block]
        for number in range(300)
    )
    return block, content + b"the end"


def test_an_index_of_format_2_is_written_byte_for_byte_as_by_the_first_version(
    tmp_path: Path,
) -> None:
    block, content = golden_disk()
    hashes = hashes_of(content, block)
    with draft_in(tmp_path, len(content), block=block) as draft:
        for number in reversed(range(301)):
            draft.put(number, hashes[number])
        assert_golden("format-2/vda.blocks", finished(draft, tmp_path))
    names = (tmp_path / "new.blocks").read_text().splitlines()
    for number, name in enumerate(names):
        for path in copies(tmp_path, name):
            assert_golden(f"format-2/page-{number}", path.read_bytes())
    assert pages_of(hashes) == [copies(tmp_path, name)[0].read_bytes() for name in names]


def test_an_index_of_format_2_of_the_first_version_is_still_read(tmp_path: Path) -> None:
    block, content = golden_disk()
    names = (FOLDER / "format-2" / "vda.blocks").read_text().splitlines()
    for number, name in enumerate(names):
        path = copies(tmp_path, name)[0]
        path.parent.mkdir(parents=True)
        path.write_bytes((FOLDER / "format-2" / f"page-{number}").read_bytes())
    with files.open_to_read(FOLDER / "format-2" / "vda.blocks") as file:
        index = PagedIndex(file, len(content), block, Pages(Place.at(tmp_path), CODEC))
        assert [index.digest(number) for number in range(301)] == hashes_of(content, block)


def test_an_index_of_format_1_is_still_read() -> None:
    """Four blocks: text, zeroes, bytes, and a short one."""
    with files.open_to_read(FOLDER / "vda.blocks") as file:
        index = FlatIndex(file, 3 * 65536 + 7, 65536, CODEC)
        assert index.blocks == 4
        assert index.digest(3) == digest_of(b"the end")
        check_hash(file, 4, digest_of((FOLDER / "vda.blocks").read_bytes()), CODEC)
        assert [each.kind for each in index.extents()] == [
            Kind.DATA,
            Kind.ZERO,
            Kind.DATA,
            Kind.DATA,
        ]


@pytest.mark.parametrize(
    ("size", "blocks", "pages", "last"),
    [
        (1, 1, 1, 1),
        (15, 1, 1, 15),
        (16, 1, 1, 16),
        (17, 2, 1, 1),
        (251 * 16 + 1, 252, 1, 1),
        (252 * 16, 252, 1, 16),
        (252 * 16 + 1, 253, 2, 1),
        (504 * 16, 504, 2, 16),
        (2**60, 2**56, 285942833483842, 16),
    ],
)
def test_the_last_block_and_the_last_page_may_be_short(
    tmp_path: Path, size: int, blocks: int, pages: int, last: int
) -> None:
    assert block_count(size, BLOCK) == blocks
    (tmp_path / "vda.blocks").touch()
    with files.open_to_read(tmp_path / "vda.blocks") as file:
        index = FlatIndex(file, size, BLOCK, CODEC)
        assert (index.blocks, index.pages) == (blocks, pages)
        assert index.length_of(blocks - 1) == last
        assert blocks == 1 or index.length_of(0) == BLOCK
        assert index.lines_of(pages - 1) == (blocks - 1) % 252 + 1


# Runs of blocks, often as long as a page or nearly so.
runs = st.tuples(
    st.sampled_from(CONTENTS), st.integers(1, 8) | st.sampled_from([250, 251, 252, 253, 504])
).map(lambda run: run[0] * run[1])
images = st.lists(runs, min_size=1, max_size=5).map(b"".join)
cut_images = st.tuples(images, st.integers(0, BLOCK - 1)).map(
    lambda pair: pair[0][: len(pair[0]) - pair[1]]
)
formats = st.sampled_from(FORMATS)


def expected_kinds(new: bytes, old: bytes | None) -> dict[int, Kind]:
    olds = in_blocks(old, BLOCK) if old else []
    return {
        number: Kind.SAME
        if olds[number : number + 1] == [block]
        else (Kind.DATA if any(block) else Kind.ZERO)
        for number, block in enumerate(in_blocks(new, BLOCK))
    }


@given(new=cut_images, old=st.none() | cut_images, numbers=st.tuples(formats, formats))
def test_extents_say_what_each_line_says(
    new: bytes, old: bytes | None, numbers: tuple[int, int]
) -> None:
    expected = expected_kinds(new, old)
    with TemporaryDirectory() as folder, opened(Path(folder), new, numbers[0]) as index:
        if old is None:
            found = by_block(index.extents(), len(new))
        else:
            with made(old, numbers[1]) as since:
                found = by_block(index.extents(since), len(new))
    # A short last block that is the same may be called DATA where the disk was resized.
    last = len(expected) - 1
    if old and len(old) != len(new) and len(new) % BLOCK and expected[last] is Kind.SAME:
        assert found.pop(last) is not Kind.ZERO or not any(in_blocks(new, BLOCK)[last])
        del expected[last]
    assert found == expected


@given(content=cut_images, number=formats, data=st.data())
def test_extents_of_some_blocks_are_a_part_of_the_extents_of_all(
    content: bytes, number: int, data: st.DataObject
) -> None:
    blocks = block_count(len(content), BLOCK)
    first = data.draw(st.integers(0, blocks))
    end = data.draw(st.integers(first, blocks))
    with made(content, number) as index:
        everything = by_block(index.extents(), len(content))
        some = by_block(index.extents(first=first, end=end), len(content))
    assert some == {number: everything[number] for number in range(first, end)}


@given(content=cut_images, number=formats, data=st.data())
@example(content=b"a" * 16 + bytes(20), number=2, data=None)
def test_the_blocks_with_data_are_those_that_are_not_zero(
    content: bytes, number: int, data: st.DataObject | None
) -> None:
    blocks = in_blocks(content, BLOCK)
    borders: Sequence[int] = range(len(blocks) + 1)
    if data:
        borders = data.draw(st.lists(st.sampled_from(borders), min_size=2, max_size=4).map(sorted))
    with made(content, number) as index:
        for first, end in combinations(borders, 2):
            numbers = [number for number in range(first, end) if any(blocks[number])]
            assert list(data_blocks(index, first, end)) == numbers
        whole = [block for block in blocks if any(block) or len(block) < BLOCK]
        least = sum(any(block) for block in blocks) * BLOCK
        assert least <= data_bytes(index) <= len(whole) * BLOCK


@given(content=cut_images, number=formats, wanted=st.sets(st.sampled_from(NAMES)))
def test_a_block_is_found_wherever_its_digest_is(
    content: bytes, number: int, wanted: set[str]
) -> None:
    hashes = hashes_of(content, BLOCK)
    with made(content, number) as index:
        found = list(index.find(wanted))
        assert found == [(place, name) for place, name in enumerate(hashes) if name in wanted]
        lines = index.lines(0, index.blocks)
        assert lines == text_of(hashes)
        assert [index.digest(number) for number in range(index.blocks)] == hashes
        assert list(index.names()) == index_of(hashes).decode().split()


@given(old=cut_images, new=cut_images, number=formats)
def test_a_draft_begins_with_the_lines_that_may_be_the_same(
    old: bytes, new: bytes, number: int
) -> None:
    """Those of whole blocks, and that of a short last block where the size is the same."""
    with (
        TemporaryDirectory() as folder,
        opened(Path(folder), old, number) as parent,
        draft_in(Path(folder), len(new), parent) as draft,
    ):
        whole = min(len(old), len(new)) // BLOCK
        kept = draft.blocks if len(old) == len(new) else whole
        assert draft.lines(0, kept) == text_of(hashes_of(old, BLOCK)[:kept])
        assert draft.lines(kept, draft.blocks - kept) == bytes((draft.blocks - kept) * LINE)


@given(old=cut_images, new=cut_images, form=formats)
def test_a_draft_that_was_patched_where_it_differs_is_the_index_of_the_new_image(
    old: bytes, new: bytes, form: int
) -> None:
    hashes = hashes_of(new, BLOCK)
    with (
        TemporaryDirectory() as folder,
        opened(Path(folder), old, form) as parent,
        draft_in(Path(folder), len(new), parent) as draft,
    ):
        for number in reversed(range(draft.blocks)):
            block = new[number * BLOCK : (number + 1) * BLOCK]
            if draft.line(number) == hashes[number].encode():
                continue
            if any(block):
                draft.put(number, hashes[number])
            else:
                draft.put_zero(number, 1)
        assert finished(draft, Path(folder)) == index_of(hashes)
        expected = {name for page in pages_of(hashes) for name in copies(Path(), digest_of(page))}
        assert {str(path) for path in expected} <= dict(stored(Path(folder))).keys()


@st.composite
def changes(draw: st.DrawFn, blocks: int) -> list[tuple[str, int, int]]:
    """What happens to a draft of so many whole blocks: (what, first block, count)."""
    made = []
    for _ in range(draw(st.integers(0, 6))):
        first = draw(st.integers(0, blocks - 1) | st.sampled_from([0, 251, 252]))
        first = min(first, blocks - 1)
        most = blocks - first
        count = min(most, draw(st.integers(1, most) | st.sampled_from([1, 252])))
        made.append((draw(st.sampled_from(["put", "zero", "discard", "read"])), first, count))
    return made


@given(data=st.data())
def test_a_history_of_drafts_says_what_a_plain_list_says(data: st.DataObject) -> None:
    """Each grows from the one before, of another size; the first one's parent has format 1 or 2."""
    content = data.draw(images)
    naive: list[str] = hashes_of(content, BLOCK)
    with TemporaryDirectory() as name:
        root = Path(name)
        with opened(root, content, data.draw(formats)) as parent:
            naive = drafted(root, parent, naive, data)
        for _ in range(data.draw(st.integers(0, 3))):
            with files.open_to_read(root / "new.blocks") as file:
                size, pages = len(naive) * BLOCK, Pages(Place.at(root), CODEC)
                naive = drafted(root, PagedIndex(file, size, BLOCK, pages), naive, data)


def drafted(root: Path, parent: Index, old: list[str], data: st.DataObject) -> list[str]:
    """Change a draft at random, and fill what is unwritten; gives the lines that it must have."""
    blocks = max(1, len(old) + data.draw(st.sampled_from([0, 0, 1, -1, 251, -251, 252, -252])))
    lines: list[str | None] = [*old[:blocks], *[None] * (blocks - len(old))]
    with draft_in(root, blocks * BLOCK, parent) as draft:
        for what, first, count in data.draw(changes(blocks)):
            if what == "read":
                expected = b"".join(
                    f"{each}\n".encode() if each else bytes(LINE)
                    for each in lines[first : first + count]
                )
                assert draft.lines(first, count) == expected
            elif what == "put":
                draft.put(first, NAMES[1])
                lines[first] = NAMES[1]
            else:
                change = draft.put_zero if what == "zero" else draft.discard
                change(first, count)
                lines[first : first + count] = [NAMES[0] if what == "zero" else None] * count
        unwritten = [number for number, line in enumerate(lines) if line is None]
        if unwritten:
            with pytest.raises(DamagedError, match=r"block \d+ was never written") as caught:
                draft.finish(Place.at(root) / "new.blocks")
            assert int(caught.value.message.split()[-4]) in unwritten
        for number in unwritten:
            draft.put(number, NAMES[2])
        whole = [line or NAMES[2] for line in lines]
        assert finished(draft, root) == index_of(whole)
    return whole


def test_a_draft_of_sixteen_tebibytes_costs_little_before_it_is_written(tmp_path: Path) -> None:
    with draft_in(tmp_path, 2**44, block=2**20) as draft:
        assert (tmp_path / "pages").exists() is False
        assert draft.blocks == 2**24
        draft.put_zero(0, draft.blocks)
        index = finished(draft, tmp_path)
        assert len(index) == -(-(2**24) // LINES) * LINE
    files_of_pages = [path for path, _ in stored(tmp_path) if path.startswith("pages/")]
    assert len(files_of_pages) == 2  # a full page, and the last one


def test_more_pages_than_fit_into_one_piece_are_named_zero(tmp_path: Path) -> None:
    count = 65536 * PAGE_LINES + 5 * PAGE_LINES + 3
    size = count * BLOCK + 5
    with draft_in(tmp_path, size) as draft:
        draft.put_zero(0, count)
        draft.put_zero(count, 1)
        finished(draft, tmp_path)
    with files.open_to_read(tmp_path / "new.blocks") as file:
        index = PagedIndex(file, size, BLOCK, Pages(Place.at(tmp_path), CODEC))
        assert len(list(index.names())) == index.pages == 65536 + 6
        for first, end in ((65537, None), (3, 9), (65535, 65537), (65540, 10**9)):
            assert list(index.names(first, end)) == list(index.names())[first:end]
        assert list(index.extents()) == [
            Extent(0, count * BLOCK, Kind.ZERO),
            Extent(count * BLOCK, 5, Kind.ZERO),
        ]
        assert index.digest(count - 1) == digest_of(bytes(BLOCK))
        assert index.digest(count) == digest_of(bytes(5))


class Counting(Pages):
    """Pages that count what is read of them."""

    def __init__(self, root: Path) -> None:
        super().__init__(Place.at(root), CODEC)
        self.asked: list[str] = []

    def get(self, name: str, count: int, *, is_checked: bool = False) -> bytes:
        self.asked.append(name)
        return super().get(name, count, is_checked=is_checked)


def test_only_pages_that_differ_are_read_to_compare_two_indexes(tmp_path: Path) -> None:
    old = b"".join(CONTENTS[number % 3] for number in range(9 * LINES))
    new = bytearray(old)
    new[4 * LINES * BLOCK] ^= 1
    shelf = Counting(tmp_path)
    paths = []
    for name, content in (("old", old), ("new", bytes(new))):
        write_pages(tmp_path, hashes_of(content, BLOCK), tmp_path, name)
        paths.append(tmp_path / f"{name}.blocks")
    with files.open_to_read(paths[0]) as one, files.open_to_read(paths[1]) as two:
        before, after = (PagedIndex(file, len(old), BLOCK, shelf) for file in (one, two))
        changed = [each for each in after.extents(before) if each.kind is not Kind.SAME]
        assert changed == [Extent(4 * LINES * BLOCK, BLOCK, Kind.DATA)]
        assert shelf.asked == [after.name(4), before.name(4)]


def test_a_draft_reads_only_the_pages_that_change(tmp_path: Path) -> None:
    content = b"".join(CONTENTS[number % 3] for number in range(9 * LINES))
    shelf = Counting(tmp_path)
    write_pages(tmp_path, hashes_of(content, BLOCK), tmp_path, "old")
    with files.open_to_read(tmp_path / "old.blocks") as file, draft_in(tmp_path, 16) as other:
        parent = PagedIndex(file, len(content), BLOCK, shelf)
        draft = IndexDraft(other._scratch, len(content), BLOCK, shelf, parent)
        draft.put(5 * LINES, NAMES[1])
        draft.put(5 * LINES + 1, NAMES[1])
        finished(draft, tmp_path)
        assert shelf.asked == [parent.name(5)]


GOOD = text_of(hashes_of(b"a" * 16 + b"b" * 16 + b"c" * 16, BLOCK))


@contextmanager
def raw(lines: bytes) -> Iterator[files.File]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vda.blocks"
        path.write_bytes(lines)
        with files.open_to_read(path) as file:
            yield file


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(GOOD[:-1], "has 194 bytes, not 195", id="cut-short"),
        pytest.param(GOOD + b"\n", "has 196 bytes, not 195", id="too-long"),
        pytest.param(b"", "has 0 bytes, not 195", id="empty"),
        pytest.param(
            GOOD[:LINE] + bytes(LINE) + GOOD[2 * LINE :],
            "has no hash in line 1, or in one after",
            id="unwritten-line",
        ),
    ],
)
def test_a_list_that_is_not_whole_is_refused(lines: bytes, message: str) -> None:
    with raw(lines) as file, pytest.raises(DamagedError, match=message):
        check_hash(file, 3, digest_of(lines), CODEC)


NO_HASHES = [
    pytest.param(b"../../../../etc/passwd".ljust(64, b"/") + b"\n", id="a-path"),
    pytest.param(b"A" * 64 + b"\n", id="capitals"),
    pytest.param(b"0" * 64 + b"0", id="no-newline"),
    pytest.param(b"0" * 63 + b"\n\n", id="short"),
    pytest.param(b"\xff" * 64 + b"\n", id="not-ascii"),
    pytest.param(bytes(LINE), id="unwritten"),
    pytest.param(b" " * 64 + b"\n", id="spaces"),
]


@pytest.mark.parametrize("line", NO_HASHES)
def test_a_line_of_format_1_that_is_not_a_hash_is_damage(line: bytes) -> None:
    with raw(GOOD[:LINE] + line + GOOD[2 * LINE :]) as file:
        index = FlatIndex(file, 48, BLOCK, CODEC)
        with pytest.raises(DamagedError, match="has no hash in line"):
            index.digest(1)


@pytest.mark.parametrize("line", NO_HASHES)
def test_a_line_of_an_index_that_is_not_a_hash_is_damage(tmp_path: Path, line: bytes) -> None:
    with raw(GOOD[:LINE] + line + GOOD[2 * LINE :]) as file:
        shelf = Pages(Place.at(tmp_path), CODEC)
        index = PagedIndex(file, 3 * LINES * BLOCK, BLOCK, shelf)
        for read in (index.digest, index.check_page):
            with pytest.raises(DamagedError, match="has no hash in line"):
                read(LINES if read == index.digest else 1)
        with pytest.raises(DamagedError, match="has no hash in line"):
            list(index.names())


@pytest.mark.parametrize("line", NO_HASHES)
def test_a_page_with_a_line_that_is_not_a_hash_is_damage_though_its_own_hash_is_right(
    tmp_path: Path, line: bytes
) -> None:
    page = GOOD[:LINE] + line + GOOD[2 * LINE :]
    for path in copies(tmp_path, digest_of(page)):
        path.parent.mkdir(parents=True)
        path.write_bytes(page)
    with raw(text_of([digest_of(page)])) as file:
        index = PagedIndex(file, 48, BLOCK, Pages(Place.at(tmp_path), CODEC))
        with pytest.raises(DamagedError, match="missing or damaged"):
            index.digest(0)
        with pytest.raises(DamagedError, match="missing or damaged"):
            index.check_page(0)


@given(st.binary(min_size=LINE, max_size=LINE))
def test_whatever_a_line_says_a_digest_is_64_hex_digits(line: bytes) -> None:
    with raw(line) as file:
        try:
            digest = FlatIndex(file, BLOCK, BLOCK, CODEC).digest(0)
        except DamagedError:
            return
        assert len(digest) == 64
        assert set(digest) <= set("0123456789abcdef")


def test_a_file_that_ends_too_early_is_damaged_and_says_where(tmp_path: Path) -> None:
    with raw(GOOD[: LINE + 10]) as file:
        flat = FlatIndex(file, 48, BLOCK, CODEC)
        paged = PagedIndex(file, 3 * LINES * BLOCK, BLOCK, Pages(Place.at(tmp_path), CODEC))
        for read in (lambda: flat.lines(0, 3), lambda: list(paged.names())):
            with pytest.raises(DamagedError, match="has no hash in line"):
                read()


def test_a_parent_that_is_shorter_than_its_size_says_cannot_begin_a_draft(tmp_path: Path) -> None:
    with raw(GOOD[:LINE]) as file:
        parent = FlatIndex(file, 48, BLOCK, CODEC)
        with (
            pytest.raises(DamagedError, match="has no hash in line"),
            draft_in(tmp_path, 48, parent),
        ):
            pass
