"""Codec: how a repository names its blocks by their content, and packs a block into a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Codec(Protocol):
    """Names and packs blocks. A repository makes one from its settings.

    Nothing else hashes or compresses what is stored. Several threads may call it. What it returns
    must stay the same for the life of a repository, because files have these names and contents.
    """

    suffix: str
    """The end of the name of a file with one frame, such as ".zst"."""

    def digest(self, content: bytes | memoryview) -> str:
        """The name of these bytes: 64 lower-case hex digits, different for different bytes."""

    def digest_of_pieces(self, pieces: Iterable[bytes]) -> str:
        """The digest of all pieces together, which need not fit into memory."""

    def zero_digest(self, length: int) -> str:
        """The digest of `length` zero bytes. Called often, so it must be quick."""

    def largest_frame(self, length: int) -> int:
        """The most bytes that `encode` needs for a block of `length` bytes."""

    def encode(self, block: memoryview, frame: memoryview) -> int:
        """Pack a block into the start of `frame`; return the length, a multiple of 4 KiB.

        So the frame can be written past the page cache, and the file need not be cut. `frame` has
        room for `largest_frame`.
        """

    def decode(self, frame: memoryview, block: memoryview) -> None:
        """Fill `block` from its frame. The caller compares the digest.

        Raises DamagedError unless `frame` is exactly one frame, of exactly `len(block)` bytes;
        `block` is undefined then. The message says what is wrong, without naming the file. The
        memory it takes must be bounded, because frames may be forged.
        """
