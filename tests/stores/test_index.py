"""An index is one hash a line; what it says is what a naive reading of the lines says."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backy.errors import DamagedError
from backy.model.extent import Extent, Kind
from backy.stores.index import (
    LINE,
    PIECE,
    Index,
    IndexDraft,
    block_count,
    start_draft,
)
from backy.stores.zstd import ZstdCodec
from backy.system import files
from tests.golden.compare import FOLDER, assert_golden
from tests.lab.handmade import digest_of

BLOCK = 16
CODEC = ZstdCodec(1)


def blocks_of(content: bytes, block: int = BLOCK) -> list[bytes]:
    return [content[start : start + block] for start in range(0, len(content), block)]


def lines_of(content: bytes, block: int = BLOCK) -> bytes:
    """The index of these bytes, from the description of the format."""
    digests = [digest_of(each) for each in blocks_of(content, block)]
    return "".join(f"{digest}\n" for digest in digests).encode()


@contextmanager
def index_of(
    lines: bytes, size: int, block: int = BLOCK, folder: Path | None = None
) -> Iterator[Index]:
    with TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "vda.blocks"
        path.write_bytes(lines)
        with files.open_to_read(path) as file:
            yield Index(file, size, block, CODEC)


@contextmanager
def draft_of(size: int, parent: Index | None, block: int = BLOCK) -> Iterator[IndexDraft]:
    with TemporaryDirectory() as folder:
        draft = start_draft(Path(folder) / "vda.blocks", size, block, CODEC, parent)
        with draft.file:
            yield draft


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


def test_an_index_is_written_byte_for_byte_as_by_the_first_version(tmp_path: Path) -> None:
    """Four blocks: text, zeroes, bytes, and a short one; as `b3sum --no-names` prints them."""
    block = 65536
    content = (b"backy\n" * block)[:block] + bytes(block) + bytes(range(256)) * 256 + b"the end"
    draft = start_draft(tmp_path / "vda.blocks", len(content), block, CODEC, None)
    with draft.file:
        for number in (3, 0, 2):
            draft.put(number, digest_of(blocks_of(content, block)[number]))
        draft.put_zero(1, 1)
        assert draft.hash() == digest_of((tmp_path / "vda.blocks").read_bytes())
    assert (tmp_path / "vda.blocks").read_bytes() == lines_of(content, block)
    assert_golden("vda.blocks", (tmp_path / "vda.blocks").read_bytes())


def test_an_index_of_the_first_version_is_still_read() -> None:
    with files.open_to_read(FOLDER / "vda.blocks") as file:
        index = Index(file, 3 * 65536 + 7, 65536, CODEC)
        assert index.blocks == 4
        assert index.digest(3) == digest_of(b"the end")
        assert [each.kind for each in index.extents()] == [
            Kind.DATA,
            Kind.ZERO,
            Kind.DATA,
            Kind.DATA,
        ]


@pytest.mark.parametrize(
    ("size", "blocks", "last"),
    [(1, 1, 1), (15, 1, 15), (16, 1, 16), (17, 2, 1), (160, 10, 16), (2**60, 2**56, 16)],
)
def test_the_last_block_may_be_short(size: int, blocks: int, last: int) -> None:
    assert block_count(size, BLOCK) == blocks
    with index_of(b"", size) as index:
        assert index.blocks == blocks
        assert index.length_of(blocks - 1) == last
        assert blocks == 1 or index.length_of(0) == BLOCK


images = st.lists(st.sampled_from([bytes(16), b"a" * 16, b"b" * 16]), min_size=1, max_size=12).map(
    b"".join
)
cut_images = st.tuples(images, st.integers(0, 15)).map(
    lambda pair: pair[0][: len(pair[0]) - pair[1]]
)


@given(new=cut_images, old=st.none() | cut_images)
def test_extents_say_what_each_line_says(new: bytes, old: bytes | None) -> None:
    expected = {}
    olds = blocks_of(old) if old else []
    for number, block in enumerate(blocks_of(new)):
        is_same = olds[number : number + 1] == [block]
        zero = Kind.DATA if any(block) else Kind.ZERO
        expected[number] = Kind.SAME if is_same else zero
    with index_of(lines_of(new), len(new)) as index:
        if old is None:
            found = by_block(index.extents(), len(new))
        else:
            with index_of(lines_of(old), len(old)) as since:
                found = by_block(index.extents(since), len(new))
    # A short last block that is the same may be called DATA where the disk was resized.
    last = len(expected) - 1
    if old and len(old) != len(new) and len(new) % BLOCK and expected[last] is Kind.SAME:
        assert found.pop(last) is not Kind.ZERO or not any(blocks_of(new)[last])
        del expected[last]
    assert found == expected


@given(content=cut_images, data=st.data())
def test_extents_of_some_blocks_are_a_part_of_the_extents_of_all(
    content: bytes, data: st.DataObject
) -> None:
    blocks = block_count(len(content), BLOCK)
    first = data.draw(st.integers(0, blocks))
    end = data.draw(st.integers(first, blocks))
    with index_of(lines_of(content), len(content)) as index:
        everything = by_block(index.extents(), len(content))
        some = by_block(index.extents(first=first, end=end), len(content))
    assert some == {number: everything[number] for number in range(first, end)}


@given(cut_images)
@example(b"a" * 16 + bytes(20))
def test_the_blocks_with_data_are_those_that_are_not_zero(content: bytes) -> None:
    blocks = blocks_of(content)
    with index_of(lines_of(content), len(content)) as index:
        for first, end in combinations(range(len(blocks) + 1), 2):
            data = [number for number in range(first, end) if any(blocks[number])]
            assert list(index.data_blocks(first, end)) == data


@given(old=cut_images, new=cut_images)
def test_a_draft_begins_with_the_lines_that_may_be_the_same(old: bytes, new: bytes) -> None:
    """Those of whole blocks, and that of a short last block where the size is the same."""
    with index_of(lines_of(old), len(old)) as parent, draft_of(len(new), parent) as draft:
        whole = min(len(old), len(new)) // BLOCK
        kept = draft.blocks if len(old) == len(new) else whole
        assert draft.file.size() == draft.blocks * LINE
        assert draft.lines(0, kept) == lines_of(old)[: kept * LINE]
        assert draft.lines(kept, draft.blocks - kept) == bytes((draft.blocks - kept) * LINE)


@given(old=cut_images, new=cut_images)
def test_a_draft_that_was_patched_where_it_differs_is_the_index_of_the_new_image(
    old: bytes, new: bytes
) -> None:
    with index_of(lines_of(old), len(old)) as parent, draft_of(len(new), parent) as draft:
        for number in reversed(range(draft.blocks)):
            block = blocks_of(new)[number]
            if draft.lines(number, 1)[:-1].decode() == digest_of(block):
                continue
            if any(block):
                draft.put(number, digest_of(block))
            else:
                draft.put_zero(number, 1)
        assert draft.file.read_bytes(0, 10**6) == lines_of(new)
        assert draft.hash() == digest_of(lines_of(new))


def test_a_draft_of_a_pebibyte_costs_nothing_before_it_is_written() -> None:
    with draft_of(2**50, None, 2**20) as draft:
        assert draft.file.size() == 2**30 * LINE
        assert draft.file.status().st_blocks == 0


def test_more_blocks_than_fit_into_one_piece_are_named_zero() -> None:
    count = 2 * PIECE + 3
    with draft_of(count * BLOCK + 5, None) as draft:
        draft.put_zero(0, count)
        draft.put_zero(count, 1)
        assert [(first, lines) for first, lines, _ in draft.pieces()] == [
            (0, PIECE),
            (PIECE, PIECE),
            (2 * PIECE, 4),
        ]
        assert list(draft.extents()) == [
            Extent(0, count * BLOCK, Kind.ZERO),
            Extent(count * BLOCK, 5, Kind.ZERO),
        ]
        assert draft.digest(count - 1) == digest_of(bytes(BLOCK))
        assert draft.digest(count) == digest_of(bytes(5))


GOOD = lines_of(b"a" * 16 + b"b" * 16 + b"c" * 16)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(GOOD[:-1], "has 194 bytes, not 195", id="cut-short"),
        pytest.param(GOOD + b"\n", "has 196 bytes, not 195", id="too-long"),
        pytest.param(b"", "has 0 bytes, not 195", id="empty"),
        pytest.param(
            GOOD[:LINE] + bytes(LINE) + GOOD[2 * LINE :], "block 1 was never", id="unwritten-line"
        ),
    ],
)
def test_an_index_that_is_not_whole_has_no_hash(lines: bytes, message: str) -> None:
    with index_of(lines, 48) as index, pytest.raises(DamagedError, match=message):
        index.hash()


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"../../../../etc/passwd".ljust(64, b"/") + b"\n", id="a-path"),
        pytest.param(b"A" * 64 + b"\n", id="capitals"),
        pytest.param(b"0" * 64 + b"0", id="no-newline"),
        pytest.param(b"0" * 63 + b"\n\n", id="short"),
        pytest.param(b"\xff" * 64 + b"\n", id="not-ascii"),
        pytest.param(bytes(LINE), id="unwritten"),
        pytest.param(b" " * 64 + b"\n", id="spaces"),
    ],
)
def test_a_line_that_is_not_a_hash_is_damage(line: bytes) -> None:
    with index_of(GOOD[:LINE] + line + GOOD[2 * LINE :], 48) as index:
        assert index.digest(0) == digest_of(b"a" * 16)
        with pytest.raises(DamagedError, match="line 1 is not a hash"):
            index.digest(1)


@given(st.binary(min_size=LINE, max_size=LINE))
def test_whatever_a_line_says_a_digest_is_64_hex_digits(line: bytes) -> None:
    with index_of(line, BLOCK) as index:
        try:
            digest = index.digest(0)
        except DamagedError:
            return
        assert len(digest) == 64
        assert set(digest) <= set("0123456789abcdef")


def test_a_file_that_ends_too_early_is_damaged_and_says_where() -> None:
    with index_of(GOOD[: LINE + 10], 48) as index:
        for read in (lambda: index.lines(0, 3), lambda: list(index.extents())):
            with pytest.raises(DamagedError, match="ends in line 1"):
                read()


def test_a_parent_that_is_shorter_than_its_size_says_cannot_begin_a_draft() -> None:
    with index_of(GOOD[:LINE], 48) as parent, pytest.raises(OSError, match="ends at 65"):  # noqa: SIM117
        with draft_of(48, parent):
            pass
