"""Blocks that a source reports as unchanged are checked: each of them once in 30 days."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.image.image import Image
from backy.model.extent import Extent, Kind
from backy.model.revision import Trust
from backy.monitoring.health import Judge, Promise
from backy.operations.backup import backup
from backy.operations.tracking_check import PERIOD_SECONDS, TrackedImage, blocks_to_check
from backy.repository import status
from backy.repository.summary import summarize
from backy.sources import Request
from backy.stores.draft import IndexDraft
from backy.stores.pages import Pages
from backy.stores.zstd import ZstdCodec
from backy.system import files
from backy.system.place import Place
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import BytesImage, MemorySnapshot, MemorySource, changed, sample

START = datetime(2026, 11, 23, 0, 49, 38, tzinfo=UTC)
NAME = "ab" * 32


@contextmanager
def index_of(blocks: int, data: set[int]) -> Iterator[IndexDraft]:
    """An index with data in these blocks, and zeroes elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        root, codec = Place.at(Path(folder)), ZstdCodec(1)
        with files.create(root / "scratch") as scratch:
            index = IndexDraft(scratch, blocks * BLOCK, BLOCK, Pages(root, codec), None)
            index.put_zero(0, blocks)
            for number in data:
                index.put(number, NAME)
            yield index


def numbers(ranges: list[range]) -> set[int]:
    return {number for each in ranges for number in each}


@given(
    blocks=st.integers(1, 500),
    seconds=st.lists(st.integers(1, PERIOD_SECONDS), min_size=1, max_size=30),
)
def test_every_block_has_its_turn_within_thirty_days_whenever_deltas_are_made(
    blocks: int, seconds: list[int]
) -> None:
    compared: set[int] = set()
    now, end = START, START + timedelta(seconds=PERIOD_SECONDS)
    with index_of(blocks, set()) as index:
        for step in [*seconds, PERIOD_SECONDS]:
            since, now = now, min(now + timedelta(seconds=step), end)
            compared |= numbers(blocks_to_check([range(blocks)], index, since, now))
    assert compared == set(range(blocks))


@given(blocks=st.integers(1, 200), data=st.sets(st.integers(0, 199)), gaps=st.data())
def test_a_delta_compares_at_least_four_blocks_with_data_and_only_what_is_called_unchanged(
    blocks: int, data: set[int], gaps: st.DataObject
) -> None:
    data = {number for number in data if number < blocks}
    called = gaps.draw(st.sets(st.integers(0, blocks - 1)))
    with index_of(blocks, data) as index:
        same = [range(number, number + 1) for number in sorted(called)]
        picked = numbers(blocks_to_check(same, index, START, START))
    assert picked <= called
    assert len(picked & data) >= min(4, len(called & data))


def test_after_the_clock_was_set_back_some_blocks_are_still_compared() -> None:
    with index_of(100, set(range(100))) as index:
        picked = blocks_to_check([range(100)], index, START, START - timedelta(days=1))
    assert len(numbers(picked)) == 4


def test_a_delta_after_a_long_break_compares_each_block_once() -> None:
    with index_of(100, set()) as index:
        picked = blocks_to_check([range(100)], index, START, START + timedelta(days=400))
    assert picked == [range(100)]


class Told(BytesImage):
    """An image with extents as told."""

    def __init__(self, size: int, extents: list[Extent]) -> None:
        super().__init__(bytes(size))
        self._told = extents

    def extents(self) -> Iterator[Extent]:
        return iter(self._told)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        pytest.param(0, 350, [range(4)], id="all-with-a-short-last-block"),
        pytest.param(0, 349, [range(3)], id="all-but-the-last-byte"),
        pytest.param(50, 320, [range(1, 3)], id="parts-of-blocks-are-read-anyway"),
        pytest.param(110, 190, [], id="within-a-block"),
    ],
)
def test_whole_blocks_that_are_called_unchanged_are_remembered(
    start: int, end: int, expected: list[range]
) -> None:
    parts = [(0, start, Kind.DATA), (start, end, Kind.SAME), (end, 350, Kind.DATA)]
    extents = [Extent(low, high - low, kind) for low, high, kind in parts if low < high]
    tracked = TrackedImage(Told(350, extents), 100)
    assert list(tracked.extents()) == extents
    assert tracked.unchanged == expected


