"""Every codec keeps the promises of a codec."""

import subprocess
from typing import ClassVar

import zstandard

from backy.stores.codec import Codec
from backy.stores.zstd import ZstdCodec
from tests.conformance.codec import CodecSuite
from tests.keyed_codec import KeyedCodec


class TestZstd(CodecSuite):
    codec: ClassVar[Codec] = ZstdCodec(1)

    def test_the_digest_of_nothing_is_the_one_that_blake3_publishes(self) -> None:
        """https://github.com/BLAKE3-team/BLAKE3/blob/master/test_vectors/test_vectors.json."""
        expected = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        assert self.codec.digest(b"") == expected

    def test_a_frame_is_one_that_zstd_reads_with_content_size_and_checksum(
        self, content: bytes
    ) -> None:
        frame = self.codec.encode(memoryview(content))
        parameters = zstandard.get_frame_parameters(frame)
        assert parameters.has_checksum
        assert parameters.content_size == len(content)
        done = subprocess.run(["zstd", "-dcq"], input=frame, check=True, capture_output=True)
        assert done.stdout == content

    def test_a_higher_level_makes_smaller_frames(self) -> None:
        plain = memoryview(b"".join(b"%d " % number for number in range(20_000)))
        assert len(ZstdCodec(19).encode(plain)) < len(ZstdCodec(1).encode(plain))


class TestKeyed(CodecSuite):
    codec: ClassVar[Codec] = KeyedCodec()
