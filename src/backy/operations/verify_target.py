"""Compare what a target holds with the index of a stored disk; nothing of the store is read."""

from __future__ import annotations

from backy.errors import TargetError
from backy.image.copy import copy, data_of
from backy.image.image import Image
from backy.image.pace import PacedImage
from backy.model.extent import merge_ranges
from backy.operations.differential import Differential
from backy.operations.restore import Way

_NAMED = 10  # ranges that a message names


def verify_target(way: Way) -> None:
    """Raise TargetError unless the target can be read, and has all bytes that are not lost."""
    if not (held := way.opened.read_back()):
        why = f"{way.target} was written, but cannot be read back"
        raise TargetError(why, "Leave out --verify.")
    with held as back:
        wrong = differences(way, back) - way.image.lost
    if wrong:
        ranges = [f"{start} to {start + length}" for start, length in merge_ranges(wrong)]
        more = f", and {len(ranges) - _NAMED} more" if ranges[_NAMED:] else ""
        named = f"bytes {', '.join(ranges[:_NAMED])}{more}"
        why = f"{way.target} does not have what was written: {named}"
        raise TargetError(why, "Check its medium, and restore to another one.")


def count_differences(way: Way) -> int:
    """How many bytes a restore would write, without writing: for a dry run.

    Reads what the target holds, unless all data are to be written.
    """
    held = way.opened.read_back() if way.options.differ else None
    if not held:
        return way.data
    with held as back:
        return sum(length for _, length in differences(way, back))


def differences(way: Way, held: Image) -> set[tuple[int, int]]:
    """The blocks of a stored disk of which a target holds other bytes, as (start, length)."""
    found = _Found(way.stored.image.block_size)
    pair = Differential(way.stored, held, found)
    way.watcher.begin(data_of(pair, pair.block_size) - way.data)
    copy(PacedImage(pair, way.pace, way.watcher), pair)
    return found.blocks


class _Found:
    """A Draft that only remembers which blocks it got."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.blocks: set[tuple[int, int]] = set()

    def write(self, offset: int, data: memoryview) -> None:
        """See Draft."""
        self.blocks.add((offset, len(data)))

    def zero(self, offset: int, length: int) -> None:
        """See Draft."""
        self.blocks.add((offset, length))
