"""A disk of a revision while it is written: hash a block, compare it, store it if it differs.

Its index is written with it, and starts with its parent's pages.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from backy.errors import DamagedError, StoreError, translated
from backy.model.extent import Kind
from backy.model.revision import Revision
from backy.stores import Store
from backy.stores.blocks import Blocks
from backy.stores.index import PAGE_LINES, FlatIndex, Index, block_count, by_page
from backy.stores.pages import LINE, Pages
from backy.system import files, folders
from backy.system.place import Place

UNWRITTEN = bytes(LINE)
_LOOK_UP_SECONDS = 0.05  # for pages; ReadBack has 0.2 s for blocks


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


class IndexDraft(Index):
    """An index that takes lines in any order, from several threads.

    A page that was not changed is only its name, the parent's. The lines of changed pages are in
    `scratch`, an empty file, at 65 bytes a block. `page_bytes` counts what `finish` wrote.
    """

    def __init__(
        self, scratch: files.File, size: int, block_size: int, shelf: Pages, parent: Index | None
    ) -> None:
        super().__init__(scratch.path, size, block_size, shelf.codec)
        self.page_bytes = 0
        self._scratch = scratch
        self._shelf = shelf
        self._names = bytearray(UNWRITTEN * self.pages)
        self._changed: set[int] = set()
        self._zero_name = b""
        self._lost: set[int] = set()
        self._lock = threading.RLock()
        scratch.resize(self.blocks * LINE)
        if parent:
            self._take_over(parent)

    def _take_over(self, parent: Index) -> None:
        """Start with the parent's pages, and with the lines of one that has another length here.

        If the disk was resized, the line of a short last block is not one of them.
        """
        # The line of a short last block does not fit a disk of another size.
        count = self.blocks
        if self.size != parent.size:
            count = min(self.size, parent.size) // self.block_size
        whole = self.pages if self.size == parent.size else count // PAGE_LINES
        names = parent.names()
        for page in range(whole):
            name = next(names)
            if isinstance(parent, FlatIndex):
                name = self._put(parent.page(page))
            self._name(page, name.encode() + b"\n")
        first = whole * PAGE_LINES
        if first < count:
            self._changed.add(whole)
            try:
                self._scratch.write(first * LINE, parent.lines(first, count - first))
            except DamagedError:
                self._lost.add(whole)

    def _name(self, page: int, line: bytes) -> None:
        self._names[page * LINE : (page + 1) * LINE] = line

    def names(self, first: int = 0, end: int | None = None) -> Iterator[str]:
        """See Index."""
        for page in range(first, self._end(end)):
            line = self._names[page * LINE : (page + 1) * LINE]
            yield "" if page in self._changed or line == UNWRITTEN else line[:-1].decode()

    def page(self, page: int) -> bytes:
        """See Index. The lines of blocks that are not written are NUL bytes."""
        if page not in self._changed:
            return super().page(page)
        return self._scratch.read_bytes(page * PAGE_LINES * LINE, self.lines_of(page) * LINE)

    def _load(self, page: int) -> bytes:
        name = self.name(page)
        return self._get(page, name) if name else UNWRITTEN * self.lines_of(page)

    def _get(self, page: int, name: str, *, is_checked: bool = False) -> bytes:
        """A page of the parent; unwritten lines if it is lost."""
        try:
            return self._shelf.get(name, self.lines_of(page), is_checked=is_checked)
        except DamagedError as error:
            if not error.is_damage:
                raise
            self._lose(page)
        return UNWRITTEN * self.lines_of(page)

    def _lose(self, page: int) -> None:
        """The parent's page cannot be read: all its blocks must be written."""
        with self._lock:
            self._name(page, UNWRITTEN)
            self._lost.add(page)
            self._last = -1, b""

    def _change(self, page: int) -> None:
        """Have the lines of a page in the scratch file."""
        with self._lock:
            if page not in self._changed:
                self._scratch.write(page * PAGE_LINES * LINE, self.page(page))
                self._changed.add(page)

    def put(self, number: int, digest: str) -> None:
        """Write the line of block `number`."""
        self._change(number // PAGE_LINES)
        self._scratch.write(number * LINE, (digest + "\n").encode())

    def discard(self, first: int, count: int) -> None:
        """Make lines unwritten again, whatever the parent had there."""
        self._fill(first, count, UNWRITTEN, UNWRITTEN)

    def put_zero(self, first: int, count: int) -> None:
        """Write the lines of `count` zero blocks, which have all the same length."""
        line = self.zero_line(first)
        if count >= PAGE_LINES and not self._zero_name:
            self._zero_name = self._put(line * PAGE_LINES).encode() + b"\n"
        self._fill(first, count, line, self._zero_name)

    def _fill(self, first: int, count: int, line: bytes, name: bytes) -> None:
        """Write the same line for each block. A full page that has only those gets a name."""
        for page, start, stop in by_page(first, first + count):
            if stop - start == PAGE_LINES:
                with self._lock:
                    self._changed.discard(page)
                    self._name(page, name)
                    self._last = -1, b""
            else:
                self._change(page)
                self._scratch.write(start * LINE, line * (stop - start))

    def look_up(self) -> None:
        """Look whether the parent's pages are stored, from any on, for a twentieth of a second."""
        until = time.monotonic() + _LOOK_UP_SECONDS
        begin = random.randrange(self.pages)  # noqa: S311 - it keeps nothing secret
        for page in (*range(begin, self.pages), *range(begin)):
            name = self.name(page)
            paths = [copy.path(name) for copy in self._shelf.copies] if name else []
            if not all(path.exists() for path in paths):
                self._get(page, name, is_checked=True)  # which brings a missing copy back
            if time.monotonic() > until:
                break

    def take_lost(self) -> list[range]:
        """The blocks whose lines are lost since the last call: they must be written."""
        with self._lock:
            lost, self._lost = sorted(self._lost), set()
        return [range(n * PAGE_LINES, n * PAGE_LINES + self.lines_of(n)) for n in lost]

    def finish(self, path: Place) -> str:
        """Store the pages, and write the index to `path`; return its hash. May be called again.

        Raises DamagedError if a block was never written.
        """
        for page in sorted(self._changed):
            lines = self.page(page)
            if b"\0" in lines:
                self._refuse(page, lines)
            self._name(page, self._put(lines).encode() + b"\n")
        content = bytes(self._names)
        if b"\0" in content:
            self._refuse(content.index(b"\0") // LINE, UNWRITTEN)
        digest = self.codec.digest(content)
        with translated(StoreError, f"writing {path}"):
            folders.remove_file(path)
            with files.create(path) as file:
                file.write(0, content)
        self.page_bytes += len(content) + self._shelf.put_copy(self._shelf.twins, digest, content)
        return digest

    def _put(self, lines: bytes) -> str:
        with self._lock:
            name, written = self._shelf.put(lines)
            self.page_bytes += written
        return name

    def _refuse(self, page: int, lines: bytes) -> None:
        number = page * PAGE_LINES + lines.index(b"\0") // LINE
        raise DamagedError(f"{self.path}: block {number} was never written")
