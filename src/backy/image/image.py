"""Image and Draft: the protocols that sources, stores and targets implement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from backy.model.extent import Extent
from backy.units import TiB

# A few bytes of a header or of NBD can claim 8 EiB, and each block takes 65 bytes of index.
LARGEST = 64 * TiB
SIZE_HINT = "The limit is 64 TiB. Did somebody make this disk to do harm?"


class Image(Protocol):
    """One disk for reading: of a snapshot, or of a revision."""

    @property
    def size(self) -> int:
        """Bytes, at least 1."""

    def extents(self) -> Iterator[Extent]:
        """What is known before reading. Covers [0, size) in ascending order, without gaps.

        SAME means that the range is as in the parent. May be called more than once.
        """

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer` with the bytes from `offset` on. Several threads may call it.

        Raises SourceError, StoreError or TargetError; the content of `buffer` is undefined then.
        """


def read_bytes(image: Image, start: int, length: int) -> memoryview:
    """The bytes of a range; raises as `readinto` does."""
    content = memoryview(bytearray(length))
    image.readinto(start, content)
    return content


class Draft(Protocol):
    """One disk for writing. It starts as its parent, so only changes need to be written."""

    @property
    def block_size(self) -> int:
        """Bytes. Writes start and end at multiples of it, or end where the disk ends."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data`, which the caller may reuse on return. Several threads may call it."""

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes. Parts that are zero already cost next to nothing."""
