"""Compare what a target holds with the index of a stored disk; nothing of the store is read."""

from __future__ import annotations

from backy.errors import TargetError
from backy.image.copy import copy
from backy.image.image import Image
from backy.image.pace import Pace, PacedImage
from backy.image.progress import Watcher
from backy.model.extent import merge_ranges
from backy.operations.differential import ComparedImage, data_of
from backy.operations.heal import StoredDisk
from backy.operations.restore import Way
from backy.units import counted

_NAMED = 10  # ranges that a message names


def verify_target(way: Way) -> None:
    """Raise TargetError unless the target can be read, and has all bytes that are not lost."""
    if not (held := way.opened.read_back()):
        why = f"{way.target} was written, but cannot be read back"
        raise TargetError(why, "Leave out --verify.")
    with held as back:
        wrong = differences(way.stored, back, way.pace, way.watcher) - way.image.lost
    if wrong:
        ranges = merge_ranges(wrong)
        named = ", ".join(f"{start} to {start + length}" for start, length in ranges[:_NAMED])
        left = len(ranges) - _NAMED
        more = f", and {counted(left, 'more range')}" if left > 0 else ""
        why = f"{way.target} does not have what was written: bytes {named}{more}"
        raise TargetError(why, "Check its medium, and restore to another one.")


def differences(
    stored: StoredDisk, held: Image, pace: Pace, watcher: Watcher
) -> set[tuple[int, int]]:
    """The blocks of a stored disk of which `held` has other bytes, as (start, length)."""
    found: set[tuple[int, int]] = set()

    def note(offset: int, piece: memoryview) -> None:
        found.add((offset, len(piece)))

    compared = ComparedImage(stored, held, note, reads_zeroes=True)
    watcher.begin(data_of(compared))
    copy(PacedImage(compared, pace, watcher), _Nothing(stored.image.block_size))
    return found


class _Nothing:
    """A Draft that keeps nothing: the image is only read."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def write(self, offset: int, data: memoryview) -> None:
        """See Draft."""

    def zero(self, offset: int, length: int) -> None:
        """See Draft."""
