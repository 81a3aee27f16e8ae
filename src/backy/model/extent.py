"""Extent algebra: which ranges of an image hold data, are zero, or are the same as in the parent.

Everything here works on ascending extents and is lazy: a disk of any size costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


def cover(ranges: Iterable[Extent], size: int, gap: Kind) -> Iterator[Extent]:
    """Fill what lies between ascending ranges, and before and after them, up to `size` bytes.

    Raises ValueError where a range is empty, goes back, or ends after `size`.
    """
    position = 0
    for each in ranges:
        if not position <= each.start < each.end <= size:
            raise ValueError(f"{each.length} bytes at byte {each.start} cannot be there")
        if position < each.start:
            yield Extent(position, each.start - position, gap)
        yield each
        position = each.end
    if position < size:
        yield Extent(position, size - position, gap)


def overlay(content: Iterable[Extent], changes: Iterable[Extent]) -> Iterator[Extent]:
    """SAME where `changes` says so, and elsewhere what `content` says; both cover the same."""
    return combine(content, changes, lambda kind, change: change if change is Kind.SAME else kind)


def combine(
    first: Iterable[Extent], second: Iterable[Extent], pick: Callable[[Kind, Kind], Kind]
) -> Iterator[Extent]:
    """What `pick` makes of the kinds that two say of each range; both cover the same."""
    others = iter(second)
    other = next(others, None)
    for each in first:
        position = each.start
        while other and position < each.end:
            end = min(each.end, other.end)
            yield Extent(position, end - position, pick(each.kind, other.kind))
            position = end
            if other.end == end:
                other = next(others, None)


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges as (start, length) in ascending order; those that touch or overlap become one."""
    merged: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        last_start, last_length = merged[-1] if merged else (0, -1)
        if start <= last_start + last_length:
            merged[-1] = last_start, max(last_length, start + length - last_start)
        else:
            merged.append((start, length))
    return merged


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
