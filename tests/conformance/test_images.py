"""Every image, of a source or of a store, keeps the promises of an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from backy.image.cache import BlockCache, CachedImage
from backy.image.image import Image
from backy.operations.heal import StoredDisk, healing
from backy.operations.healing_image import HealingImage
from backy.sources import Request
from backy.sources.file import FileSource
from backy.stores import StoreClass
from backy.stores.chunks import ChunkStore
from backy.stores.images import ImageStore
from backy.targets.file import FileTarget
from tests.conformance.image import STEP, ImageSuite
from tests.conformance.shelf import Shelf
from tests.lab.devices import device_of, needs_loop_devices
from tests.lab.handmade import write_sparse
from tests.lab.repositories import Made
from tests.memory_origin import Copy
from tests.memory_source import BytesImage
from tests.memory_store import MemoryStore
from tests.snapshots import opened


class TestMemory(ImageSuite):
    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        yield BytesImage(content)


class TestChunks(ImageSuite):
    make_store: ClassVar[StoreClass] = ChunkStore

    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        shelf = Shelf.new(folder, type(self).make_store, STEP)
        with shelf.open(shelf.publish(content)) as image:
            yield image


class TestMemoryStore(TestChunks):
    make_store: ClassVar[StoreClass] = MemoryStore


class TestImagesOnXfs(TestChunks):
    make_store: ClassVar[StoreClass] = ImageStore

    @pytest.fixture
    def folder(self, xfs: Path) -> Path:
        return xfs


class TestImagesOnBtrfs(TestImagesOnXfs):
    @pytest.fixture
    def folder(self, btrfs: Path) -> Path:
        return btrfs


class TestRegularFile(ImageSuite):
    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        path = folder / "disk.img"
        path.write_bytes(content)
        yield from from_source(path)


class TestSparseFile(ImageSuite):
    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        path = folder / "disk.img"
        write_sparse(path, content)
        yield from from_source(path)


class TestCloneOnXfs(TestSparseFile):
    @pytest.fixture
    def folder(self, xfs: Path) -> Path:
        return xfs


@needs_loop_devices
class TestBlockDevice(ImageSuite):
    sizes: ClassVar = [
        pytest.param(5 * STEP, id="whole-blocks"),
        pytest.param(4 * STEP + 512 * 7, id="whole-sectors"),
    ]

    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        with device_of(content, folder) as device:
            yield from from_source(device)


class TestTargetThatIsReadBack(ImageSuite):
    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        write_sparse(folder / "disk.img", content)
        opened = FileTarget(str(folder / "disk.img")).read_back()
        assert opened
        with opened as image:
            yield image


class TestHealing(ImageSuite):
    """Every block is damaged, and comes from a copy."""

    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        made = Made(folder)
        revision = made.backup(content)
        for name in set(made.lines(revision)):
            made.chunk(revision, made.lines(revision).index(name)).write_bytes(b"damaged")
        with (
            made.repository.store.open(revision, "vda") as image,
            healing(made.repository, "restore", [Copy({"vda": content})]) as healer,
        ):
            yield HealingImage(StoredDisk(revision, "vda", image), healer, keep_going=False)


class TestCached(ImageSuite):
    """In a cache that is smaller than the image."""

    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        with BlockCache(3 * STEP) as cache:
            yield CachedImage(BytesImage(content), STEP, cache)


def from_source(path: Path) -> Iterator[Image]:
    source = FileSource(disks={"vda": str(path)})
    with opened(source, Request("20261123T004938Z-x7k2")) as snapshot:
        yield snapshot.disks["vda"]
