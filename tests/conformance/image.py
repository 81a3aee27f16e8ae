"""What every Image promises.  An image joins with a class of its own in a test module:

class TestMyImage(ImageSuite):
    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        yield MyImage(content)
"""

from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest

from backy.errors import SourceError, StoreError, TargetError
from backy.image.image import Image
from backy.model.extent import Kind
from backy.units import KiB
from tests.lab.watchdog import ends
from tests.memory_source import sample

STEP = 64 * KiB  # bytes; the block size, where an image has one


class ImageSuite:
    """One kind of image, at sizes that are and are not multiples of blocks, pages and sectors."""

    sizes: ClassVar = [
        pytest.param(5 * STEP, id="whole-blocks"),
        pytest.param(4 * STEP + 12_345, id="short-last-block"),
        pytest.param(4 * STEP + 512, id="whole-sectors"),
        pytest.param(1, id="one-byte"),
    ]

    @abstractmethod
    def open(self, content: bytes, folder: Path) -> AbstractContextManager[Image]:
        """An image of `content`; `folder` is empty and may be used for it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """An empty folder on the file system that the image is for."""
        return tmp_path

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "content" in metafunc.fixturenames:
            metafunc.parametrize("size", self.sizes)

    @pytest.fixture
    def content(self, size: int) -> bytes:
        return sample(size)

    @pytest.fixture
    def image(self, content: bytes, folder: Path) -> Iterator[Image]:
        with self.open(content, folder) as image:
            yield image

    def test_has_the_size_of_its_content(self, image: Image, content: bytes) -> None:
        assert image.size == len(content)

    def test_extents_cover_it_ascending_and_without_gaps(self, image: Image) -> None:
        end = 0
        for extent in image.extents():
            assert extent.start == end
            assert extent.length > 0
            end = extent.end
        assert end == image.size

    def test_extents_can_be_asked_for_again(self, image: Image) -> None:
        assert list(image.extents()) == list(image.extents())

    def test_what_is_called_zero_is_zero(self, image: Image, content: bytes) -> None:
        for extent in image.extents():
            if extent.kind is Kind.ZERO:
                assert not any(content[extent.start : extent.end])

    def test_is_read_whole_at_once(self, image: Image, content: bytes) -> None:
        assert read(image, 0, image.size) == content

    def test_is_read_at_any_offset_and_length(self, image: Image, content: bytes) -> None:
        random = Random(3)
        edges = [0, 1, 511, 512, 4095, 4096, STEP - 1, STEP, STEP + 1, 2 * STEP, image.size - 1]
        for start in [*edges, *(random.randrange(image.size) for _ in range(40))]:
            for end in [start + 1, start + 4096, start + STEP, random.randrange(image.size) + 1]:
                if start < end <= image.size:
                    assert read(image, start, end - start) == content[start:end]

    def test_nothing_is_read_into_an_empty_buffer(self, image: Image) -> None:
        assert read(image, 0, 0) == b""

    def test_bytes_around_the_buffer_are_left_alone(self, image: Image, content: bytes) -> None:
        around = bytearray(b"x" * (image.size + 2))
        image.readinto(0, memoryview(around)[1:-1])
        assert around == b"x" + content + b"x"

    def test_several_threads_read_at_once(self, image: Image, content: bytes) -> None:
        random = Random(5)
        starts = [random.randrange(image.size) for _ in range(200)]
        ranges = [(start, random.randint(1, image.size - start)) for start in starts]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda each: read(image, *each), ranges))
        assert found == [content[start : start + length] for start, length in ranges]

    def test_a_read_beyond_the_end_is_an_error(self, image: Image) -> None:
        for start in {0, image.size - 1, image.size}:
            for end in (image.size + 1, image.size + 2 * STEP):
                with ends(), pytest.raises((SourceError, StoreError, TargetError)):
                    read(image, start, end - start)


def read(image: Image, offset: int, length: int) -> bytes:
    """What an image holds there; the buffer begins with other bytes than were ever stored."""
    content = bytearray(b"\xaa" * length)
    image.readinto(offset, memoryview(content))
    return bytes(content)
