"""Store "images": a plain raw file for each disk of each revision, sparse and read-only.

For XFS, btrfs and other file systems with reflinks. A draft starts as a clone of its parent's
file, and only the 4 KiB pages that differ are written. So `cp` restores a disk, and a delta takes
as much space as changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from backy.errors import DamagedError, StoreError, translated
from backy.image.copy import is_zero
from backy.model.extent import Extent, Kind, align
from backy.model.revision import Revision
from backy.stores.blocks import BlockBuffer, BlockStore
from backy.stores.index import Index, block_count
from backy.system import files
from backy.system.files import PAGE, Cache, File
from backy.system.place import Place

_LOCATION = struct.Struct("=QQQ")  # start and end in the file, start on the medium


class ImageStore(BlockStore):
    """A Store; see there for the contract."""

    shares_blocks = False

    @contextmanager
    def new_blocks(
        self, folder: Place, disk: str, size: int, parent: Revision | None
    ) -> Iterator[ImageBlocks]:
        with files.create(folder / f"{disk}.img", Cache.SPARE) as file:
            file.unshare_only_what_is_written()
            if parent:
                self._clone(self.plain_path(parent, disk), file)
            with translated(StoreError, f"making {file.path} {size} bytes long"):
                if file.size() != size:  # XFS unshares the last page even if the size is the same
                    file.resize(size)
            yield ImageBlocks(file, self.block_size, is_new=not parent)
            file.protect()

    def _clone(self, path: Place, file: File) -> None:
        with translated(StoreError, f"cloning {path}"), files.open_to_read(path) as original:
            if not file.clone_from(original):
                why = f"{path} cannot be cloned: its file system does not share extents"
                hint = "Was the repository moved? Make a new one with --store chunks."
                raise StoreError(why, hint)

    @contextmanager
    def _old_blocks(
        self, path: Place, size: int, cache: Cache, *, may_be_cut: bool
    ) -> Iterator[ImageBlocks]:
        hint = "Restore an older revision."
        with translated(DamagedError, f"opening {path}", hint):
            try:
                file = files.open_to_read(path, cache)
            except FileNotFoundError:
                raise DamagedError(f"{path} is missing", hint) from None
        with file:
            with translated(StoreError, f"looking at {path}"):
                real_size = file.size()
            if real_size > size or (real_size < size and not may_be_cut):
                raise DamagedError(f"{path} has {real_size} bytes, not {size}", hint)
            yield ImageBlocks(file, self.block_size, is_new=False)

    def plain_path(self, revision: Revision, disk: str) -> Place:
        """The raw image."""
        return self._folder_of(revision) / f"{disk}.img"


class ImageBlocks:
    """Blocks at their offsets in a raw file. `is_new`: the file has no data yet."""

    def __init__(self, file: File, block_size: int, *, is_new: bool) -> None:
        self._file = file
        self._block_size = block_size
        self._is_new = is_new
        self._buffer = BlockBuffer(block_size)

    def get(self, number: int, digest: str, block: memoryview) -> None:
        """Read the block from the file."""
        where = f"block {number} (byte {number * self._block_size}) of {self._file.path}"
        with translated(StoreError, f"reading {where}"):
            if self._file.read_into(number * self._block_size, block) != len(block):
                raise DamagedError(f"{where} is beyond the end of the file")

    def put(self, number: int, digest: str, block: memoryview) -> int:
        """Write the 4 KiB pages that differ from the file's; punch holes for zeroes."""
        start = number * self._block_size
        written = 0
        with translated(StoreError, f"writing block {number} of {self._file.path}"):
            old = None if self._is_new else self._old(start, len(block))
            for kind, first, end in _changes(block, old):
                if kind is Kind.DATA:
                    self._file.write(start + first, block[first:end])
                    written += end - first
                elif kind is Kind.ZERO and not self._is_new:
                    self._file.zero(start + first, end - first)
        return written

    def _old(self, start: int, length: int) -> memoryview | None:
        """What the file has there; None if it cannot be read."""
        block = self._buffer.block[:length]
        try:
            done = self._file.read_into(start, block)
        except OSError:  # a bad sector, shared with the parent; new data gets other sectors
            return None
        block[done:] = bytes(length - done)
        return block

    def clear(self, first: int, count: int, length: int) -> int:
        """Punch a hole for all of them."""
        if not self._is_new:
            with translated(StoreError, f"punching a hole into {self._file.path}"):
                self._file.zero(first * self._block_size, (count - 1) * self._block_size + length)
        return 0

    def extents(self, index: Index) -> Iterator[Extent]:
        """DATA where the file has data; elsewhere what the index says."""
        for extent in align(self._file.extents(index.size), index.block_size, index.size):
            if extent.kind is Kind.DATA:
                yield extent
            else:
                first = extent.start // index.block_size
                end = block_count(extent.end, index.block_size)
                yield from index.extents(first=first, end=end)

    def locations(self, first: int, count: int) -> list[bytes | None]:
        """The physical extents of each block, which clones share until one is written to."""
        size = self._block_size
        locations: list[bytes | None] = [b""] * count
        try:
            for offset, length, physical in self._file.physical_extents(first * size, count * size):
                end = offset + length
                for number in range(offset // size, block_count(end, size)):
                    so_far = locations[number - first]
                    if physical is None or so_far is None:
                        locations[number - first] = None
                        continue
                    low, high = max(number * size, offset), min((number + 1) * size, end)
                    part = _LOCATION.pack(low, high, physical + low - offset)
                    locations[number - first] = so_far + part
        except OSError:  # the file system cannot tell, so every block is read
            return [None] * count
        return locations

    def read_stored(self, number: int, digest: str, length: int) -> bytes:
        """What the file has there."""
        return self._file.read_bytes(number * self._block_size, length)

    def repair(self, number: int, digest: str, block: memoryview) -> None:
        """Write the block. Other revisions that share the bad bytes keep them."""
        what = f"writing block {number} of {self._file.path}"
        with translated(StoreError, what), files.open_protected(self._file.path) as file:
            file.write(number * self._block_size, block)
            file.sync()

    def is_stored(self, digest: str) -> bool | None:
        """Blocks have no names."""
        return None


def _changes(new: memoryview, old: memoryview | None) -> Iterator[tuple[Kind, int, int]]:
    """Runs of pages as (kind, start, end): SAME as in `old`, otherwise ZERO or DATA.

    Without `old` no page is SAME. The first run may be empty.
    """
    run, run_start = Kind.SAME, 0
    for start in range(0, len(new), PAGE):
        page = new[start : start + PAGE]
        # bytearray's comparison is memcmp; memoryview's goes item by item.
        if old is not None and bytearray(page) == old[start : start + PAGE]:
            kind = Kind.SAME
        else:
            kind = Kind.ZERO if is_zero(page) else Kind.DATA
        if kind is not run:
            yield run, run_start, start
            run, run_start = kind, start
    yield run, run_start, len(new)
