"""Extent algebra: which ranges of an image hold data, are zero, or are the same as in the parent.

Everything here works on ascending extents and is lazy: a disk of any size costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What is known of a range before anybody reads it."""

    DATA = "data"
    ZERO = "zero"
    SAME = "same"


@dataclass(frozen=True, slots=True)
class Extent:
    """The range [start, start + length) of an image, in bytes; `length` is never 0."""

    start: int
    length: int
    kind: Kind

    @property
    def end(self) -> int:
        """The first byte after the range."""
        return self.start + self.length


def merge(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours of one kind."""
    last: Extent | None = None
    for extent in extents:
        if last and last.kind is extent.kind and last.end == extent.start:
            last = Extent(last.start, last.length + extent.length, last.kind)
            continue
        if last:
            yield last
        last = extent
    if last:
        yield last


def chop(extents: Iterable[Extent], length: int) -> Iterator[Extent]:
    """Cut DATA at the multiples of `length` bytes, the other kinds at those of 65,536 times that.

    Those cost next to nothing a byte, but a step must stay short for a cancel to be obeyed.
    """
    for extent in extents:
        limit = length if extent.kind is Kind.DATA else length << 16
        start = extent.start
        while start < extent.end:
            end = min(extent.end, start - start % limit + limit)
            yield Extent(start, end - start, extent.kind)
            start = end


def clip(extents: Iterable[Extent], start: int, end: int) -> Iterator[Extent]:
    """Keep what lies in [start, end)."""
    for extent in extents:
        low, high = max(extent.start, start), min(extent.end, end)
        if low < high:
            yield Extent(low, high - low, extent.kind)


def align(extents: Iterable[Extent], block_size: int, size: int) -> Iterator[Extent]:
    """Widen to whole blocks of an image of `size` bytes; a block of mixed kinds must be read: DATA.

    `extents` must cover [0, size) without gaps. What comes out does, too, and starts at
    multiples of `block_size`; neighbours of one kind are joined.
    """
    return merge(_aligned(extents, block_size, size))


def _aligned(extents: Iterable[Extent], block_size: int, size: int) -> Iterator[Extent]:
    partial: Kind | None = None  # the kind of the block that the last extent ended in
    for extent in extents:
        start = extent.start
        if partial:
            block = start - start % block_size
            kind = extent.kind if extent.kind is partial else Kind.DATA
            block_end = min(block + block_size, size)
            if extent.end < block_end:
                partial = kind
                continue
            yield Extent(block, block_end - block, kind)
            start, partial = block_end, None
        whole_end = extent.end if extent.end == size else extent.end - extent.end % block_size
        if start < whole_end:
            yield Extent(start, whole_end - start, extent.kind)
        if max(start, whole_end) < extent.end:
            partial = extent.kind
