"""Store "chunks": one file for each different block, chunks/ab/abcd….zst, named by its digest.

For file systems that cannot share extents. That a chunk's file exists proves nothing: after a
crash it may be torn. A draft relies on a chunk only if its parent's index has the digest in the
same place, if the draft wrote the chunk itself, or if it read the chunk and the hash is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from backy.errors import DamagedError, StoreError, translated
from backy.model.extent import Extent
from backy.model.revision import Revision
from backy.stores.blocks import BY_DIGEST, BlockBuffer, BlockStore
from backy.stores.codec import Codec
from backy.stores.index import Index
from backy.stores.named_files import NamedFiles
from backy.system import files, folders
from backy.system.files import Cache
from backy.system.place import Place

if TYPE_CHECKING:
    from backy.stores.used import Used

# How many digests a draft remembers as stored, in 20 MiB. The chunks of others are read again.
_REMEMBERED = 1 << 17


class ChunkStore(BlockStore):
    """A Store; see there for the contract."""

    shares_blocks = True

    def __init__(self, root: Place, block_size: int, codec: Codec) -> None:
        super().__init__(root, block_size, codec)
        self._files = NamedFiles(root / "chunks", codec.suffix)
        self._buffers = _buffers(block_size, codec.largest_frame(block_size))

    def new_blocks(
        self, folder: Place, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[ChunkBlocks]:
        return nullcontext(self._blocks(Cache.SPARE))

    def _old_blocks(
        self, path: Place, size: int, cache: Cache, *, may_be_cut: bool
    ) -> AbstractContextManager[ChunkBlocks]:
        return nullcontext(self._blocks(cache))

    def _blocks(self, cache: Cache) -> ChunkBlocks:
        return ChunkBlocks(self._files, self.block_size, self._codec, self._buffers, cache)

    def collect(self, used: Used, leave: Callable[[Place], None] = lambda _: None) -> int:
        """See Store. May keep a few unused chunks, see UsedDigests."""
        freed = super().collect(used, leave)
        return freed + used.remove_other_blocks(self._files, leave)


class ChunkBuffers(BlockBuffer):
    """A buffer of one block, and one of a frame, for each thread."""

    def __init__(self, block_size: int, largest_frame: int) -> None:
        super().__init__(block_size)
        self._largest_frame = largest_frame

    @cached_property
    def frame(self) -> memoryview:
        """Page-aligned; a page longer than any frame, so that a longer file is noticed."""
        return files.buffer(self._largest_frame + files.PAGE)


@lru_cache(maxsize=4)
def _buffers(block_size: int, largest_frame: int) -> ChunkBuffers:
    """Those of all stores with such blocks: a server has many of them open at once."""
    return ChunkBuffers(block_size, largest_frame)


class ChunkBlocks:
    """Blocks in chunk files."""

    def __init__(
        self, chunks: NamedFiles, block_size: int, codec: Codec, buffers: ChunkBuffers, cache: Cache
    ) -> None:
        self._files = chunks
        self._block_size = block_size
        self._codec = codec
        self._buffers = buffers
        self._cache = cache
        self._written: dict[str, None] = {}

    def get(self, number: int, digest: str, block: memoryview) -> None:
        """Decode a chunk straight into `block`."""
        path = self._files.path(digest)
        where = f"block {number} (byte {number * self._block_size}): {path}"
        with translated(StoreError, where):
            frame = self._read(path, where)
        try:
            self._codec.decode(frame, block)
        except DamagedError as error:
            raise DamagedError(f"{where}: {error.message}") from error

    def _read(self, path: Place, where: str) -> memoryview:
        frame = self._buffers.frame
        try:
            with files.open_to_read(path, self._cache) as file:
                # Not all of the buffer, which would look as if only a part were in the page cache.
                pages = -(-file.size() // files.PAGE)
                length = file.read_into(0, frame[: pages * files.PAGE])
        except FileNotFoundError:
            raise DamagedError(f"{where} is missing") from None
        if length == len(frame):
            raise DamagedError(f"{where} is larger than any chunk of this repository")
        return frame[:length]

    def put(self, number: int, digest: str, block: memoryview) -> int:
        """Write a chunk, unless this draft did so before, or its file exists and is good."""
        if digest in self._written:
            return 0
        path = self._files.path(digest)
        stored = 0
        with translated(StoreError, f"writing the chunk of block {number}, {path}"):
            exists = path.exists()
            if not (exists and self._is_good(number, digest, len(block))):
                frame = self._encode(block)
                stored = len(frame)
                (self._files.replace if exists else self._files.create)(path, frame)
        if len(self._written) < _REMEMBERED:
            self._written[digest] = None
        return stored

    def _is_good(self, number: int, digest: str, length: int) -> bool:
        """Whether a chunk holds its block; reads it to find out."""
        block = self._buffers.block[:length]
        try:
            self.get(number, digest, block)
        except StoreError:
            return False
        return self._codec.digest(block) == digest

    def _encode(self, block: memoryview) -> memoryview:
        frame = self._buffers.frame
        return frame[: self._codec.encode(block, frame)]

    def clear(self, first: int, count: int, length: int) -> int:
        """Zero blocks have a chunk like others. Blocks of one length share it."""
        return self.put(first, self._codec.zero_digest(length), memoryview(bytes(length)))

    def extents(self, index: Index) -> Iterator[Extent]:
        """Those of the index."""
        return index.extents()

    def locations(self, first: int, count: int) -> list[bytes | None]:
        """A digest says where its chunk is."""
        return [BY_DIGEST] * count

    def read_stored(self, number: int, digest: str, length: int) -> bytes:
        """The content of the chunk's file."""
        return folders.read_file(self._files.path(digest), len(self._buffers.frame))

    def repair(self, number: int, digest: str, block: memoryview) -> None:
        """Replace the chunk, or create it."""
        path = self._files.path(digest)
        with translated(StoreError, f"writing the chunk of block {number}, {path}"):
            self._files.repair(path, self._encode(block))

    def is_stored(self, digest: str) -> bool | None:
        """Whether its chunk has a name."""
        with translated(StoreError, f"looking for chunk {digest}"):
            return self._files.path(digest).exists()
