"""A disk of a revision while it is written: hash a block, compare it, store it if it differs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from backy.errors import StoreError, translated
from backy.model.extent import Kind
from backy.model.revision import Revision
from backy.stores import Store
from backy.stores.blocks import Blocks
from backy.stores.index import block_count, by_page
from backy.stores.index_draft import IndexDraft
from backy.system import files, folders
from backy.system.place import Place


@contextmanager
def draft_disk(
    store: Store, folder: Place, disk: str, size: int, parent: Revision | None
) -> Iterator[BlockDraft]:
    """A draft of a disk of `size` bytes in the revision's `folder`; starts as `parent`'s disk.

    `parent` must be published and have the disk. When the draft was finished, the repository's
    barrier makes it durable. After an exception the caller deletes the folder. Raises StoreError.
    """
    path = folder / f"{disk}.blocks"
    with ExitStack() as stack:
        old = stack.enter_context(store.open_index(parent, disk)) if parent else None
        with translated(StoreError, f"writing {path}"):
            folders.remove_file(path)
            # Without a name from here on: nothing of it is left if we are killed.
            scratch = stack.enter_context(files.create(path))
            folders.remove_file(path)
            index = IndexDraft(scratch, size, store.block_size, store.pages, old)
        blocks = stack.enter_context(store.new_blocks(folder, disk, size, parent))
        yield BlockDraft(index, path, blocks, has_parent=bool(parent))


class BlockDraft:
    """A disk of a revision while it is written, as a Draft. Stores only blocks that differ.

    `changed` counts the bytes in blocks that differ from the parent's, `stored` those written to
    the store. `written` has the numbers of the last few blocks that were written.
    """

    def __init__(self, index: IndexDraft, path: Place, blocks: Blocks, *, has_parent: bool) -> None:
        self.block_size = index.block_size
        self.changed = 0
        self.stored = 0
        self.written: deque[int] = deque(maxlen=8)
        self.index = index
        self._path = path
        self._blocks = blocks
        self._has_parent = has_parent
        self._lock = threading.Lock()

    def write(self, offset: int, data: memoryview) -> None:
        """See Draft. Stores the blocks of `data` that have another digest in the index."""
        number = offset // self.block_size
        for start in range(0, len(data), self.block_size):
            block = data[start : start + self.block_size]
            digest = self.index.codec.digest(block)
            if self.index.line(number) != digest.encode():
                stored = self._blocks.put(number, digest, block)
                self.index.put(number, digest)
                self._count(len(block), stored)
                self.written.append(number)
            number += 1

    def zero(self, offset: int, length: int) -> None:
        """See Draft. A page that is zero already costs one comparison."""
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

    def lost(self, needed: Iterable[range] = ()) -> list[range]:
        """The blocks that must be written because pages of the parent are lost; each only once.

        Looks whether the pages have files for a moment, and reads those of the blocks `needed`.
        """
        self.index.look_up()
        for blocks in needed:
            for page, _, _ in by_page(blocks.start, blocks.stop):
                self.index.page(page)
        return self.index.take_lost()

    def finish(self) -> str:
        """Write the index; return its hash, for revision.json. May be called again.

        Raises DamagedError if a block was never written.
        """
        return self.index.finish(self._path)

    def _count(self, changed: int, stored: int) -> None:
        with self._lock:
            self.changed += changed
            self.stored += stored
