"""Every store keeps the promises of a store."""

import os
from pathlib import Path
from typing import ClassVar

import pytest

from backy.model.revision import Revision
from backy.stores import StoreClass
from backy.stores.chunks import ChunkStore
from backy.stores.images import ImageStore
from tests.conformance.shelf import Shelf, digests
from tests.conformance.store import StoreSuite
from tests.memory_store import MemoryStore


class TestChunks(StoreSuite):
    make_store: ClassVar[StoreClass] = ChunkStore

    def damage(self, shelf: Shelf, revision: Revision, number: int) -> None:
        digest = digests(shelf, revision)[number]
        flip(shelf.root / "chunks" / digest[:2] / f"{digest}.zst", 100)


class TestImagesOnXfs(StoreSuite):
    make_store: ClassVar[StoreClass] = ImageStore

    @pytest.fixture
    def folder(self, xfs: Path) -> Path:
        return xfs

    def damage(self, shelf: Shelf, revision: Revision, number: int) -> None:
        flip(shelf.store.plain_path(revision, "vda"), number * shelf.block_size + 1000)


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


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        [byte] = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 0xFF]), offset)
