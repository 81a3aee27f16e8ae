"""What all stores do alike: hash a block, compare it with the index, and only then touch the store.

A store itself is three verbs on single blocks: get, put, clear; and it says what holds those.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Protocol

from backy.errors import DamagedError, StoreError, translated
from backy.model.extent import Extent, Kind
from backy.model.revision import Disk, Revision
from backy.stores.codec import Codec
from backy.stores.index import Index, IndexDraft, block_count, start_draft
from backy.system import files, folders
from backy.system.files import Cache

BY_DIGEST = b"by its name"


class Blocks(Protocol):
    """Where the blocks of one image are. Safe for several threads, each at another block."""

    def get(self, number: int, digest: str, block: memoryview) -> None:
        """Fill `block` with block `number`; whoever calls checks the hash.

        Raises DamagedError where it is missing or no block at all.
        """

    def put(self, number: int, digest: str, block: memoryview) -> int:
        """Keep a block; give the bytes that were written for it."""

    def clear(self, first: int, count: int, length: int) -> int:
        """Keep `count` blocks of `length` zero bytes each; give the bytes that were written."""

    def extents(self, index: Index) -> Iterator[Extent]:
        """What must be read: DATA, or ZERO where nothing is stored that could differ from zero."""

    def locations(self, first: int, count: int) -> Sequence[bytes | None]:
        """Where each block is stored: equal places with equal digests are one piece of bytes.

        An empty place means that nothing is stored: the block reads as zeroes. BY_DIGEST means that
        the digest alone says where it is, None that nobody can say.
        """

    def read_stored(self, number: int, digest: str, length: int) -> bytes:
        """The stored bytes as they lie there, good or bad. Raises OSError where it cannot."""

    def repair(self, number: int, digest: str, block: memoryview) -> None:
        """Put a block of that digest where bad bytes are; durable on return."""


class Scratch(threading.local):
    """Room for a block, each thread's own from when it first needs it."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    @cached_property
    def block(self) -> memoryview:
        """Starts at a page."""
        return files.buffer(self._block_size)


