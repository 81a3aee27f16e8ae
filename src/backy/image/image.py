"""Images and drafts: the shape that sources, stores and targets share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from backy.model.extent import Extent


class Image(Protocol):
    """The readable content of one disk, of a snapshot or of a revision alike."""

    @property
    def size(self) -> int:
        """Bytes; never 0."""

    def extents(self) -> Iterator[Extent]:
        """Cover [0, size), ascending and without gaps; SAME means "as in the parent"."""

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer` with the bytes from `offset` on; safe to call from several threads.

        Raises SourceError, StoreError or DamagedError where it cannot; `buffer` is undefined then.
        """


class Draft(Protocol):
    """An image while it is written. It starts as its parent, so what is the same costs nothing."""

    @property
    def block_size(self) -> int:
        """Bytes. Writes start at a multiple of it and end at one, or where the image ends."""

    def write(self, offset: int, data: memoryview) -> None:
        """Take these bytes; `data` may be reused on return. Safe to call from several threads."""

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeroes, at a cost that follows what is not yet zero."""
