"""Write only what differs: read the target, and hash it as the index of the stored disk does.

The index says which bytes are right, so a block that the target has already costs no read of the
store. An interrupted restore continues for the same reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from backy.errors import TargetError
from backy.image.copy import is_zero
from backy.image.image import Draft, Image
from backy.model.extent import Extent, Kind, combine, cover
from backy.operations.heal import StoredDisk


class Differential:
    """A stored disk as an Image, and around `draft` a Draft: only what differs passes through.

    `held` is what the target has now. Of a block that differs, `read(offset, buffer)` fills a
    buffer with the right bytes; without it the block is passed on as it was found. Every read
    begins and ends where stored blocks do. `written` counts the bytes that `draft` got, but for
    zeroes.
    """

    def __init__(
        self,
        stored: StoredDisk,
        held: Image,
        draft: Draft,
        read: Callable[[int, memoryview], None] | None = None,
    ) -> None:
        self.size = stored.image.size
        self.block_size = draft.block_size
        self.written = 0
        self._stored = stored
        self._held = held
        self._draft = draft
        self._read = read
        self._lock = threading.Lock()
        self._same: set[int] = set()  # offsets of blocks that were read, and are not passed on yet

    def extents(self) -> Iterator[Extent]:
        """SAME where both have zeroes. Where a target that knows its holes has none, ZERO."""
        knows_holes = self._read and next(self._held.extents()).length < self.size
        stale = Kind.ZERO if knows_holes else Kind.DATA

        def pick(kind: Kind, held: Kind) -> Kind:
            if kind is Kind.DATA:
                return kind
            return Kind.SAME if held is Kind.ZERO else stale

        held = cover(self._held.extents(), max(self.size, self._held.size), Kind.ZERO)
        return combine(self._stored.image.extents(), held, pick)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image. What cannot be read from the target differs."""
        is_filled = self._fills(offset, buffer)
        for start, end in self._blocks(offset, len(buffer)):
            piece = buffer[start - offset : end - offset]
            if (is_filled or self._fills(start, piece)) and self._is_right(start, piece):
                self._same.add(start)
            elif self._read:
                self._read(start, piece)

    def _fills(self, offset: int, buffer: memoryview) -> bool:
        with suppress(TargetError):
            self._held.readinto(offset, buffer)
            return True
        return False

    def _is_right(self, offset: int, piece: memoryview) -> bool:
        index = self._stored.image.index
        digest = self._stored.digest(offset // index.block_size)
        if is_zero(piece):  # without hashing: most of a new disk
            return digest == index.codec.zero_digest(len(piece))
        return digest == index.codec.digest(piece)

    def write(self, offset: int, data: memoryview) -> None:
        """See Draft."""
        for start, end in self._differing(offset, len(data)):
            self._draft.write(start, data[start - offset : end - offset])
            with self._lock:
                self.written += end - start

    def zero(self, offset: int, length: int) -> None:
        """See Draft."""
        if length > self.block_size:  # nothing of it was read
            self._draft.zero(offset, length)
            return
        for start, end in self._differing(offset, length):
            self._draft.zero(start, end - start)

    def _differing(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        for start, end in self._blocks(offset, length):
            if start in self._same:
                self._same.remove(start)
            else:
                yield start, end

    def _blocks(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        block_size = self._stored.image.block_size
        for start in range(offset, offset + length, block_size):
            yield start, min(start + block_size, offset + length)
