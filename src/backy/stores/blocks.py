"""What all stores have in common: hash a block, compare it with the index, store it if it differs.

A store adds how single blocks are read and written (`Blocks`), and what holds those of a disk.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from backy.errors import DamagedError, StoreError, translated
from backy.model.extent import Extent
from backy.model.revision import Disk, Revision
from backy.stores.codec import Codec
from backy.stores.index import PAGE_LINES, FlatIndex, Index, PagedIndex, block_count, check_hash
from backy.stores.pages import LINE, Pages
from backy.system import files
from backy.system.files import Cache
from backy.system.place import Place

if TYPE_CHECKING:
    from backy.stores.used import Used

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
        self.blocks = blocks
        self._buffer = BlockBuffer(index.block_size)

    def extents(self) -> Iterator[Extent]:
        """DATA and ZERO."""
        return self.blocks.extents(self.index)

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

    def read_stored(self, number: int, digest: str | None = None) -> bytes:
        """See Blocks; empty if nothing can be read. Without `digest`, that of the index."""
        digest = self.index.digest(number) if digest is None else digest
        with suppress(OSError):
            return self.blocks.read_stored(number, digest, self.index.length_of(number))
        return b""

    def repair(self, number: int, block: memoryview) -> None:
        """See Blocks."""
        self.blocks.repair(number, self.index.digest(number), block)

    def is_stored(self, number: int) -> bool | None:
        """See Blocks."""
        return self.blocks.is_stored(self.index.digest(number))

    def _read(self, number: int, block: memoryview) -> None:
        digest = self.index.digest(number)
        self.blocks.get(number, digest, block)
        if self.index.codec.digest(block) != digest:
            start = number * self.block_size
            where = f"bytes {start} to {start + len(block)}"
            raise DamagedError(f"{where} do not match hash {digest[:12]}…")


class BlockStore(ABC):
    """What all stores have in common; see Store. A subclass says what holds a disk's blocks."""

    def __init__(self, root: Place, block_size: int, codec: Codec) -> None:
        self._root = root
        self.block_size = block_size
        self._codec = codec
        self.pages = Pages(root, codec)

    @abstractmethod
    def _old_blocks(
        self, path: Place, size: int, cache: Cache, *, may_be_cut: bool
    ) -> AbstractContextManager[Blocks]:
        """The blocks of a published disk of `size` bytes, whose `plain_path` is `path`."""

    @contextmanager
    def open(
        self, revision: Revision, disk: str, cache: Cache = Cache.SPARE, *, may_be_cut: bool = False
    ) -> Iterator[StoredImage]:
        """See Store."""
        path, size = self.plain_path(revision, disk), revision.disks[disk].size
        old = self._old_blocks(path, size, cache, may_be_cut=may_be_cut)
        with self.open_index(revision, disk) as index, old as blocks:
            yield StoredImage(index, blocks)

    def plain_path(self, revision: Revision, disk: str) -> Place:
        """The index."""
        return self._folder_of(revision) / f"{disk}.blocks"

    def open_index(
        self, revision: Revision, disk: str, folder: Place | None = None
    ) -> AbstractContextManager[Index]:
        """See Store."""
        path = (folder or self._folder_of(revision)) / f"{disk}.blocks"
        shelf = self.pages if revision.format > 1 else None
        return checked_index(path, revision.disks[disk], self._codec, shelf)

    def collect(self, used: Used, leave: Callable[[Place], None] = lambda _: None) -> int:
        """See Store. Deletes unused pages."""
        return sum(used.remove_others(copy, leave, are_pages=True) for copy in self.pages.copies)

    def _folder_of(self, revision: Revision) -> Place:
        return self._root / "revisions" / revision.id


@contextmanager
def checked_index(path: Place, disk: Disk, codec: Codec, shelf: Pages | None) -> Iterator[Index]:
    """The index at `path`: of format 2 if its pages are in `shelf`, else of format 1.

    Raises DamagedError if its hash is not the one recorded in `disk`, and its twin is no better.
    """
    count = block_count(disk.size, disk.block_size)
    paths = [path]
    if shelf:
        count = block_count(count, PAGE_LINES)
        paths.append(shelf.twin(disk.index_hash))
    with _first_good(paths, disk.index_hash, count, codec) as file:
        if not shelf:
            yield FlatIndex(file, disk.size, disk.block_size, codec)
            return
        if file.path != path:
            shelf.mend(path, file.read_bytes(0, count * LINE), is_index=True)
        yield PagedIndex(file, disk.size, disk.block_size, shelf)


def _first_good(paths: Sequence[Place], name: str, count: int, codec: Codec) -> files.File:
    """The first of these lists that has the digest `name`. Raises the error of the first."""
    hint = "This revision cannot be restored. Use another one, and remove this one."
    errors = []
    for path in paths:
        try:
            with ExitStack() as stack, translated(DamagedError, f"reading {path}", hint):
                file = stack.enter_context(files.open_to_read(path))
                check_hash(file, count, name, codec)
                stack.pop_all()
                return file
        except DamagedError as error:
            if not error.is_damage:
                raise
            errors.append(error)
            with suppress(OSError):
                if not path.parent.exists():  # the revision was removed, and its twin says nothing
                    break
    raise errors[0]
