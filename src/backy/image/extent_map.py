"""The extents of an image in little memory, to be asked for any range of it."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

from backy.model.extent import Extent, Kind, merge

_MOST = 1 << 18  # extents, in 2.3 MiB


class ExtentMap:
    """A number for each range of an image; `numbers` says which one a kind has.

    With more than 262,144 extents the rest has the number of DATA: somebody looks there in vain,
    but misses nothing.
    """

    def __init__(self, extents: Iterable[Extent], numbers: Mapping[Kind, int], size: int) -> None:
        """`extents` cover [0, size) in ascending order."""
        self._ends = array("Q")
        self._numbers = bytearray()
        for extent in merge(extents):
            if len(self._ends) == _MOST - 1:
                break
            self._ends.append(extent.end)
            self._numbers.append(numbers[extent.kind])
        if not self._ends or self._ends[-1] < size:
            self._ends.append(size)
            self._numbers.append(numbers[Kind.DATA])

    def between(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(length, number) of the ranges in [start, end), which is inside the image."""
        place = bisect_right(self._ends, start)
        while start < end:
            stop = min(end, self._ends[place])
            yield stop - start, self._numbers[place]
            start, place = stop, place + 1
