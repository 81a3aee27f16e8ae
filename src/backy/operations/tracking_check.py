"""Trust nothing: which of the blocks that a source calls unchanged are compared all the same.

Each block has its turn once in 30 days, one after the other as time goes by. A delta compares those
whose turn came since its parent, so nothing has to be remembered and nothing is left out; and at
least four blocks with data, wherever they are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from backy.image.image import Image
from backy.model.extent import Extent, Kind, combine, cover, united
from backy.stores.index import Index, block_count

PERIOD = 30 * 86400  # seconds in which each block that is called unchanged is compared once
_LEAST = 4  # blocks with data


class View:
    """An image of which `extents` tells what it holds."""

    def __init__(self, image: Image, extents: Callable[[], Iterator[Extent]]) -> None:
        self.size = image.size
        self.readinto = image.readinto
        self.extents = extents


class Claims(View):
    """An image as its source tells it; `same` becomes the blocks that it calls unchanged.

    They are ascending ranges of block numbers. Where the parent is damaged nothing is unchanged.
    """

    def __init__(
        self, image: Image, block_size: int, damaged: Iterable[tuple[int, int]] = ()
    ) -> None:
        super().__init__(image, self._told)
        self.same: list[range] = []
        self._image = image
        self._block_size = block_size
        # A disk that shrank has lost what was damaged beyond its end.
        ends = ((start, min(start + length, image.size)) for start, length in united(damaged))
        self._damaged = [Extent(low, high - low, Kind.DATA) for low, high in ends if low < high]

    def _told(self) -> Iterator[Extent]:
        usable = cover(self._damaged, self.size, Kind.SAME)
        for extent in combine(self._image.extents(), usable, _unless_damaged):
            if extent.kind is Kind.SAME:
                self._note(extent)
            yield extent

    def _note(self, extent: Extent) -> None:
        """Blocks that are only partly called unchanged are read anyway."""
        first = block_count(extent.start, self._block_size)
        end = extent.end // self._block_size
        if extent.end == self.size:
            end = block_count(self.size, self._block_size)
        if first < end:
            self.same.append(range(first, end))

    def rest(self, blocks: Iterable[range]) -> View:
        """The image, of which only these blocks, ascending, are not called unchanged."""

        def extents() -> Iterator[Extent]:
            return cover(map(self._extent, blocks), self.size, Kind.SAME)

        return View(self._image, extents)

    def _extent(self, blocks: range) -> Extent:
        start, stop = (number * self._block_size for number in (blocks.start, blocks.stop))
        return Extent(start, min(stop, self.size) - start, Kind.DATA)


def _unless_damaged(kind: Kind, parent: Kind) -> Kind:
    return Kind.DATA if kind is Kind.SAME and parent is not Kind.SAME else kind


def due(same: list[range], index: Index, since: datetime, now: datetime) -> list[range]:
    """Those of the blocks in `same` that a delta at `now` to a parent of `since` compares.

    `index` has the parent's lines for them.
    """
    turns = [_turn(index.blocks, time) for time in (since, now)]
    ranges = [
        (low, high - low)
        for each in same
        for start, stop in _windows(index.blocks, *turns)
        for low, high in [(max(each.start, start), min(each.stop, stop))]
        if low < high
    ]
    picked = united(ranges + [(number, 1) for number in _anywhere(same, index)])
    return [range(start, start + length) for start, length in picked]


def _turn(blocks: int, time: datetime) -> int:
    """How many blocks had their turn, over and over, until then."""
    return blocks * int(time.timestamp()) // PERIOD


def _windows(blocks: int, begin: int, end: int) -> list[tuple[int, int]]:
    """The numbers of blocks whose turn came, as one or two ranges."""
    start, count = begin % blocks, min(blocks, max(0, end - begin))
    return [(start, min(start + count, blocks)), (0, max(0, start + count - blocks))]


def _anywhere(same: list[range], index: Index) -> set[int]:
    """A few blocks with data, from all over the disk; all of them where there are no more."""
    found: set[int] = set()
    while len(found) < _LEAST:
        start = random.randrange(index.blocks)  # noqa: S311 - it keeps nothing secret
        after = (range(max(each.start, start), each.stop) for each in same if each.stop > start)
        number = next(_data((*after, *same), index, found), None)
        if number is None:
            break
        found.add(number)
    return found


def _data(ranges: Iterable[range], index: Index, known: set[int]) -> Iterator[int]:
    """The blocks that are not zero and not known."""
    for blocks in ranges:
        for number in index.data_blocks(blocks.start, blocks.stop):
            if number not in known:
                yield number
