"""What all stores have in common: hash a block, compare it with the index, store it if it differs.

A store adds how single blocks are read and written (`Blocks`), and what holds those of a disk.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Protocol

from backy.errors import DamagedError, StoreError, translated
from backy.model.extent import Extent, Kind
from backy.model.revision import Disk, Revision
from backy.stores.codec import Codec
from backy.stores.index import Index, IndexDraft, block_count, start_draft
from backy.system import files, folders
from backy.system.files import AnyPath, Cache
from backy.system.place import Place

BY_DIGEST = b"by its digest"  # a location, see Blocks


class Blocks(Protocol):
    """The blocks of one disk. Several threads may call it, each for another block.

    Every method may raise StoreError. `number` counts from the start of the disk. `digest` is the
    block's line in the index.
    """

    def get(self, number: int, digest: str, block: memoryview) -> None:
        """Fill `block` with a stored block. The caller compares the digest.

        Raises DamagedError if the block is missing, or if what is stored is not a block.
        """

    def put(self, number: int, digest: str, block: memoryview) -> int:
        """Store a block; return how many bytes were written."""

    def clear(self, first: int, count: int, length: int) -> int:
        """Store `count` blocks of `length` zero bytes each; return how many bytes were written."""

    def extents(self, index: Index) -> Iterator[Extent]:
        """ZERO where the index says zero and no other bytes can be stored, DATA elsewhere."""

    def locations(self, first: int, count: int) -> Sequence[bytes | None]:
        """Where each of `count` blocks is stored.

        Blocks with the same digest and the same location share their stored bytes. An empty
        location means that nothing is stored, so the block reads as zeroes. BY_DIGEST means that
        all blocks with the same digest share their bytes. None means that nobody knows.
        """

    def read_stored(self, number: int, digest: str, length: int) -> bytes:
        """The stored bytes as they are, good or bad. Raises OSError if they cannot be read."""

    def repair(self, number: int, digest: str, block: memoryview) -> None:
        """Replace the bad bytes of a block by `block`, which has the digest; durable on return."""

    def is_stored(self, digest: str) -> bool | None:
        """Whether there are bytes under its name, good or bad; None if blocks have no names."""


class BlockBuffer(threading.local):
    """A buffer of one block for each thread, made when the thread first uses it."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    @cached_property
    def block(self) -> memoryview:
        """Page-aligned."""
        return files.buffer(self._block_size)


