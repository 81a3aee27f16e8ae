"""Every codec keeps the promises of a codec."""

import subprocess
from random import Random
from typing import ClassVar

import pytest
import zstandard

from backy.errors import DamagedError
from backy.stores.codec import Codec
from backy.stores.zstd import ZstdCodec
from backy.system.files import PAGE
from tests.conformance.codec import BLOCK, CodecSuite
from tests.keyed_codec import KeyedCodec
from tests.memory_source import sample


class TestZstd(CodecSuite):
    codec: ClassVar[Codec] = ZstdCodec(1)

    def test_the_digest_of_nothing_is_the_one_that_blake3_publishes(self) -> None:
        """https://github.com/BLAKE3-team/BLAKE3/blob/master/test_vectors/test_vectors.json."""
        expected = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        assert self.codec.digest(b"") == expected

    def test_a_frame_is_one_that_zstd_reads_with_content_size_and_checksum(
        self, content: bytes
    ) -> None:
        frame = self.encoded(content)
        parameters = zstandard.get_frame_parameters(frame)
        assert parameters.has_checksum
        assert parameters.content_size == len(content)
        done = subprocess.run(["zstd", "-dcq"], input=frame, check=True, capture_output=True)
        assert done.stdout == content

    def test_a_higher_level_makes_smaller_frames(self) -> None:
        plain = memoryview(b"".join(b"%d " % number for number in range(20_000)))
        frame = memoryview(bytearray(ZstdCodec(1).largest_frame(len(plain))))
        assert ZstdCodec(19).encode(plain, frame) < ZstdCodec(1).encode(plain, frame)

    @pytest.mark.parametrize("over", range(-9, 2))
    def test_padding_is_a_skippable_frame_that_zstd_ignores(self, over: int) -> None:
        """It takes eight bytes at least, so a frame that nearly fills its pages gets one more."""
        block = Random(4).randbytes(3 * PAGE - 14 + over)  # 14 bytes: headers and checksum
        frame = self.encoded(block)
        packed = zstandard.ZstdCompressor(1, write_checksum=True).compress(block)
        assert len(packed) == 3 * PAGE + over
        assert frame[: len(packed)] == packed
        assert len(frame) == (3 if over < -7 else 4) * PAGE
        done = subprocess.run(["zstd", "-dcq"], input=frame, check=True, capture_output=True)
        assert done.stdout == block
        assert self.decoded(frame, len(block)) == block

    @pytest.mark.parametrize(
        "after",
        [
            pytest.param(b"\x50\x2a\x4d\x18", id="a-magic-number-alone"),
            pytest.param(b"\x50\x2a\x4d\x18\x09\0\0\0" + bytes(8), id="shorter-than-it-says"),
            pytest.param(b"\x50\x2a\x4d\x18\x07\0\0\0" + bytes(8), id="longer-than-it-says"),
            pytest.param(b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(8), id="4-GiB"),
            pytest.param(2 * (b"\x50\x2a\x4d\x18" + bytes(4)), id="two-of-them"),
            pytest.param(bytes(4096), id="zeroes"),
        ],
    )
    def test_nothing_but_one_skippable_frame_may_follow_a_frame(self, after: bytes) -> None:
        packed = zstandard.ZstdCompressor(1, write_checksum=True).compress(sample(BLOCK))
        assert self.decoded(packed + b"\x50\x2a\x4d\x18" + bytes(4), BLOCK) == sample(BLOCK)
        with pytest.raises(DamagedError, match="after its end"):
            self.decoded(packed + after, BLOCK)


class TestKeyed(CodecSuite):
    codec: ClassVar[Codec] = KeyedCodec()
