"""Store "chunks": a compressed frame a block, in chunks/ab/abcd….zst, named by its digest.

For file systems that cannot share extents. A chunk is only relied on when a published index or
the draft itself names it, or when it was read and has the right hash; never because its file
exists: a file that a crash left may be torn.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path

from backy.errors import DamagedError, StoreError, translated
from backy.model.extent import Extent
from backy.model.revision import Revision
from backy.stores.blocks import BY_DIGEST, BlockStore, Scratch
from backy.stores.codec import Codec
from backy.stores.index import LINE, PIECE, Index, is_digest
from backy.system import files, folders
from backy.system.files import Cache

# Chunks that a draft knows it wrote: 20 MiB; forgetting one means to write it again.
_REMEMBERED = 1 << 17
_DIGEST_BITS = 28  # a bit for each value of as many bits of a digest: 32 MiB


class ChunkStore(BlockStore):
    """A Store; see there for the contract."""

    shares_blocks = True

    def __init__(self, root: Path, block_size: int, codec: Codec) -> None:
        super().__init__(root, block_size, codec)
        self._folder = root / "chunks"
        self._buffers = Buffers(block_size, codec)

    def _new_blocks(
        self, folder: Path, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[ChunkBlocks]:
        return nullcontext(self._blocks(Cache.SPARE))

    def _old_blocks(
        self, path: Path, size: int, cache: Cache, *, may_be_cut: bool
    ) -> AbstractContextManager[ChunkBlocks]:
        return nullcontext(self._blocks(cache))

    def _blocks(self, cache: Cache) -> ChunkBlocks:
        return ChunkBlocks(self._folder, self._block_size, self._codec, self._buffers, cache)

    def collect(self, indexes: Iterable[Index]) -> int:
        """Remove chunks by mark and sweep; see `UsedDigests` for what that costs."""
        used = UsedDigests()
        for index in indexes:
            used.add_all(index)
        freed, suffix = 0, self._codec.suffix
        for name in folders.list_folder(self._folder):
            folder = self._folder / name
            for chunk in folders.list_folder(folder, follow=False):
                digest = chunk.removesuffix(suffix)
                is_chunk = chunk.endswith(suffix) and is_digest(digest)
                if not (is_chunk and digest in used):
                    with translated(StoreError, f"removing {folder / chunk}"):
                        freed += folders.remove_file(folder / chunk)
        return freed


class Buffers(Scratch):
    """Room for a block and for a frame, each thread's own."""

    def __init__(self, block_size: int, codec: Codec) -> None:
        super().__init__(block_size)
        self._largest_frame = codec.largest_frame(block_size)

    @cached_property
    def frame(self) -> memoryview:
        """Starts at a page, and is longer than any frame by the rest of its last page or more."""
        return files.buffer(self._largest_frame + files.PAGE)


