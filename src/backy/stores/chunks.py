"""Store "chunks": a zstd frame a block, in chunks/ab/abcd….zst, named by the plain block's hash.

For file systems that cannot share extents. A chunk is only relied on when a published index or
the draft itself names it, or when it was read and has the right hash; never because its file
exists: a file that a crash left may be torn.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import zstandard

from backy.errors import DamagedError, StoreError, translated
from backy.model.extent import Extent
from backy.model.revision import Revision
from backy.stores.blocks import NAMED, BlockStore, Scratch
from backy.stores.index import LINE, PIECE, Index, digest_of, zero_digest
from backy.system import files, folders
from backy.system.files import Cache

_CHUNK = re.compile(r"[0-9a-f]{64}\.zst")
# Chunks that a draft knows it wrote: 20 MiB; forgetting one means to write it again.
_REMEMBERED = 1 << 17
_MARK_BITS = 28  # a bit for each value of as many bits of a digest: 32 MiB


class ChunkStore(BlockStore):
    """A Store; see there for the contract."""

    shares_blocks = True

    def __init__(self, root: Path, block_size: int, level: int) -> None:
        super().__init__(root, block_size, level)
        self._folder = root / "chunks"
        self._tools = _Tools(block_size, level)

    def _new_blocks(
        self, folder: Path, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[ChunkBlocks]:
        return nullcontext(ChunkBlocks(self._folder, self._block_size, self._tools))

    def _old_blocks(
        self, path: Path, size: int, cache: Cache, *, may_be_cut: bool
    ) -> AbstractContextManager[ChunkBlocks]:
        return nullcontext(ChunkBlocks(self._folder, self._block_size, self._tools, cache))

    def collect(self, indexes: Iterable[Index]) -> int:
        """Remove chunks by mark and sweep; see `_Marks` for what that costs."""
        marks = _Marks()
        for index in indexes:
            marks.add_all(index)
        freed = 0
        for name in folders.list_folder(self._folder):
            folder = self._folder / name
            for chunk in folders.list_folder(folder, follow=False):
                if not _CHUNK.fullmatch(chunk) or chunk[:-4] not in marks:
                    with translated(StoreError, f"removing {folder / chunk}"):
                        freed += folders.remove_file(folder / chunk)
        return freed


class _Tools(Scratch):
    """What each thread needs of its own: zstd contexts, and room for a frame."""

    def __init__(self, block_size: int, level: int) -> None:
        super().__init__(block_size)
        self.compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
        self.decompressor = zstandard.ZstdDecompressor()
        # A frame is hardly larger than its block: ZSTD_COMPRESSBOUND is 1/256 more.
        self.frame = files.buffer(block_size + block_size // 256 + 2 * files.PAGE)


class ChunkBlocks:
    """Blocks as chunks below `folder`."""

    def __init__(
        self, folder: Path, block_size: int, tools: _Tools, cache: Cache = Cache.SPARE
    ) -> None:
        self._folder = folder
        self._block_size = block_size
        self._cache = cache
        self._tools = tools
        self._written: dict[str, None] = {}

    def get(self, number: int, digest: str, block: memoryview) -> None:
        """Decompress a chunk straight into `block`."""
        path = self._path(digest)
        where = f"block {number} (byte {number * self._block_size}): {path}"
        with translated(StoreError, where):
            frame = self._read(path, where)
        try:
            if zstandard.get_frame_parameters(frame).content_size != len(block):
                raise DamagedError(f"{where} is not {len(block)} bytes long")
            if _frame_length(frame) != len(frame):
                raise DamagedError(f"{where} is cut short or has bytes after its end")
            with self._tools.decompressor.stream_reader(frame) as reader:
                length = reader.readinto(block)
        except zstandard.ZstdError as error:
            raise DamagedError(f"{where}: {error}") from error
        if length != len(block):
            raise DamagedError(f"{where} is not {len(block)} bytes long")

    def _read(self, path: Path, where: str) -> memoryview:
        frame = self._tools.frame
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
                stored, frame = self._compress(block)
                (self._replace if is_there else self._make)(path, frame, stored)
        if len(self._written) < _REMEMBERED:
            self._written[digest] = None
        return stored

    def _is_whole(self, number: int, digest: str, length: int) -> bool:
        """Whether a chunk that nobody vouches for holds its block; reading it is what tells."""
        block = self._tools.block[:length]
        try:
            self.get(number, digest, block)
        except StoreError:
            return False
        return digest_of(block) == digest

    def _compress(self, block: memoryview) -> tuple[int, memoryview]:
        """The length of a block's frame, and the frame in whole pages, filled up with zeroes."""
        frame = self._tools.compressor.compress(block)
        length, whole = len(frame), -(-len(frame) // files.PAGE) * files.PAGE
        room = self._tools.frame[:whole]
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
        return self.put(first, zero_digest(length), memoryview(bytes(length)))

    def extents(self, index: Index) -> Iterator[Extent]:
        """What the index says."""
        return index.extents()

    def places(self, first: int, count: int) -> list[bytes | None]:
        """A chunk is where its name says."""
        return [NAMED] * count

    def evidence(self, number: int, digest: str, length: int) -> bytes:
        """The chunk's file."""
        return folders.read_file(self._path(digest), len(self._tools.frame))

    def mend(self, number: int, digest: str, block: memoryview) -> None:
        """Replace the chunk, or make it."""
        path = self._path(digest)
        with translated(StoreError, f"writing the chunk of block {number}, {path}"):
            folders.make_folder(path.parent)
            if path.is_dir():
                folders.remove_tree(path)  # no file can be renamed over a folder
            length, frame = self._compress(block)
            self._replace(path, frame, length)
            folders.sync_folder(path.parent)
            folders.sync_folder(self._folder)

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / f"{digest}.zst"


def _frame_length(frame: memoryview) -> int:
    """Where the first zstd frame in `frame` ends, or -1: RFC 8878, sections 3.1.1 and 3.1.1.2.

    `zstd -d`, and so restore.sh, fails on bytes after a frame; zstandard's readers ignore them.
    """
    has_checksum = frame[4] & 4
    position, last = zstandard.frame_header_size(frame), 0
    while not last:
        header = int.from_bytes(frame[position : position + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size)
        if position > len(frame):
            return -1
    return position + (4 if has_checksum else 0)


class _Marks:
    """Which digests are in use, in 32 MiB however many there are.

    A bit stands for all digests that are alike in 28 bits, so some chunk in a few hundred of a
    million is kept though nobody names it; none is dropped that somebody names. Each run looks at
    other 28 bits, so the next one finds those. A set of digests would need 100 bytes each.
    """

    def __init__(self) -> None:
        self._bits = bytearray(1 << (_MARK_BITS - 3))
        self._start = secrets.randbelow(64 - _MARK_BITS // 4 + 1)

    def _slot(self, digest: bytes | str) -> tuple[int, int]:
        value = int(digest[self._start : self._start + _MARK_BITS // 4], 16)
        return value >> 3, 1 << (value & 7)

    def __contains__(self, digest: str) -> bool:
        byte, bit = self._slot(digest)
        return bool(self._bits[byte] & bit)

    def add_all(self, index: Index) -> None:
        """Mark every line of an index. Raises DamagedError where one is no hash."""
        zeroes = (zero_digest(index.block_size) + "\n").encode() * PIECE
        for first, count, lines in index.pieces():
            many = 1 if lines == zeroes[: len(lines)] else count
            try:
                for start in range(0, many * LINE, LINE):
                    byte, bit = self._slot(lines[start : start + LINE])
                    self._bits[byte] |= bit
            except ValueError:
                where = f"{index.file.path}: a line after {first} is not a hash"
                raise DamagedError(where, "Nothing was purged; remove that revision.") from None
