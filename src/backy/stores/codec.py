"""The codec of a repository: how it names the bytes of a block, and packs a block into a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Codec(Protocol):
    """Made once by a repository, from its settings; safe to call from several threads.

    Nothing else hashes or compresses stored bytes. Its answers must not change during the life of
    a repository: they are the names and the contents of files.
    """

    suffix: str
    """The end of the name of a file that holds one frame, such as ".zst"."""

    def digest(self, content: bytes | memoryview) -> str:
        """The name of `content`: 64 lower-case hex digits; different bytes have different ones."""

    def digest_of_pieces(self, pieces: Iterable[bytes]) -> str:
        """The digest of bytes that come piece by piece, so that they need not be held at once."""

    def zero_digest(self, length: int) -> str:
        """The digest of `length` zero bytes; asked for often, so it must cost next to nothing."""

    def largest_frame(self, length: int) -> int:
        """The bytes that a frame of `length` bytes takes at most."""

    def encode(self, block: memoryview) -> bytes:
        """The frame of a block: all that `decode` needs to give the block back."""

    def decode(self, frame: memoryview, block: memoryview) -> None:
        """Fill `block` from its frame; whoever calls compares the digest.

        Raises DamagedError that says why, without naming the file, unless `frame` is one whole
        frame of exactly `len(block)` bytes. `block` is undefined then. A hostile frame must not
        make this take more memory than the block and the frame.
        """
