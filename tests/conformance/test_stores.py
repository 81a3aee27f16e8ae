"""Every store keeps the promises of a store."""

import os
from pathlib import Path
from typing import ClassVar

import pytest
from blake3 import blake3

from backy.model.revision import Revision
from backy.stores import StoreClass
from backy.stores.chunks import ChunkStore
from backy.stores.codec import Codec
from backy.stores.images import ImageStore
from backy.units import KiB
from tests.conformance.shelf import Shelf, digests
from tests.conformance.store import StoreSuite
from tests.keyed_codec import KEY, KeyedCodec
from tests.memory_store import MemoryStore


class TestChunks(StoreSuite):
    make_store: ClassVar[StoreClass] = ChunkStore

    def damage(self, shelf: Shelf, revision: Revision, number: int) -> None:
        digest = digests(shelf, revision)[number]
        flip(shelf.root / "chunks" / digest[:2] / f"{digest}{self.codec.suffix}", 100)


class TestImagesOnXfs(StoreSuite):
    make_store: ClassVar[StoreClass] = ImageStore

    @pytest.fixture
    def folder(self, xfs: Path) -> Path:
        return xfs

    def damage(self, shelf: Shelf, revision: Revision, number: int) -> None:
        flip(shelf.store.plain_path(revision, "vda").path, number * shelf.block_size + 1000)


class TestImagesOnBtrfs(TestImagesOnXfs):
    @pytest.fixture
    def folder(self, btrfs: Path) -> Path:
        return btrfs


class TestMemory(StoreSuite):
    make_store: ClassVar[StoreClass] = MemoryStore

    def damage(self, shelf: Shelf, revision: Revision, number: int) -> None:
        assert isinstance(shelf.store, MemoryStore)
        blocks, digest = shelf.store.blocks.plain, digests(shelf, revision)[number]
        blocks[digest] = b"x" + blocks[digest][1:]


class WithAnotherCodec(StoreSuite):
    """Nothing depends on the codec of format 1; one block size shows it as well as several."""

    codec: ClassVar[Codec] = KeyedCodec()

    @staticmethod
    def digest(content: bytes) -> str:
        return blake3(content, key=KEY).hexdigest()

    @pytest.fixture
    def shelf(self, folder: Path) -> Shelf:
        return self.new_shelf(folder, 64 * KiB)


class TestChunksWithAnotherCodec(WithAnotherCodec, TestChunks):
    """All of the suite again."""


class TestImagesWithAnotherCodec(WithAnotherCodec, TestImagesOnXfs):
    """All of the suite again."""


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        [byte] = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 0xFF]), offset)