def test_what_is_damaged_in_the_parent_is_not_called_unchanged() -> None:
    damaged = [(150, 100), (100, 60), (500, 100), (390, 100)]
    tracked = TrackedImage(Told(400, [Extent(0, 400, Kind.SAME)]), 100, damaged)
    assert list(tracked.extents()) == [
        Extent(0, 100, Kind.SAME),
        Extent(100, 150, Kind.DATA),
        Extent(250, 140, Kind.SAME),
        Extent(390, 10, Kind.DATA),
    ]
    assert tracked.unchanged == [range(1)]


class FaultySource(MemorySource):
    """Misses changes in some blocks."""

    missed: frozenset[int] = frozenset()

    @contextmanager
    def opened(self, request: Request, disks: Mapping[str, bytes]) -> Iterator[MemorySnapshot]:
        with super().opened(request, disks) as snapshot:
            if request.parent:
                made: dict[str, Image] = {
                    name: FaultyImage(content, self.known[request.parent.id][name], self.missed)
                    for name, content in self.disks.items()
                }
                snapshot.disks = made  # type: ignore[assignment]
            yield snapshot


class FaultyImage(BytesImage):
    def __init__(self, content: bytes, parent: bytes, missed: frozenset[int]) -> None:
        believed = bytearray(parent)
        for number in missed:
            block = slice(number * BLOCK, (number + 1) * BLOCK)
            believed[block] = content[block]
        super().__init__(content, bytes(believed))


@pytest.mark.parametrize("hours", [1, 24, 5 * 24], ids=lambda hours: f"every-{hours}-hours")
def test_a_tracking_error_in_one_block_of_a_hundred_is_found_within_thirty_days(
    hours: int, tmp_path: Path
) -> None:
    made = Made(tmp_path)
    first = sample(300 * BLOCK)
    source = FaultySource({"vda": first}, {})
    now = START
    newest = backup(made.repository, source, now=now)
    source.known = {newest.id: {"vda": first}}
    missed = source.missed = frozenset({41, 250, 299})
    content = changed(first, *(number * BLOCK + 17 for number in missed))
    source.disks = {"vda": content}
    before = newest
    while now < START + timedelta(days=30):
        before, now = newest, now + timedelta(hours=hours)
        newest = backup(made.repository, source, now=now)
        if status.read_status(made.root).tracking_errors:
            break
        # Nothing was noticed, so the source reports changes since this revision.
        source.known = {newest.id: {"vda": content}}
    assert made.read(newest) == content, "it became a full scan"
    assert made.again(before).trust is Trust.DISTRUSTED
    assert "reported changed blocks of disk vda as unchanged" in " ".join(newest.warnings)
    assert newest.trust is Trust.TRUSTED
    later = now + timedelta(minutes=1)
    found = Judge(later).job(summarize(made.base, "vm1", later), Promise(hours * 3600))
    assert any("changed blocks as unchanged" in each.text for each in found)


def test_correct_change_tracking_is_checked_and_relied_on(tmp_path: Path) -> None:
    made = Made(tmp_path)
    content = sample(50 * BLOCK)
    first = backup(made.repository, MemorySource({"vda": content}), now=START)
    new = changed(content, 5 * BLOCK)
    source = MemorySource({"vda": new}, {first.id: {"vda": content}})
    second = backup(made.repository, source, now=START + timedelta(days=3))
    disk = second.disks["vda"]
    # A tenth of the blocks is due in a tenth of the time, and four more wherever they are.
    assert 4 * BLOCK <= disk.compared <= 10 * BLOCK
    assert disk.read == disk.compared + disk.changed == disk.compared + BLOCK
    assert made.again(first).trust is Trust.TRUSTED
    assert status.read_status(made.root).tracking_errors == 0
    assert made.read(second) == new


def test_the_parent_is_distrusted_even_if_the_backup_that_found_the_error_fails(
    tmp_path: Path,
) -> None:
    made = Made(tmp_path)
    content = sample(8 * BLOCK)
    first = backup(made.repository, MemorySource({"vda": content}), now=START)
    source = FaultySource({"vda": changed(content, 17)}, {first.id: {"vda": content}})
    source.missed = frozenset({0})
    source.files = {"revision.json": b"a name that backy uses itself, so that it fails at the end"}
    with pytest.raises(Exception, match="a name that backy uses itself"):
        backup(made.repository, source, now=START + timedelta(days=30))
    assert made.again(first).trust is Trust.DISTRUSTED
    source.files = {}
    again = backup(made.repository, source, now=START + timedelta(days=31))
    assert again.parent is None
    assert made.read(again) == changed(content, 17)