class StoredImage:
    """A disk of a published revision, as an Image. It never returns bytes whose hash is wrong."""

    def __init__(self, index: Index, blocks: Blocks) -> None:
        self.index = index
        self.size = index.size
        self.block_size = index.block_size
        self._blocks = blocks
        self._buffer = BlockBuffer(index.block_size)

    def extents(self) -> Iterator[Extent]:
        """DATA and ZERO."""
        return self._blocks.extents(self.index)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image. Raises DamagedError that names the first bad block."""
        if offset < 0 or offset + len(buffer) > self.size:
            end = offset + len(buffer)
            raise StoreError(f"cannot read bytes {offset} to {end}: the disk has {self.size} bytes")
        done = 0
        while done < len(buffer):
            number, within = divmod(offset + done, self.block_size)
            length = self.index.length_of(number)
            part = min(length - within, len(buffer) - done)
            if part == length:
                self._read(number, buffer[done : done + part])
            else:
                block = self._buffer.block[:length]
                self._read(number, block)
                buffer[done : done + part] = block[within : within + part]
            done += part

    def locations(self, first: int, count: int) -> Sequence[bytes | None]:
        """See Blocks."""
        return self._blocks.locations(first, count)

    def read_stored(self, number: int) -> bytes:
        """See Blocks; empty if nothing can be read."""
        length = self.index.length_of(number)
        with suppress(OSError):
            return self._blocks.read_stored(number, self.index.digest(number), length)
        return b""

    def repair(self, number: int, block: memoryview) -> None:
        """See Blocks."""
        self._blocks.repair(number, self.index.digest(number), block)

    def is_stored(self, number: int) -> bool | None:
        """See Blocks."""
        return self._blocks.is_stored(self.index.digest(number))

    def _read(self, number: int, block: memoryview) -> None:
        digest = self.index.digest(number)
        self._blocks.get(number, digest, block)
        if self.index.codec.digest(block) != digest:
            start = number * self.block_size
            where = f"bytes {start} to {start + len(block)}"
            raise DamagedError(f"{where} do not match hash {digest[:12]}…")


class BlockDraft:
    """A disk of a revision while it is written, as a Draft. Stores only blocks that differ.

    `changed` counts the bytes in blocks that differ from the parent's, `stored` those written to
    the store. `written` has the numbers of the last few blocks that were written.
    """

    def __init__(self, index: IndexDraft, blocks: Blocks, *, has_parent: bool) -> None:
        self.block_size = index.block_size
        self.changed = 0
        self.stored = 0
        self.written: deque[int] = deque(maxlen=8)
        self.index = index
        self._blocks = blocks
        self._has_parent = has_parent
        self._lock = threading.Lock()

    def write(self, offset: int, data: memoryview) -> None:
        """See Draft. Stores the blocks of `data` that have another digest in the index."""
        number = offset // self.block_size
        for start in range(0, len(data), self.block_size):
            block = data[start : start + self.block_size]
            digest = self.index.codec.digest(block)
            if self.index.lines(number, 1)[:-1] != digest.encode():
                stored = self._blocks.put(number, digest, block)
                self.index.put(number, digest)
                self._count(len(block), stored)
                self.written.append(number)
            number += 1

    def zero(self, offset: int, length: int) -> None:
        """See Draft. Blocks that are zero already cost one comparison for each 4 MiB of index."""
        end = block_count(offset + length, self.block_size)
        for extent in self.index.extents(first=offset // self.block_size, end=end):
            if extent.kind is not Kind.ZERO:
                first = extent.start // self.block_size
                count = block_count(extent.length, self.block_size)
                stored = self._blocks.clear(first, count, self.index.length_of(first))
                self.index.put_zero(first, count)
                self._count(extent.length if self._has_parent else 0, stored)

    def discard(self, start: int, length: int) -> None:
        """Discard what the draft has from its parent in a range. It must be written then."""
        first, end = start // self.block_size, block_count(start + length, self.block_size)
        first, end = (min(number, self.index.blocks) for number in (first, end))
        self.index.discard(first, end - first)

    def index_hash(self) -> str:
        """The hash for revision.json. Raises DamagedError if a block was never written."""
        return self.index.hash()

    def _count(self, changed: int, stored: int) -> None:
        with self._lock:
            self.changed += changed
            self.stored += stored


class BlockStore(ABC):
    """All of a Store but `collect`. A subclass says what holds the blocks of a disk."""

    def __init__(self, root: Place, block_size: int, codec: Codec) -> None:
        self._root = root
        self._block_size = block_size
        self._codec = codec

    @abstractmethod
    def _new_blocks(
        self, folder: Place, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[Blocks]:
        """The blocks of a new draft; see `Store.draft`."""

    @abstractmethod
    def _old_blocks(
        self, path: Place, size: int, cache: Cache, *, may_be_cut: bool
    ) -> AbstractContextManager[Blocks]:
        """The blocks of a published disk of `size` bytes, whose `plain_path` is `path`."""

    @contextmanager
    def draft(
        self, folder: Place, disk: str, size: int, parent: Revision | None
    ) -> Iterator[BlockDraft]:
        """See Store. The draft's index starts as a copy of the parent's."""
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

    def plain_path(self, revision: Revision, disk: str) -> Place:
        """The index."""
        return self._folder_of(revision) / f"{disk}.blocks"

    def open_index(self, folder: Place, disk: str, record: Disk) -> AbstractContextManager[Index]:
        """See Store."""
        return checked_index(folder / f"{disk}.blocks", record, self._codec)

    def _index_of(self, revision: Revision, disk: str) -> AbstractContextManager[Index]:
        return self.open_index(self._folder_of(revision), disk, revision.disks[disk])

    def _folder_of(self, revision: Revision) -> Place:
        return self._root / "revisions" / revision.id


@contextmanager
def checked_index(path: AnyPath, disk: Disk, codec: Codec) -> Iterator[Index]:
    """The index at `path`. Raises DamagedError if its hash is not the one recorded in `disk`."""
    hint = "This revision cannot be restored. Use another one, and remove this one."
    with translated(DamagedError, f"opening {path}", hint):
        file = files.open_to_read(path)
    with file:
        index = Index(file, disk.size, disk.block_size, codec)
        with translated(DamagedError, f"reading {path}", hint):
            if index.hash() != disk.index_hash:
                raise DamagedError(f"{path} is not the index that was published", hint)
        yield index
