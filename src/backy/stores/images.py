"""Store "images": one plain, sparse, read-only raw file a disk and revision, sharing extents.

For XFS, btrfs and other file systems with reflink. A draft begins as a clone of its parent, and
only the 4 KiB pieces that differ are written, so `cp` is the restore and a delta costs what
changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backy.errors import DamagedError, StoreError, translated
from backy.image.copy import is_zero
from backy.model.extent import Extent, Kind, align
from backy.model.revision import Revision
from backy.stores.blocks import BlockStore, Scratch
from backy.stores.index import Index, block_count
from backy.system import files
from backy.system.files import PAGE, Cache, File

_PLACE = struct.Struct("=QQQ")  # from, to, and where on the medium


class ImageStore(BlockStore):
    """A Store; see there for the contract."""

    shares_blocks = False

    @contextmanager
    def _new_blocks(
        self, folder: Path, disk: str, size: int, parent: Revision | None
    ) -> Iterator[ImageBlocks]:
        with files.create(folder / f"{disk}.img", Cache.SPARE) as file:
            file.unshare_only_what_is_written()
            if parent:
                self._clone(self.plain_path(parent, disk), file)
            with translated(StoreError, f"making {file.path} {size} bytes long"):
                if file.size() != size:  # XFS parts the last page even where nothing is cut
                    file.resize(size)
            yield ImageBlocks(file, self._block_size, is_new=not parent)
            file.protect()

    def _clone(self, path: Path, file: File) -> None:
        with translated(StoreError, f"cloning {path}"), files.open_to_read(path) as original:
            if not file.clone_from(original):
                why = f"{path} cannot be cloned: its file system does not share extents"
                hint = "Was the repository moved? Make a new one with --store chunks."
                raise StoreError(why, hint)

    @contextmanager
    def _old_blocks(
        self, path: Path, size: int, cache: Cache, *, may_be_cut: bool
    ) -> Iterator[ImageBlocks]:
        hint = "Restore an older revision."
        with translated(DamagedError, f"opening {path}", hint):
            try:
                file = files.open_to_read(path, cache)
            except FileNotFoundError:
                raise DamagedError(f"{path} is missing", hint) from None
        with file:
            with translated(StoreError, f"looking at {path}"):
                found = file.size()
            if found > size or (found < size and not may_be_cut):
                raise DamagedError(f"{path} has {found} bytes, not {size}", hint)
            yield ImageBlocks(file, self._block_size, is_new=False)

    def plain_path(self, revision: Revision, disk: str) -> Path:
        """The raw image."""
        return super().plain_path(revision, disk).with_suffix(".img")

    def collect(self, indexes: Iterable[Index]) -> int:
        """Nothing to do: the file system frees an extent when the last file that shares it goes."""
        return 0


class ImageBlocks:
    """Blocks in their place in a raw file. `is_new` means that it holds nothing yet."""

    def __init__(self, file: File, block_size: int, *, is_new: bool) -> None:
        self._file = file
        self._block_size = block_size
        self._is_new = is_new
        self._scratch = Scratch(block_size)

    def get(self, number: int, digest: str, block: memoryview) -> None:
        """Read a block where it lies."""
        where = f"block {number} (byte {number * self._block_size}) of {self._file.path}"
        with translated(StoreError, f"reading {where}"):
            if self._file.read_into(number * self._block_size, block) != len(block):
                raise DamagedError(f"{where} lies beyond the end of the file")

    def put(self, number: int, digest: str, block: memoryview) -> int:
        """Write the 4 KiB pieces that differ from what the file has; punch those that are zero."""
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
        block = self._scratch.block[:length]
        try:
            done = self._file.read_into(start, block)
        except OSError:  # a bad sector that the parent shares: what replaces it goes elsewhere
            return None
        block[done:] = bytes(length - done)
        return block

    def clear(self, first: int, count: int, length: int) -> int:
        """Punch a hole."""
        if not self._is_new:
            with translated(StoreError, f"punching a hole into {self._file.path}"):
                self._file.zero(first * self._block_size, (count - 1) * self._block_size + length)
        return 0

    def extents(self, index: Index) -> Iterator[Extent]:
        """Holes are ZERO where the index agrees; all that occupies space must be read."""
        for extent in align(self._file.extents(index.size), index.block_size, index.size):
            if extent.kind is Kind.DATA:
                yield extent
            else:
                first = extent.start // index.block_size
                end = block_count(extent.end, index.block_size)
                yield from index.extents(first=first, end=end)

    def locations(self, first: int, count: int) -> list[bytes | None]:
        """By physical extents: clones share them until one is written to."""
        size = self._block_size
        found: list[bytes | None] = [b""] * count
        try:
            for offset, length, physical in self._file.physical_extents(first * size, count * size):
                for start in range(offset - offset % size, offset + length, size):
                    number = start // size - first
                    low, high = max(start, offset), min(start + size, offset + length)
                    before = found[number]
                    if physical is None or before is None:
                        found[number] = None
                    else:
                        found[number] = before + _PLACE.pack(low, high, physical + low - offset)
        except OSError:  # the file system does not say, so nothing is taken for shared
            return [None] * count
        return found

    def read_stored(self, number: int, digest: str, length: int) -> bytes:
        """The block."""
        return self._file.read_bytes(number * self._block_size, length)

    def repair(self, number: int, digest: str, block: memoryview) -> None:
        """Write the block; revisions that shared the bad one keep theirs."""
        what = f"writing block {number} of {self._file.path}"
        with translated(StoreError, what), files.open_protected(self._file.path) as file:
            file.write(number * self._block_size, block)
            file.sync()


def _changes(new: memoryview, old: memoryview | None) -> Iterator[tuple[Kind, int, int]]:
    """Runs of 4 KiB pieces as (kind, start, end): SAME as in `old`, else ZERO or DATA.

    Without `old` everything is compared with nothing: zero pieces are ZERO. The first run may be
    empty.
    """
    run, run_start = Kind.SAME, 0
    for start in range(0, len(new), PAGE):
        piece = new[start : start + PAGE]
        # bytearray's comparison is memcmp, which memoryview's is not.
        if old is not None and bytearray(piece) == old[start : start + PAGE]:
            kind = Kind.SAME
        else:
            kind = Kind.ZERO if is_zero(piece) else Kind.DATA
        if kind is not run:
            yield run, run_start, start
            run, run_start = kind, start
    yield run, run_start, len(new)
