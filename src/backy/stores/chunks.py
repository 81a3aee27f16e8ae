"""Store "chunks": one file for each different block, chunks/ab/abcd….zst, named by its digest.

For file systems that cannot share extents. That a chunk's file exists proves nothing: after a
crash it may be torn. A draft relies on a chunk only if its parent's index has the digest in the
same place, if the draft wrote the chunk itself, or if it read the chunk and the hash is right.
"""

from __future__ import annotations

import errno
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

from backy.errors import DamagedError, StoreError, translated
from backy.model.extent import Extent
from backy.model.revision import Revision
from backy.stores.blocks import BY_DIGEST, BlockBuffer, BlockStore
from backy.stores.codec import Codec
from backy.stores.index import LINE, PIECE, Index, is_digest
from backy.system import files, folders
from backy.system.files import Cache, File
from backy.system.place import Place

# How many digests a draft remembers as stored, in 20 MiB. The chunks of others are read again.
_REMEMBERED = 1 << 17
_NO_UNNAMED_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}  # open(2), O_TMPFILE
_PREFIX = re.compile("[0-9a-f]{2}")  # of digests, the name of a folder
_DIGEST_BITS = 28  # of each digest, which UsedDigests looks at; it takes 2**28 bits: 32 MiB


class ChunkStore(BlockStore):
    """A Store; see there for the contract."""

    shares_blocks = True

    def __init__(self, root: Place, block_size: int, codec: Codec) -> None:
        super().__init__(root, block_size, codec)
        self._folder = root / "chunks"
        self._buffers = ChunkBuffers(block_size, codec)

    def _new_blocks(
        self, folder: Place, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[ChunkBlocks]:
        return nullcontext(self._blocks(Cache.SPARE))

    def _old_blocks(
        self, path: Place, size: int, cache: Cache, *, may_be_cut: bool
    ) -> AbstractContextManager[ChunkBlocks]:
        return nullcontext(self._blocks(cache))

    def _blocks(self, cache: Cache) -> ChunkBlocks:
        return ChunkBlocks(self._folder, self._block_size, self._codec, self._buffers, cache)

    def collect(
        self, indexes: Iterable[Index], leave: Callable[[Place], None] = lambda _: None
    ) -> int:
        """See Store. Takes 32 MiB of memory; may keep a few unused chunks, see UsedDigests."""
        used = UsedDigests()
        for index in indexes:
            used.add_all(index)
        freed = 0
        for folder in (self._folder / name for name in folders.list_folder(self._folder)):
            if not (_PREFIX.fullmatch(folder.name) and folder.is_folder()):
                leave(folder)
                continue
            for chunk in (folder / name for name in folders.list_folder(folder)):
                is_draft = chunk.name.startswith(".")
                digest = chunk.name.lstrip(".").partition(".")[0]
                is_chunk = chunk.name == digest + self._codec.suffix
                if not (is_digest(digest) and (is_chunk or is_draft)):
                    leave(chunk)
                elif is_draft or digest not in used:
                    with translated(StoreError, f"removing {chunk}"):
                        freed += folders.remove_file(chunk)
        return freed


class ChunkBuffers(BlockBuffer):
    """A buffer of one block, and one of a frame, for each thread."""

    def __init__(self, block_size: int, codec: Codec) -> None:
        super().__init__(block_size)
        self._largest_frame = codec.largest_frame(block_size)

    @cached_property
    def frame(self) -> memoryview:
        """Page-aligned; a page longer than any frame, so that a longer file is noticed."""
        return files.buffer(self._largest_frame + files.PAGE)


class ChunkBlocks:
    """Blocks in chunk files below `folder`."""

    def __init__(
        self, folder: Place, block_size: int, codec: Codec, buffers: ChunkBuffers, cache: Cache
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

    def _read(self, path: Place, where: str) -> memoryview:
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
        """Write a chunk, unless this draft did so before, or its file exists and is good."""
        if digest in self._written:
            return 0
        path = self._path(digest)
        stored = 0
        with translated(StoreError, f"writing the chunk of block {number}, {path}"):
            exists = path.exists()
            if not (exists and self._is_good(number, digest, len(block))):
                stored, frame = self._encode(block)
                if exists:
                    self._replace(path, frame, stored)
                else:
                    self._create(path, frame, stored)
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

    def _encode(self, block: memoryview) -> tuple[int, memoryview]:
        """The length of the block's frame, and the frame padded to whole pages for O_DIRECT."""
        frame = self._codec.encode(block)
        length = len(frame)
        padded_length = -(-length // files.PAGE) * files.PAGE
        padded = self._buffers.frame[:padded_length]
        padded[:length] = frame
        padded[length:] = bytes(padded_length - length)
        return length, padded

    def _create(self, path: Place, frame: memoryview, length: int) -> None:
        """Write a new chunk; nothing relies on it until the revision is published.

        XFS puts the files of each folder into another part of the medium, which scatters the
        chunks of a disk over all of it. So a chunk is written as an unnamed file of one folder,
        and then linked to its name; then chunks lie in the order in which they are written. Where
        the file system has no unnamed files (NFS), the chunk is written under its name.
        """
        try:
            with files.create_unnamed(self._folder, Cache.SPARE) as file:
                self._fill(file, frame, length)
                folders.link_unnamed(file, path)
        except FileNotFoundError:
            folders.make_folder(path.parent)
            self._create(path, frame, length)
        except FileExistsError:  # another thread wrote the same block
            self._replace(path, frame, length)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
            self._create_by_name(path, frame, length)

    def _create_by_name(self, path: Place, frame: memoryview, length: int) -> None:
        folders.make_folder(path.parent)
        try:
            file = files.create(path, Cache.SPARE)
        except FileExistsError:  # another thread writes the same block
            self._replace(path, frame, length)
        else:
            with file:
                self._fill(file, frame, length)

    def _fill(self, file: File, frame: memoryview, length: int) -> None:
        file.write(0, frame)
        file.resize(length)
        file.start_writeback()

    def _replace(self, path: Place, frame: memoryview, length: int) -> None:
        """Replace a chunk in one step: published revisions may rely on its name."""
        temporary = path.with_name(f".{path.name}.{threading.get_native_id()}")
        folders.remove_file(temporary)
        with files.create(temporary, Cache.SPARE) as file:
            file.write(0, frame)
            file.resize(length)
            file.sync()
        folders.rename(temporary, path)

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
        return folders.read_file(self._path(digest), len(self._buffers.frame))

    def repair(self, number: int, digest: str, block: memoryview) -> None:
        """Replace the chunk, or create it."""
        path = self._path(digest)
        with translated(StoreError, f"writing the chunk of block {number}, {path}"):
            folders.make_folder(path.parent)
            if path.is_folder():
                folders.remove_tree(path)  # a file cannot be renamed over a folder
            length, frame = self._encode(block)
            self._replace(path, frame, length)
            folders.sync_folder(path.parent)
            folders.sync_folder(self._folder)

    def is_stored(self, digest: str) -> bool | None:
        """Whether its chunk has a name."""
        with translated(StoreError, f"looking for chunk {digest}"):
            return self._path(digest).exists()

    def _path(self, digest: str) -> Place:
        return self._folder / digest[:2] / f"{digest}{self._codec.suffix}"


class UsedDigests:
    """A set of digests that takes 32 MiB, however many it has. It may say yes too often, never no.

    It remembers 28 bits of each digest, so it takes a digest for a member if another one has the
    same bits. With a million members that is 0.4 % of all others, whose chunks stay until a later
    purge: each set looks at other 28 bits. A Python set would take 100 bytes for each digest.
    """

    def __init__(self) -> None:
        self._bits = bytearray(1 << (_DIGEST_BITS - 3))
        self._start = secrets.randbelow(64 - _DIGEST_BITS // 4 + 1)

    def _bit_of(self, digest: bytes | str) -> tuple[int, int]:
        """Where the bit of a digest is: the byte, and the bit in it as a mask."""
        value = int(digest[self._start : self._start + _DIGEST_BITS // 4], 16)
        return value >> 3, 1 << (value & 7)

    def __contains__(self, digest: str) -> bool:
        byte, bit = self._bit_of(digest)
        return bool(self._bits[byte] & bit)

    def add_all(self, index: Index) -> None:
        """Add every line of an index. Raises DamagedError if one is not a hash."""
        zeroes = (index.codec.zero_digest(index.block_size) + "\n").encode() * PIECE
        for first, count, lines in index.pieces():
            is_all_zero = lines == zeroes[: len(lines)]
            try:
                for start in range(0, LINE if is_all_zero else count * LINE, LINE):
                    byte, bit = self._bit_of(lines[start : start + LINE])
                    self._bits[byte] |= bit
            except ValueError:
                where = f"{index.file.path}: a line after {first} is not a hash"
                raise DamagedError(where, "Nothing was purged; remove that revision.") from None
