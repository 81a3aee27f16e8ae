"""A cache of blocks holds as much as it may, and reads nothing twice at once."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from random import Random

import pytest

from backy.errors import DamagedError
from backy.image.cache import BlockCache, CachedImage
from backy.units import KiB
from tests.memory_source import BytesImage, sample

BLOCK = 64 * KiB


class CountingImage(BytesImage):
    """Remembers what was read; reads wait for `may_go`, and fail in `bad` blocks."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads: list[int] = []
        self.bad: set[int] = set()
        self.may_go = threading.Event()
        self.may_go.set()

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self.reads.append(offset // BLOCK)
        self.may_go.wait(60)
        if offset // BLOCK in self.bad:
            raise DamagedError("damaged")
        super().readinto(offset, buffer)


@pytest.fixture
def cache() -> Iterator[BlockCache]:
    with BlockCache(8 * BLOCK) as cache:
        yield cache


@pytest.fixture
def image() -> CountingImage:
    return CountingImage(sample(40 * BLOCK))


@pytest.fixture
def cached(image: CountingImage, cache: BlockCache) -> CachedImage:
    return CachedImage(image, BLOCK, cache)


def loaded(cached: CachedImage, offset: int) -> None:
    """Wait until a block is in memory. Raises what reading it raises."""
    if done := cached.start(offset):
        done.result(60)


def test_a_block_is_read_once_for_many_small_reads(
    image: CountingImage, cached: CachedImage
) -> None:
    for offset in range(0, BLOCK, 4096):
        cached.read(offset, 4096)
    assert image.reads == [0]


def test_threads_that_want_one_block_cause_one_read(
    image: CountingImage, cached: CachedImage
) -> None:
    image.may_go.clear()
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(cached.read, 100, 50) for _ in range(8)]
        wait(reads, timeout=0.2)
        image.may_go.set()
    assert {read.result() for read in reads} == {image.content[100:150]}
    assert image.reads == [0]


def test_the_block_that_was_not_used_for_longest_makes_room(
    image: CountingImage, cached: CachedImage
) -> None:
    for number in (0, 2, 4, 6, 8, 10, 12, 14, 0, 16):
        cached.read(number * BLOCK, 1)
    image.reads.clear()
    for number in (0, 4, 16, 2):
        cached.read(number * BLOCK, 1)
    assert image.reads == [2]


def test_the_limit_holds_for_all_images_together(cache: BlockCache) -> None:
    images = [CountingImage(sample(40 * BLOCK)) for _ in range(3)]
    readers = [CachedImage(image, BLOCK, cache) for image in images]
    for reader in readers:
        assert b"".join(map(bytes, reader.pieces(0, reader.size))) == images[0].content
    assert sum(len(block.buffer) for block in cache._blocks.values()) <= 8 * BLOCK
    assert cache._size <= 8 * BLOCK


def test_images_with_blocks_of_different_sizes_share_the_limit(cache: BlockCache) -> None:
    content = sample(40 * BLOCK)
    small, large = (CachedImage(BytesImage(content), n * BLOCK, cache) for n in (1, 4))
    random = Random(1)
    for _ in range(300):
        start = random.randrange(len(content) - 1)
        length = random.randint(1, min(3 * BLOCK, len(content) - start))
        assert random.choice([small, large]).read(start, length) == content[start : start + length]
        assert cache._size <= 8 * BLOCK


def test_a_reader_in_order_finds_the_next_blocks_read(
    image: CountingImage, cached: CachedImage
) -> None:
    for offset in range(0, 2 * BLOCK, BLOCK // 4):
        cached.read(offset, BLOCK // 4)
    deadline = time.monotonic() + 60
    while not {2, 3, 4} <= set(image.reads) and time.monotonic() < deadline:
        time.sleep(0.01)  # other threads read them
    assert {2, 3, 4} <= set(image.reads)


def test_a_reader_here_and_there_reads_nothing_ahead(
    image: CountingImage, cached: CachedImage
) -> None:
    for number in (5, 3, 9, 7, 20, 1):
        cached.read(number * BLOCK + 5, 10)
    assert image.reads == [5, 3, 9, 7, 20, 1]


def test_what_is_read_ahead_pushes_out_at_most_half(cached: CachedImage, cache: BlockCache) -> None:
    for start in range(0, 40, 4):
        cached.read(start * BLOCK, 1)
        cached.read((start + 1) * BLOCK, 1)
        assert cache._ahead <= 4 * BLOCK
    assert cache._size <= 8 * BLOCK


def test_an_error_is_raised_and_the_block_is_read_again_next_time(
    image: CountingImage, cached: CachedImage
) -> None:
    image.bad = {3}
    with pytest.raises(DamagedError):
        cached.read(2 * BLOCK, 3 * BLOCK)
    with pytest.raises(DamagedError):
        loaded(cached, 3 * BLOCK)
    image.bad = set()
    assert cached.read(2 * BLOCK, 3 * BLOCK) == image.content[2 * BLOCK : 5 * BLOCK]


def test_who_no_longer_waits_for_a_block_stops_nobody_else(
    image: CountingImage, cached: CachedImage
) -> None:
    image.may_go.clear()
    reading = cached.start(0)
    assert reading
    assert not reading.cancel()
    image.may_go.set()
    assert cached.read(0, 10) == image.content[:10]
    cached.close()


def test_an_image_that_is_closed_leaves_nothing(cached: CachedImage, cache: BlockCache) -> None:
    cached.read(0, 4 * BLOCK)
    cached.close()
    assert not cache._blocks
    assert not cache._streams
    assert not cache._size
    assert not cache._ahead


def test_bytes_in_use_are_not_replaced(image: CountingImage, cached: CachedImage) -> None:
    cached.read(0, 1)
    with cached.cached(0, BLOCK) as piece:
        assert piece is not None
        for number in range(1, 40):
            cached.read(number * BLOCK, 1)
        assert piece == image.content[:BLOCK]
