"""zstd frames that no compressor writes, byte by byte: RFC 8878, section 3.1.1."""

from __future__ import annotations

import zstandard

MAGIC = b"\x28\xb5\x2f\xfd"
RAW, RLE, COMPRESSED, RESERVED = range(4)
LONGEST = 1 << 17  # bytes in a block of a frame


def piece(kind: int, size: int, data: bytes, *, last: bool = False) -> bytes:
    """One block of a frame."""
    return (last | kind << 1 | size << 3).to_bytes(3, "little") + data


def frame(
    *blocks: bytes,
    content_size: int | None = None,
    window: int | None = None,
    dictionary: int | None = None,
    checksum: bytes = b"",
    reserved: int = 0,
) -> bytes:
    """A frame; `window` is the exponent of the window's size, without it there is one segment."""
    descriptor = 0x20 * (window is None) | 0x04 * bool(checksum) | reserved
    header = b"" if window is None else bytes([(window - 10) << 3])
    if dictionary is not None:
        descriptor |= 3
        header += dictionary.to_bytes(4, "little")
    if content_size is not None:
        descriptor |= 0xC0
        header += content_size.to_bytes(8, "little")
    elif window is None:  # one byte, of 0
        header += b"\0"
    return MAGIC + bytes([descriptor]) + header + b"".join(blocks) + checksum


def skippable(length: int) -> bytes:
    """A frame that decompressors pass over."""
    return b"\x50\x2a\x4d\x18" + length.to_bytes(4, "little") + bytes(min(length, 1000))


def run(length: int) -> list[bytes]:
    """Blocks that make `length` zeroes of a few bytes."""
    sizes = [LONGEST] * (length // LONGEST) + [length % LONGEST] * bool(length % LONGEST)
    return [
        piece(RLE, size, b"\0", last=number == len(sizes) - 1) for number, size in enumerate(sizes)
    ]


def good(block: bytes) -> bytes:
    """A whole frame, as backy wrote it before there was padding."""
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(block)


def padded(block: bytes) -> bytes:
    """What backy writes: whole pages."""
    whole = good(block)
    zeroes = -(len(whole) + 8) % 4096
    return whole + b"\x50\x2a\x4d\x18" + zeroes.to_bytes(4, "little") + bytes(zeroes)


def windowed(block: bytes, window: int) -> bytes:
    """A whole frame that asks for a window of 2^`window` bytes, though it needs none."""
    blocks = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(block)
    start = zstandard.frame_header_size(blocks)
    return frame(blocks[start:], content_size=len(block), window=window)


def hostile(block: bytes) -> dict[str, bytes]:
    """Frames that claim to hold `block`, by what is wrong with each."""
    size, whole = len(block), good(block)
    rle = run(size)
    bomb = [piece(RLE, LONGEST, b"\0")] * 12_000
    return {
        "empty": b"",
        "magic-only": MAGIC,
        "five-bytes": whole[:5],
        "zeroes": bytes(size),
        "legacy": b"\x27\xb5\x2f\xfd" + whole[4:],
        "declares-4-gib": frame(*rle, content_size=1 << 32),
        "declares-everything": frame(*rle, content_size=(1 << 64) - 1),
        "declares-less": frame(*rle, content_size=size - 1),
        "declares-nothing": frame(*rle, window=20),
        "declares-zero": frame(*rle),
        "more-than-declared": frame(*run(2 * size), content_size=size),
        "less-than-declared": frame(*run(size - 1), content_size=size),
        "bomb": frame(*bomb, *rle, content_size=12_000 * LONGEST + size),
        "bomb-that-declares-a-block": frame(*bomb, *rle, content_size=size),
        "window-of-128-mib": windowed(block, 27),
        "window-of-2-gib": windowed(block, 31),
        "window-of-2-tib": windowed(block, 41),
        "cut-short": whole[:-1],
        "half": whole[: len(whole) // 2],
        "header-only": whole[: zstandard.frame_header_size(whole)],
        "twice": whole * 2,
        "garbage-after": whole + b"\0",
        "skippable-before": skippable(16)[:24] + whole,
        "skippable-after": whole + skippable(16)[:24],
        "skippable-after-twice": whole + skippable(16)[:24] * 2,
        "skippable-after-cut-short": whole + skippable(16)[:23],
        "skippable-after-of-4-gib": whole + skippable((1 << 32) - 1),
        "skippable-after-is-only-magic": whole + skippable(0)[:4],
        "skippable-of-a-block": skippable(size),
        "skippable-of-nothing": skippable(0),
        "dictionary": frame(*rle, content_size=size, dictionary=0x12345678),
        "reserved-bit": frame(*rle, content_size=size, reserved=8),
        "reserved-block": frame(piece(RESERVED, 5, b"12345", last=True), content_size=size),
        "long-block": frame(piece(RLE, (1 << 21) - 1, b"\0", last=True), content_size=size),
        "endless": frame(*[piece(RAW, 0, b"")] * 10_000, content_size=size),
        "wrong-checksum": whole[:-4] + b"\0\0\0\0",
        "other-content": good(bytes(size)),
        "compressed-garbage": frame(
            piece(COMPRESSED, 100, b"\xff" * 100, last=True), content_size=size
        ),
    }
