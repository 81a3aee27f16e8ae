"""Change-tracking check: which "unchanged" blocks a delta reads again anyway.

A delta skips what its source reports as unchanged. If the source is wrong, changes are lost and
nobody notices. So each delta compares some of these blocks with the parent:

- Each block has a turn once in 30 days. A delta reads the blocks whose turn came since its parent
  was made. The clock alone decides, so nothing has to be remembered and no block is left out.
- At least four blocks with data, chosen at random.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import chain

from backy.image.image import Image
from backy.model.extent import Extent, Kind, combine, cover, merge_ranges
from backy.stores.data import data_blocks
from backy.stores.index import Index, block_count

PERIOD_SECONDS = 30 * 86400  # each block has its turn once in this time
_MINIMUM_DATA_BLOCKS = 4  # each delta reads at least this many again


class ImageView:
    """The bytes of an image with other extents, so that `copy` reads other parts of it."""

    def __init__(self, image: Image, extents: Callable[[], Iterator[Extent]]) -> None:
        self.size = image.size
        self.readinto = image.readinto
        self.extents = extents


class TrackedImage(ImageView):
    """An image that remembers in `unchanged` which blocks its source reports as unchanged.

    `unchanged` has ascending ranges of block numbers, and is complete once all extents were read.
    `damaged` are ranges of the parent, as (start, length) in bytes: they are DATA whatever the
    source reports.
    """

    def __init__(
        self, image: Image, block_size: int, damaged: Iterable[tuple[int, int]] = ()
    ) -> None:
        super().__init__(image, self._noted_extents)
        self.unchanged: list[range] = []
        self._image = image
        self._block_size = block_size
        self._damaged = []
        for start, length in merge_ranges(damaged):
            end = min(start + length, image.size)
            if start < end:  # else the disk has shrunk, and this part is gone
                self._damaged.append(Extent(start, end - start, Kind.DATA))

    def only(self, blocks: Iterable[range]) -> ImageView:
        """The image with all but these blocks, ascending, reported as unchanged."""

        def extents() -> Iterator[Extent]:
            return cover(map(self._extent_of, blocks), self.size, Kind.SAME)

        return ImageView(self._image, extents)

    def _noted_extents(self) -> Iterator[Extent]:
        usable = cover(self._damaged, self.size, Kind.SAME)
        for extent in combine(self._image.extents(), usable, _unless_damaged):
            if extent.kind is Kind.SAME:
                self._note(extent)
            yield extent

    def _note(self, extent: Extent) -> None:
        """Only whole blocks: `copy` reads a block that is partly unchanged."""
        first = block_count(extent.start, self._block_size)
        end = extent.end // self._block_size
        if extent.end == self.size:
            end = block_count(self.size, self._block_size)
        if first < end:
            self.unchanged.append(range(first, end))

    def _extent_of(self, blocks: range) -> Extent:
        start = blocks.start * self._block_size
        end = min(blocks.stop * self._block_size, self.size)
        return Extent(start, end - start, Kind.DATA)


def _unless_damaged(kind: Kind, in_parent: Kind) -> Kind:
    """What the source reports, but DATA instead of SAME where the parent is damaged."""
    if kind is Kind.SAME and in_parent is not Kind.SAME:
        return Kind.DATA
    return kind


def blocks_to_check(
    unchanged: list[range], index: Index, parent_time: datetime, now: datetime
) -> list[range]:
    """Which blocks of `unchanged` a delta at `now` reads again; ascending ranges.

    `parent_time` is when the parent was made. `index` has the parent's lines for these blocks.
    """
    turns = _turns_between(index.blocks, parent_time, now)
    chosen = [(number, 1) for number in _random_data_blocks(unchanged, index)]
    for blocks in unchanged:
        for turn in turns:
            first, end = max(blocks.start, turn.start), min(blocks.stop, turn.stop)
            if first < end:
                chosen.append((first, end - first))
    return [range(first, first + count) for first, count in merge_ranges(chosen)]


def _turns_between(blocks: int, begin: datetime, end: datetime) -> list[range]:
    """The blocks whose turn comes between two times, of a disk with so many blocks.

    Turns go round: block 0 follows the last one, which makes two ranges.
    """
    turns_before = _turns_until(blocks, begin)
    count = min(max(0, _turns_until(blocks, end) - turns_before), blocks)
    first = turns_before % blocks
    return [range(first, min(first + count, blocks)), range(max(0, first + count - blocks))]


def _turns_until(blocks: int, time: datetime) -> int:
    """How many turns there were since 1970, of a disk with so many blocks."""
    return blocks * int(time.timestamp()) // PERIOD_SECONDS


def _random_data_blocks(unchanged: list[range], index: Index) -> set[int]:
    """A few blocks with data from all over the disk, or all of them if there are fewer."""
    chosen: set[int] = set()
    while len(chosen) < _MINIMUM_DATA_BLOCKS:
        start = random.randrange(index.blocks)  # noqa: S311 - it keeps nothing secret
        rest = (range(max(each.start, start), each.stop) for each in unchanged if start < each.stop)
        for blocks in chain(rest, unchanged):  # from there on, and then from the beginning
            data = data_blocks(index, blocks.start, blocks.stop)
            if (number := next((each for each in data if each not in chosen), None)) is not None:
                chosen.add(number)
                break
        else:
            break
    return chosen