class StoredImage:
    """A disk of a published revision, as an Image. Every byte that it gives has been hashed."""

    def __init__(self, index: Index, blocks: Blocks) -> None:
        self.index = index
        self.size = index.size
        self.block_size = index.block_size
        self._blocks = blocks
        self._scratch = Scratch(index.block_size)

    def extents(self) -> Iterator[Extent]:
        """DATA and ZERO."""
        return self._blocks.extents(self.index)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`. Raises DamagedError that names the first block that is not whole."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise StoreError(f"there is no byte {offset + len(buffer) - 1} in {self.size} bytes")
        done = 0
        while done < len(buffer):
            number, within = divmod(offset + done, self.block_size)
            length = self.index.length_of(number)
            part = min(length - within, len(buffer) - done)
            if part == length:
                self._read(number, buffer[done : done + part])
            else:
                block = self._scratch.block[:length]
                self._read(number, block)
                buffer[done : done + part] = block[within : within + part]
            done += part

    def locations(self, first: int, count: int) -> Sequence[bytes | None]:
        """See Blocks."""
        return self._blocks.locations(first, count)

    def read_stored(self, number: int) -> bytes:
        """See Blocks; empty where nothing can be read."""
        length = self.index.length_of(number)
        with suppress(OSError):
            return self._blocks.read_stored(number, self.index.digest(number), length)
        return b""

    def repair(self, number: int, block: memoryview) -> None:
        """Replace a bad block; `block` has the hash that the index says. Raises StoreError."""
        self._blocks.repair(number, self.index.digest(number), block)

    def _read(self, number: int, block: memoryview) -> None:
        digest = self.index.digest(number)
        self._blocks.get(number, digest, block)
        if self.index.codec.digest(block) != digest:
            start = number * self.block_size
            where = f"bytes {start} to {start + len(block)}"
            raise DamagedError(f"{where} do not match hash {digest[:12]}…")


class BlockDraft:
    """A disk of a revision while it is written, as a Draft: only what differs reaches the store."""

    def __init__(self, index: IndexDraft, blocks: Blocks, *, has_parent: bool) -> None:
        self.block_size = index.block_size
        self.changed = 0
        self.stored = 0
        self.index = index
        self._blocks = blocks
        self._has_parent = has_parent
        self._lock = threading.Lock()

    def write(self, offset: int, data: memoryview) -> None:
        """Keep the blocks of `data` whose hash the index does not have in their place."""
        number = offset // self.block_size
        for start in range(0, len(data), self.block_size):
            block = data[start : start + self.block_size]
            digest = self.index.codec.digest(block)
            if self.index.lines(number, 1)[:-1] != digest.encode():
                stored = self._blocks.put(number, digest, block)
                self.index.put(number, digest)
                self._count(len(block), stored)
            number += 1

    def zero(self, offset: int, length: int) -> None:
        """Make blocks zero that are not; what is costs one comparison for 4 MiB of index."""
        end = block_count(offset + length, self.block_size)
        for extent in self.index.extents(first=offset // self.block_size, end=end):
            if extent.kind is not Kind.ZERO:
                first = extent.start // self.block_size
                count = block_count(extent.length, self.block_size)
                stored = self._blocks.clear(first, count, self.index.length_of(first))
                self.index.put_zero(first, count)
                self._count(extent.length if self._has_parent else 0, stored)

    def discard(self, start: int, length: int) -> None:
        """Take nothing of the parent's in this range: it must be written or made zero again."""
        first, end = start // self.block_size, block_count(start + length, self.block_size)
        first, end = (min(number, self.index.blocks) for number in (first, end))
        self.index.discard(first, end - first)

    def index_hash(self) -> str:
        """What revision.json records. Raises DamagedError where a block was never written."""
        return self.index.hash()

    def _count(self, changed: int, stored: int) -> None:
        with self._lock:
            self.changed += changed
            self.stored += stored


class BlockStore(ABC):
    """A Store but for `collect`: a subclass says what holds the blocks of a disk."""

    def __init__(self, root: Path, block_size: int, codec: Codec) -> None:
        self._root = root
        self._block_size = block_size
        self._codec = codec

    @abstractmethod
    def _new_blocks(
        self, folder: Path, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[Blocks]:
        """Where the blocks of a draft go; see `draft`."""

    @abstractmethod
    def _old_blocks(
        self, path: Path, size: int, cache: Cache, *, may_be_cut: bool
    ) -> AbstractContextManager[Blocks]:
        """Where those of a published disk are, whose `plain_path` is `path`; see `open`."""

    @contextmanager
    def draft(
        self, folder: Path, disk: str, size: int, parent: Revision | None
    ) -> Iterator[BlockDraft]:
        """See Store. The draft's index begins with the lines of the parent's, if any."""
        path = folder / f"{disk}.blocks"
        with ExitStack() as stack:
            old = stack.enter_context(self._index_of(parent, disk)) if parent else None
            with translated(StoreError, f"writing {path}"):
                folders.remove_file(path)
                index = start_draft(path, size, self._block_size, self._codec, old)
            stack.enter_context(index.file)
            blocks = stack.enter_context(self._new_blocks(folder, disk, size, parent))
            yield BlockDraft(index, blocks, has_parent=bool(parent))

    @contextmanager
    def open(
        self, revision: Revision, disk: str, cache: Cache = Cache.SPARE, *, may_be_cut: bool = False
    ) -> Iterator[StoredImage]:
        """See Store."""
        path = self.plain_path(revision, disk)
        with (
            self._index_of(revision, disk) as index,
            self._old_blocks(path, index.size, cache, may_be_cut=may_be_cut) as blocks,
        ):
            yield StoredImage(index, blocks)

    def plain_path(self, revision: Revision, disk: str) -> Path:
        """See Store; the index."""
        return self._folder_of(revision) / f"{disk}.blocks"

    def open_index(self, folder: Path, disk: str, record: Disk) -> AbstractContextManager[Index]:
        """See Store."""
        return checked_index(folder / f"{disk}.blocks", record, self._codec)

    def _index_of(self, revision: Revision, disk: str) -> AbstractContextManager[Index]:
        return self.open_index(self._folder_of(revision), disk, revision.disks[disk])

    def _folder_of(self, revision: Revision) -> Path:
        return self._root / "revisions" / revision.id


@contextmanager
def checked_index(path: Path, disk: Disk, codec: Codec) -> Iterator[Index]:
    """The index of `disk` at `path`. Raises DamagedError where its hash is not the one recorded."""
    hint = "Its revision cannot be restored; use another one, and remove this one."
    with translated(DamagedError, f"opening {path}", hint):
        file = files.open_to_read(path)
    with file:
        index = Index(file, disk.size, disk.block_size, codec)
        with translated(DamagedError, f"reading {path}", hint):
            if index.hash() != disk.index_hash:
                raise DamagedError(f"{path} is not the index that was published", hint)
        yield index
