"""What every codec promises.  A codec joins with a class of its own in a test module:

class TestMyCodec(CodecSuite):
    codec: ClassVar[Codec] = MyCodec()
"""

import re
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import ClassVar

import pytest

from backy.errors import DamagedError
from backy.stores.codec import Codec
from backy.system.files import PAGE
from backy.units import KiB, MiB
from tests.memory_source import sample

BLOCK = 64 * KiB
CONTENT = {
    "text": b"backy " * (BLOCK // 6) + b"1234",
    "noise": Random(1).randbytes(BLOCK),
    "zeroes": bytes(BLOCK),
    "a-short-last-block": sample(12_345),
    "one-byte": b"x",
    "the-largest-block": Random(2).randbytes(16 * MiB),
}


class CodecSuite:
    """One codec."""

    codec: ClassVar[Codec]

    @pytest.fixture(params=CONTENT.values(), ids=list(CONTENT))
    def content(self, request: pytest.FixtureRequest) -> bytes:
        content: bytes = request.param
        return content

    def encoded(self, content: bytes) -> bytes:
        frame = memoryview(bytearray(b"\xaa" * self.codec.largest_frame(len(content))))
        return bytes(frame[: self.codec.encode(memoryview(content), frame)])

    def decoded(self, frame: bytes, length: int) -> bytes:
        block = memoryview(bytearray(b"\xaa" * length))
        self.codec.decode(memoryview(frame), block)
        return bytes(block)

    def test_a_digest_is_64_hex_digits_in_lower_case(self, content: bytes) -> None:
        assert re.fullmatch(r"[0-9a-f]{64}", self.codec.digest(content))

    def test_different_bytes_have_different_digests(self) -> None:
        contents = [*CONTENT.values(), bytes(BLOCK - 1), b"", b"y"]
        assert len({self.codec.digest(each) for each in contents}) == len(contents)

    def test_the_digest_of_pieces_is_that_of_the_whole(self, content: bytes) -> None:
        cut = len(content) // 3
        pieces = [content[:cut], b"", content[cut:]]
        assert self.codec.digest_of_pieces(iter(pieces)) == self.codec.digest(content)
        assert self.codec.digest_of_pieces([]) == self.codec.digest(b"")

    @pytest.mark.parametrize("length", [1, 12_345, BLOCK, MiB])
    def test_the_digest_of_zeroes_is_that_of_so_many_zero_bytes(self, length: int) -> None:
        for _ in range(2):
            assert self.codec.zero_digest(length) == self.codec.digest(bytes(length))

    def test_a_block_comes_back_from_its_frame(self, content: bytes) -> None:
        frame = self.encoded(content)
        assert self.decoded(frame, len(content)) == content

    def test_a_frame_is_whole_pages_so_that_its_file_need_not_be_cut(self, content: bytes) -> None:
        frame = self.encoded(content)
        assert frame
        assert len(frame) % PAGE == 0

    def test_the_suffix_is_the_end_of_a_file_name(self) -> None:
        assert re.fullmatch(r"\.[a-z.]+", self.codec.suffix)

    @pytest.mark.parametrize("by", [-1, 1, 5000])
    def test_a_frame_of_another_length_is_refused(self, by: int) -> None:
        frame = self.encoded(sample(BLOCK))
        with pytest.raises(DamagedError):
            self.decoded(frame, BLOCK + by)

    def test_a_frame_that_is_cut_or_goes_on_is_refused(self) -> None:
        frame = self.encoded(sample(BLOCK))
        cuts = [*range(20), len(frame) // 2, len(frame) - 1]
        for bad in [*(frame[:cut] for cut in cuts), frame + b"\0", frame + frame]:
            with pytest.raises(DamagedError):
                self.decoded(bad, BLOCK)
        assert self.decoded(frame, BLOCK) == sample(BLOCK)

    def test_a_frame_with_a_changed_bit_is_refused_or_has_another_digest(self) -> None:
        random, content = Random(3), sample(BLOCK)
        frame = self.encoded(content)
        for place in random.sample(range(8 * len(frame)), 200):
            bad = bytearray(frame)
            bad[place // 8] ^= 1 << place % 8
            try:
                found = self.decoded(bytes(bad), BLOCK)
            except DamagedError as error:
                assert error.message  # noqa: PT017 - either is fine
            else:
                assert found == content or self.codec.digest(found) != self.codec.digest(content)

    def test_several_threads_use_it_at_once(self) -> None:
        def goes_round(seed: int) -> bool:
            content = sample(BLOCK, seed)
            return self.decoded(self.encoded(content), BLOCK) == content

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(goes_round, range(100)))