class ChunkBlocks:
    """Blocks as chunks below `folder`."""

    def __init__(
        self, folder: Path, block_size: int, codec: Codec, buffers: Buffers, cache: Cache
    ) -> None:
        self._folder = folder
        self._block_size = block_size
        self._codec = codec
        self._buffers = buffers
        self._cache = cache
        self._written: dict[str, None] = {}

    def get(self, number: int, digest: str, block: memoryview) -> None:
        """Decode a chunk straight into `block`."""
        path = self._path(digest)
        where = f"block {number} (byte {number * self._block_size}): {path}"
        with translated(StoreError, where):
            frame = self._read(path, where)
        try:
            self._codec.decode(frame, block)
        except DamagedError as error:
            raise DamagedError(f"{where}: {error.message}") from error

    def _read(self, path: Path, where: str) -> memoryview:
        frame = self._buffers.frame
        try:
            with files.open_to_read(path, self._cache) as file:
                length = file.read_into(0, frame)
        except FileNotFoundError:
            raise DamagedError(f"{where} is missing") from None
        if length == len(frame):
            raise DamagedError(f"{where} is larger than any chunk of this repository")
        return frame[:length]

    def put(self, number: int, digest: str, block: memoryview) -> int:
        """Compress and write a chunk, unless this draft wrote it or it is there and whole."""
        if digest in self._written:
            return 0
        path = self._path(digest)
        stored = 0
        with translated(StoreError, f"writing the chunk of block {number}, {path}"):
            is_there = path.exists()
            if not (is_there and self._is_whole(number, digest, len(block))):
                stored, frame = self._encode(block)
                (self._replace if is_there else self._make)(path, frame, stored)
        if len(self._written) < _REMEMBERED:
            self._written[digest] = None
        return stored

    def _is_whole(self, number: int, digest: str, length: int) -> bool:
        """Whether a chunk that nobody vouches for holds its block; reading it is what tells."""
        block = self._buffers.block[:length]
        try:
            self.get(number, digest, block)
        except StoreError:
            return False
        return self._codec.digest(block) == digest

    def _encode(self, block: memoryview) -> tuple[int, memoryview]:
        """The length of a block's frame, and the frame in whole pages, filled up with zeroes."""
        frame = self._codec.encode(block)
        length, whole = len(frame), -(-len(frame) // files.PAGE) * files.PAGE
        room = self._buffers.frame[:whole]
        room[:length] = frame
        room[length:] = bytes(whole - length)
        return length, room

    def _make(self, path: Path, frame: memoryview, length: int) -> None:
        """Write a chunk under its name: nobody relies on that before it is published."""
        try:
            file = files.create(path, Cache.SPARE)
        except FileNotFoundError:
            folders.make_folder(path.parent)
            self._make(path, frame, length)
        except FileExistsError:  # another thread has the same block
            self._replace(path, frame, length)
        else:
            with file:
                file.write(0, frame)
                file.resize(length)
                file.start_writeback()

    def _replace(self, path: Path, frame: memoryview, length: int) -> None:
        """Replace a chunk that may be published: whole and durable first, then renamed."""
        beside = path.with_name(f".{path.name}.{threading.get_native_id()}")
        folders.remove_file(beside)
        with files.create(beside, Cache.SPARE) as file:
            file.write(0, frame)
            file.resize(length)
            file.sync()
        folders.rename(beside, path)

    def clear(self, first: int, count: int, length: int) -> int:
        """Zero blocks have a chunk like any other; one serves all of a length."""
        return self.put(first, self._codec.zero_digest(length), memoryview(bytes(length)))

    def extents(self, index: Index) -> Iterator[Extent]:
        """What the index says."""
        return index.extents()

    def locations(self, first: int, count: int) -> list[bytes | None]:
        """A chunk is where its name says."""
        return [BY_DIGEST] * count

    def read_stored(self, number: int, digest: str, length: int) -> bytes:
        """The chunk's file."""
        return folders.read_file(self._path(digest), len(self._buffers.frame))

    def repair(self, number: int, digest: str, block: memoryview) -> None:
        """Replace the chunk, or make it."""
        path = self._path(digest)
        with translated(StoreError, f"writing the chunk of block {number}, {path}"):
            folders.make_folder(path.parent)
            if path.is_dir():
                folders.remove_tree(path)  # no file can be renamed over a folder
            length, frame = self._encode(block)
            self._replace(path, frame, length)
            folders.sync_folder(path.parent)
            folders.sync_folder(self._folder)

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / f"{digest}{self._codec.suffix}"


class UsedDigests:
    """Which digests are in use, in 32 MiB however many there are.

    A bit stands for all digests that are alike in 28 bits, so some chunk in a few hundred of a
    million is kept though nobody names it; none is dropped that somebody names. Each run looks at
    other 28 bits, so the next one finds those. A set of digests would need 100 bytes each.
    """

    def __init__(self) -> None:
        self._bits = bytearray(1 << (_DIGEST_BITS - 3))
        self._start = secrets.randbelow(64 - _DIGEST_BITS // 4 + 1)

    def _bit_of(self, digest: bytes | str) -> tuple[int, int]:
        value = int(digest[self._start : self._start + _DIGEST_BITS // 4], 16)
        return value >> 3, 1 << (value & 7)

    def __contains__(self, digest: str) -> bool:
        byte, bit = self._bit_of(digest)
        return bool(self._bits[byte] & bit)

    def add_all(self, index: Index) -> None:
        """Mark every line of an index. Raises DamagedError where one is no hash."""
        zeroes = (index.codec.zero_digest(index.block_size) + "\n").encode() * PIECE
        for first, count, lines in index.pieces():
            many = 1 if lines == zeroes[: len(lines)] else count
            try:
                for start in range(0, many * LINE, LINE):
                    byte, bit = self._bit_of(lines[start : start + LINE])
                    self._bits[byte] |= bit
            except ValueError:
                where = f"{index.file.path}: a line after {first} is not a hash"
                raise DamagedError(where, "Nothing was purged; remove that revision.") from None
