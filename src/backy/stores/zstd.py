"""The codec of format 1: the name of a block is its BLAKE3-256, its frame is zstd (RFC 8878).

`b3sum` and `zstd -d` do the same, so a restore by hand needs nothing else.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable

import zstandard
from blake3 import blake3

from backy.errors import DamagedError
from backy.system.files import PAGE

_SKIPPABLE = struct.Struct("<II")  # magic number, and how many bytes follow; RFC 8878, 3.1.2
_PADDING = 0x184D2A50


class ZstdCodec:
    """A Codec; `level` is the zstd level, 1 to 19."""

    suffix = ".zst"

    def __init__(self, level: int) -> None:
        self._contexts = _Contexts(level)
        self._zero_digests: dict[int, str] = {}

    def digest(self, content: bytes | memoryview) -> str:
        """BLAKE3-256."""
        return blake3(content).hexdigest()

    def digest_of_pieces(self, pieces: Iterable[bytes]) -> str:
        """BLAKE3-256."""
        hasher = blake3()
        for piece in pieces:
            hasher.update(piece)
        return hasher.hexdigest()

    def zero_digest(self, length: int) -> str:
        """Computed once for each length. There are few: the block size and short last blocks."""
        known = self._zero_digests.get(length)
        if known is None:
            known = self._zero_digests[length] = self.digest(bytes(length))
        return known

    def largest_frame(self, length: int) -> int:
        """ZSTD_COMPRESSBOUND, zstd.h (1/256 more than the block, less than 4 KiB), and padding."""
        return length + length // 256 + 3 * PAGE

    def encode(self, block: memoryview, frame: memoryview) -> int:
        """A frame with content size and checksum, and padding: a skippable frame of zeroes."""
        packed = self._contexts.compressor.compress(block)
        length = len(packed)
        frame[:length] = packed
        start = length + _SKIPPABLE.size
        zeroes = -start % PAGE
        _SKIPPABLE.pack_into(frame, length, _PADDING, zeroes)
        frame[start : start + zeroes] = bytes(zeroes)
        return start + zeroes

    def decode(self, frame: memoryview, block: memoryview) -> None:
        """Decompress straight into `block`."""
        wrong_length = f"its content is not {len(block)} bytes long"
        try:
            if zstandard.get_frame_parameters(frame).content_size != len(block):
                raise DamagedError(wrong_length)
            if _end(frame) != len(frame):
                raise DamagedError("it is cut short or has bytes after its end")
            with self._contexts.decompressor.stream_reader(frame) as reader:
                if reader.readinto(block) != len(block):
                    raise DamagedError(wrong_length)
        except zstandard.ZstdError as error:
            raise DamagedError(str(error)) from error


class _Contexts(threading.local):
    """A compressor and a decompressor for each thread; threads must not share one."""

    def __init__(self, level: int) -> None:
        self.compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
        self.decompressor = zstandard.ZstdDecompressor()


def _end(frame: memoryview) -> int:
    """Where the first zstd frame in `frame` ends, with its padding; -1 if it is cut short.

    See RFC 8878, sections 3.1.1, 3.1.1.2 and 3.1.2. zstandard's readers ignore bytes after a frame,
    but `zstd -d`, and so restore.sh, fails on them; it ignores what is in a skippable frame.
    """
    has_checksum = frame[4] & 4
    position, last = zstandard.frame_header_size(frame), 0
    while not last:
        header = int.from_bytes(frame[position : position + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size)
        if position > len(frame):
            return -1
    position += 4 if has_checksum else 0
    if len(frame) - position >= _SKIPPABLE.size:
        magic, size = _SKIPPABLE.unpack_from(frame, position)
        position += _SKIPPABLE.size + size if magic == _PADDING else 0
    return position
