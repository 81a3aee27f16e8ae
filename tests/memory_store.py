"""A second implementation of Store and Blocks: blocks in a dict, indexes below a temporary folder.

It is what each real store is compared with, so it is as plain as can be: no threads of its own,
nothing clever, nothing on disk but the indexes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backy.disk import Cache
from backy.errors import DamagedError
from backy.extent import Extent
from backy.index import Index, zero_digest
from backy.revision import Revision
from backy.stores.blocks import (
    NAMED,
    BlockDraft,
    StoredImage,
    index_draft,
    index_path,
    open_index,
    parent_index,
)


class MemoryStore:
    """A Store; see there for the contract."""

    shares_blocks = True

    def __init__(self, root: Path, block_size: int, level: int = 1) -> None:
        self.blocks = MemoryBlocks(block_size)
        self._root = root
        self._block_size = block_size

    @contextmanager
    def draft(
        self, folder: Path, disk: str, size: int, parent: Revision | None
    ) -> Iterator[BlockDraft]:
        with (
            parent_index(parent, disk, self._root) as old,
            index_draft(folder / f"{disk}.blocks", size, self._block_size, old) as index,
        ):
            yield BlockDraft(index, self.blocks, has_parent=bool(parent))

    @contextmanager
    def open(
        self,
        revision: Revision,
        disk: str,
        cache: Cache = Cache.SPARE,
        *,
        is_partial_fine: bool = False,
    ) -> Iterator[StoredImage]:
        with open_index(self._root, revision, disk) as index:
            yield StoredImage(index, self.blocks)

    def plain_path(self, revision: Revision, disk: str) -> Path:
        return index_path(self._root, revision, disk)

    def collect(self, indexes: Iterable[Index]) -> int:
        named = {index.digest(number) for index in indexes for number in range(index.blocks)}
        unnamed = self.blocks.plain.keys() - named
        return sum(len(self.blocks.plain.pop(digest)) for digest in unnamed)


class MemoryBlocks:
    """Plain blocks by their hash."""

    def __init__(self, block_size: int) -> None:
        self.plain: dict[str, bytes] = {}
        self._block_size = block_size

    def get(self, number: int, digest: str, block: memoryview) -> None:
        plain = self.plain.get(digest, b"")
        if len(plain) != len(block):
            raise DamagedError(f"block {number} (byte {number * self._block_size}) is missing")
        block[:] = plain

    def put(self, number: int, digest: str, block: memoryview) -> int:
        self.plain[digest] = bytes(block)
        return len(block)

    def clear(self, first: int, count: int, length: int) -> int:
        return self.put(first, zero_digest(length), memoryview(bytes(length)))

    def extents(self, index: Index) -> Iterator[Extent]:
        return index.extents()

    def places(self, first: int, count: int) -> list[bytes | None]:
        return [NAMED] * count

    def evidence(self, number: int, digest: str, length: int) -> bytes:
        return self.plain.get(digest, b"")

    def mend(self, number: int, digest: str, block: memoryview) -> None:
        self.plain[digest] = bytes(block)
