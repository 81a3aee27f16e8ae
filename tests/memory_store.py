"""A second implementation of Store and Blocks: blocks in a dict, indexes and pages in a folder.

It is what each real store is compared with, so it is as plain as can be: no threads of its own,
nothing clever, nothing on disk but the indexes and pages.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from backy.errors import DamagedError
from backy.model.extent import Extent
from backy.model.revision import Revision
from backy.stores.blocks import BY_DIGEST, BlockStore
from backy.stores.codec import Codec
from backy.stores.index import Index
from backy.stores.used import Used
from backy.system.files import Cache
from backy.system.place import Place


class MemoryStore(BlockStore):
    """A Store; see there for the contract."""

    shares_blocks = True

    def __init__(self, root: Place, block_size: int, codec: Codec) -> None:
        super().__init__(root, block_size, codec)
        self.blocks = MemoryBlocks(block_size, codec)

    def new_blocks(
        self, folder: Place, disk: str, size: int, parent: Revision | None
    ) -> "AbstractContextManager[MemoryBlocks]":
        return nullcontext(self.blocks)

    def _old_blocks(
        self, path: Place, size: int, cache: Cache, *, may_be_cut: bool
    ) -> "AbstractContextManager[MemoryBlocks]":
        return nullcontext(self.blocks)

    def collect(self, used: Used, leave: Callable[[Place], None] = lambda _: None) -> int:
        freed = super().collect(used, leave)
        unused = [digest for digest in self.blocks.plain if not used.is_block(digest)]
        return freed + sum(len(self.blocks.plain.pop(digest)) for digest in unused)


class MemoryBlocks:
    """Plain blocks by their digest."""

    def __init__(self, block_size: int, codec: Codec) -> None:
        self.plain: dict[str, bytes] = {}
        self._block_size = block_size
        self._codec = codec

    def get(self, number: int, digest: str, block: memoryview) -> None:
        plain = self.plain.get(digest, b"")
        if len(plain) != len(block):
            raise DamagedError(f"block {number} (byte {number * self._block_size}) is missing")
        block[:] = plain

    def put(self, number: int, digest: str, block: memoryview) -> int:
        self.plain[digest] = bytes(block)
        return len(block)

    def clear(self, first: int, count: int, length: int) -> int:
        return self.put(first, self._codec.zero_digest(length), memoryview(bytes(length)))

    def extents(self, index: Index) -> Iterator[Extent]:
        return index.extents()

    def locations(self, first: int, count: int) -> list[bytes | None]:
        return [BY_DIGEST] * count

    def read_stored(self, number: int, digest: str, length: int) -> bytes:
        return self.plain.get(digest, b"")

    def repair(self, number: int, digest: str, block: memoryview) -> None:
        self.plain[digest] = bytes(block)

    def is_stored(self, digest: str) -> bool | None:
        return digest in self.plain
