"""Extents: which ranges of an image hold data, are zero, or are the same as in the parent.

The functions here take extents in ascending order, and are lazy: memory does not depend on the
size of the disk.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What is known of a range before it is read."""

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
    """Join extents of one kind that touch."""
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
    """Cut DATA at multiples of `length` bytes, other kinds at multiples of 65,536 times that.

    The other kinds cost next to nothing, but each step must be short, so that a cancel is obeyed.
    """
    for extent in extents:
        piece = length if extent.kind is Kind.DATA else length << 16
        start = extent.start
        while start < extent.end:
            end = min(extent.end, start - start % piece + piece)
            yield Extent(start, end - start, extent.kind)
            start = end


def cover(ranges: Iterable[Extent], size: int, gap: Kind) -> Iterator[Extent]:
    """Cover [0, size): `ranges` as they are, and extents of kind `gap` before, between and after.

    Raises ValueError if a range is empty, starts before the last one ended, or ends after `size`.
    """
    position = 0
    for extent in ranges:
        if not position <= extent.start < extent.end <= size:
            what = f"the extent of {extent.length} bytes at byte {extent.start}"
            raise ValueError(f"{what} is empty, overlaps, or ends after byte {size}")
        if position < extent.start:
            yield Extent(position, extent.start - position, gap)
        yield extent
        position = extent.end
    if position < size:
        yield Extent(position, size - position, gap)


def overlay(content: Iterable[Extent], changes: Iterable[Extent]) -> Iterator[Extent]:
    """SAME where `changes` has SAME, elsewhere as in `content`. Both must cover the same range."""
    return combine(content, changes, lambda kind, change: change if change is Kind.SAME else kind)


def combine(
    first: Iterable[Extent], second: Iterable[Extent], pick: Callable[[Kind, Kind], Kind]
) -> Iterator[Extent]:
    """Extents of the kind that `pick` makes of two kinds. `first` and `second` cover the same."""
    others = iter(second)
    other = next(others, None)
    for extent in first:
        position = extent.start
        while other and position < extent.end:
            end = min(extent.end, other.end)
            yield Extent(position, end - position, pick(extent.kind, other.kind))
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
    """Extents of whole blocks of an image of `size` bytes. A block of several kinds becomes DATA.

    `extents` must cover [0, size) without gaps, and so does the result. Its extents start at
    multiples of `block_size`; those of one kind that touch are joined.
    """
    return merge(_aligned(extents, block_size, size))


def _aligned(extents: Iterable[Extent], block_size: int, size: int) -> Iterator[Extent]:
    partial: Kind | None = None  # the kind so far of the block in which the last extent ended
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
