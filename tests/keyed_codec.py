"""A second Codec, with other names and other frames than format 1: BLAKE3 with a key, and zlib.

Whatever works with it has no hashing and no compressing of its own.
"""

import zlib
from collections.abc import Iterable

from blake3 import blake3

from backy.errors import DamagedError
from backy.system.files import PAGE

KEY = bytes(range(32))


class KeyedCodec:
    """A Codec; see there for the contract."""

    suffix = ".z"

    def digest(self, content: bytes | memoryview) -> str:
        return blake3(content, key=KEY).hexdigest()

    def digest_of_pieces(self, pieces: Iterable[bytes]) -> str:
        return self.digest(b"".join(pieces))

    def zero_digest(self, length: int) -> str:
        return self.digest(bytes(length))

    def largest_frame(self, length: int) -> int:
        return length + length // 1000 + 100 + PAGE

    def encode(self, block: memoryview, frame: memoryview) -> int:
        packed = zlib.compress(block, 1)
        length = -(-len(packed) // PAGE) * PAGE
        frame[:length] = packed.ljust(length, b"\0")
        return length

    def decode(self, frame: memoryview, block: memoryview) -> None:
        decompressor = zlib.decompressobj()
        try:
            plain = decompressor.decompress(frame, len(block) + 1)
        except zlib.error as error:
            raise DamagedError(str(error)) from error
        goes_on = decompressor.unused_data.strip(b"\0") or len(frame) % PAGE
        if len(plain) != len(block) or not decompressor.eof or goes_on:
            raise DamagedError(f"it is not a frame of {len(block)} bytes")
        block[:] = plain
