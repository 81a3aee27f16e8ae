"""A file in chunks/ may hold anything: a block is whole, or an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.errors import BackyError, DamagedError, StoreError
from backy.operations.verify import verify
from backy.stores.chunks import ChunkBlocks, ChunkBuffers
from backy.stores.named_files import NamedFiles
from backy.stores.zstd import ZstdCodec
from backy.system.files import Cache
from backy.system.place import Place
from tests.fuzz import frames
from tests.fuzz.mutate import damaged_bytes
from tests.lab.handmade import digest_of
from tests.lab.repositories import Made

BLOCK = 65536
PLAIN = {
    "text": b"backy " * (BLOCK // 6) + b"1234",
    "noise": bytes(range(256)) * 8 + os.urandom(BLOCK - 2048),
    "zeroes": bytes(BLOCK),
}


class Shelf:
    """One chunk at a time, read with a codec and buffers that have seen all the chunks before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codec = ZstdCodec(1)
        self.buffers = ChunkBuffers(BLOCK, self.codec.largest_frame(BLOCK))
        self.blocks = ChunkBlocks(
            NamedFiles(Place.at(folder), self.codec.suffix),
            BLOCK,
            self.codec,
            self.buffers,
            Cache.SPARE,
        )

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.zst"

    def read(self, digest: str, length: int = BLOCK) -> bytes:
        block = self.buffers.block[:length]
        block[:] = b"\xaa" * length
        self.blocks.get(0, digest, block)
        return bytes(block)

    def put(self, digest: str, content: bytes) -> None:
        path = self.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def is_whole_or_refused(self, block: bytes, content: bytes) -> bool:
        """Put `content` where `block` should be; whether it is refused."""
        digest = digest_of(block)
        self.put(digest, content)
        try:
            found = self.read(digest, len(block))
        except StoreError as error:
            assert str(self.path(digest)) in error.message  # noqa: PT017 - either is fine
            return True
        assert len(found) == len(block)
        return digest_of(found) != digest

    def still_works(self) -> None:
        """What was refused leaves nothing behind in the codec."""
        self.put(digest_of(PLAIN["text"]), frames.good(PLAIN["text"]))
        assert self.read(digest_of(PLAIN["text"])) == PLAIN["text"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("chunks"))


# Two of these ask for more than they need, one is padded; zstd -d gives them back, too.
WHOLE = {"window-of-128-mib", "window-of-2-gib", "skippable-after"}


@pytest.mark.parametrize("name", sorted(frames.hostile(PLAIN["text"])))
@pytest.mark.parametrize("plain", PLAIN)
def test_a_frame_that_no_compressor_writes_is_refused(shelf: Shelf, plain: str, name: str) -> None:
    block = PLAIN[plain]
    refused = shelf.is_whole_or_refused(block, frames.hostile(block)[name])
    assert refused or name in WHOLE or (plain, name) == ("zeroes", "other-content")
    shelf.still_works()


def test_what_backy_writes_is_read(shelf: Shelf) -> None:
    for block in PLAIN.values():
        for content in (frames.padded(block), frames.good(block)):
            assert not shelf.is_whole_or_refused(block, content)


def test_a_frame_is_refused_wherever_it_is_cut(shelf: Shelf) -> None:
    whole = frames.padded(PLAIN["text"])
    end = len(frames.good(PLAIN["text"]))  # where only the padding is missing
    for length in {*range(end + 20), *range(len(whole) - 20, len(whole))} - {end}:
        assert shelf.is_whole_or_refused(PLAIN["text"], whole[:length])
    shelf.still_works()


@given(data=st.data(), plain=st.sampled_from(sorted(PLAIN)))
def test_a_mutated_frame_is_whole_or_refused(shelf: Shelf, data: st.DataObject, plain: str) -> None:
    block = PLAIN[plain]
    others = [frames.good(block), *list(frames.hostile(PLAIN["text"]).values())[:5]]
    shelf.is_whole_or_refused(block, data.draw(damaged_bytes(frames.padded(block), others)))
    shelf.still_works()


@given(st.binary(max_size=60))
def test_any_bytes_after_the_magic_are_refused(shelf: Shelf, rest: bytes) -> None:
    assert shelf.is_whole_or_refused(PLAIN["noise"], frames.MAGIC + rest)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


def link(path: Path) -> None:
    path.symlink_to(path)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize("make", [folder, os.mkfifo, link, sparse], ids=lambda make: make.__name__)
def test_what_is_no_file_in_place_of_a_chunk_is_an_error(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    shelf = Shelf(tmp_path)
    path = shelf.path(digest_of(PLAIN["text"]))
    path.parent.mkdir()
    make(path)
    with pytest.raises(StoreError):
        shelf.read(path.stem)


@pytest.mark.parametrize("name", ["bomb", "declares-4-gib", "twice", "dictionary", "empty"])
def test_a_hostile_chunk_is_found_and_replaced_by_the_next_backup(
    tmp_path: Path, name: str
) -> None:
    made = Made(tmp_path)
    block = PLAIN["text"]
    first = made.backup(block)
    made.chunk(first, 0).write_bytes(frames.hostile(block)[name])
    with pytest.raises(DamagedError):
        made.read(first)
    assert [each.healed for each in verify(made.repository, [first], origins=[])] == [None]
    second = made.backup(block)
    assert made.read(second) == block
    assert made.chunk(second, 0).read_bytes() == frames.padded(block)


def test_a_chunk_that_is_no_block_is_never_a_bug(shelf: Shelf) -> None:
    for name, content in frames.hostile(PLAIN["noise"]).items():
        shelf.put(digest_of(b"other"), content)
        try:
            shelf.read(digest_of(b"other"))
        except BackyError as error:
            assert error.message, name  # noqa: PT017 - either is fine
