"""Chunks are zstd frames that `zstd -d` reads, and no file is trusted because it exists."""

import errno
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3

from backy.errors import DamagedError
from backy.model.revision import Revision
from backy.stores.chunks import ChunkStore
from backy.system import files
from backy.system.files import Cache
from backy.units import KiB
from tests.conformance.shelf import Shelf, digests
from tests.lab.handmade import compressed
from tests.lab.paged import stored
from tests.memory_source import BytesImage, changed, sample

BLOCK = 64 * KiB
PADDING = b"\x50\x2a\x4d\x18"  # the begin of a skippable frame, RFC 8878 section 3.1.2
DISK = sample(BLOCK) + sample(BLOCK, seed=1) + bytes(BLOCK) + sample(12_345, seed=2)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf.new(tmp_path / "store", ChunkStore, BLOCK)


def chunk(shelf: Shelf, revision: Revision, number: int) -> Path:
    digest = digests(shelf, revision)[number]
    return shelf.root / "chunks" / digest[:2] / f"{digest}.zst"


def chunks(shelf: Shelf) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in shelf.root.glob("chunks/*/*")}


@dataclass(frozen=True, slots=True)
class Bad:
    """What stands where a good chunk stood, and what is said of it."""

    make: Callable[[bytes], bytes]
    why: str = ""


def flipped(good: bytes, place: int) -> bytes:
    return good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]


def lying(_good: bytes) -> bytes:
    """A frame that says 64 KiB and holds a hundred times that; the four bytes are the size."""
    honest = compressed(bytes(100 * BLOCK))
    descriptor = honest[4]
    assert descriptor >> 6 == 2  # the content size has four bytes, RFC 8878 section 3.1.1.1
    at = 5 if descriptor & 0x20 else 6
    return honest[:at] + BLOCK.to_bytes(4, "little") + honest[at + 4 :]


BAD = {
    "empty": Bad(lambda good: b""),
    "zeroes": Bad(lambda good: bytes(len(good))),
    "header-only": Bad(lambda good: good[:12], "cut short"),
    "cut-short": Bad(lambda good: good[:-1], "cut short"),
    "torn-at-a-page": Bad(lambda good: good[:4096] + bytes(len(good) - 4096)),
    "a-byte-flipped": Bad(lambda good: flipped(good, 500)),
    "checksum-flipped": Bad(lambda good: flipped(good, good.rindex(PADDING) - 1)),
    "trailing-byte": Bad(lambda good: good + b"\0", "after its end"),
    "trailing-frame": Bad(lambda good: good + compressed(b""), "after its end"),
    "no-frame": Bad(lambda good: b"not zstd" * 100),
    "other-content": Bad(lambda good: compressed(sample(BLOCK, seed=9)), "do not match"),
    "content-too-short": Bad(lambda good: compressed(sample(BLOCK - 1)), "not 65536 bytes long"),
    "content-too-long": Bad(lambda good: compressed(sample(BLOCK + 1)), "not 65536 bytes long"),
    "content-of-a-bomb": Bad(lambda good: compressed(bytes(1 << 26)), "not 65536 bytes long"),
    "content-size-a-lie": Bad(lying),
    "no-content-size": Bad(
        lambda good: zstandard.ZstdCompressor(write_content_size=False).compress(bytes(BLOCK))
    ),
    "larger-than-any-chunk": Bad(lambda good: good + bytes(2 * BLOCK), "larger than any chunk"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_chunk_that_is_not_what_was_stored_is_named_with_its_block(
    shelf: Shelf, bad: Bad
) -> None:
    revision = shelf.publish(DISK)
    path = chunk(shelf, revision, 1)
    path.write_bytes(bad.make(path.read_bytes()))
    with pytest.raises(DamagedError, match=rf"(?s)\b{BLOCK}\b.*{bad.why}"):
        shelf.read(revision)
    assert shelf.read(revision, 0, BLOCK) == DISK[:BLOCK]
    assert shelf.read(revision, 2 * BLOCK) == DISK[2 * BLOCK :]


def test_a_missing_chunk_is_named_with_its_block_and_its_path(shelf: Shelf) -> None:
    revision = shelf.publish(DISK)
    path = chunk(shelf, revision, 1)
    path.unlink()
    with pytest.raises(DamagedError, match=rf"block 1 \(byte {BLOCK}\): {path} is missing"):
        shelf.read(revision)


def test_a_chunk_is_one_frame_with_content_size_and_checksum(shelf: Shelf) -> None:
    shelf.publish(DISK)
    assert len(chunks(shelf)) == 4
    for path, frame in chunks(shelf).items():
        parameters = zstandard.get_frame_parameters(frame)
        assert parameters.has_checksum
        plain = subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout
        assert parameters.content_size == len(plain)
        assert path.name == f"{blake3(plain).hexdigest()}.zst"
        assert path.parent.name == path.name[:2]


def test_a_chunk_in_the_page_cache_is_not_read_from_the_medium(shelf: Shelf) -> None:
    """It is shorter than the buffer, of which the page cache could not have all."""
    revision = shelf.publish(DISK)
    shelf.read(revision)  # the index
    os.sync()
    assert all(len(frame) < BLOCK for frame in chunks(shelf).values())  # reads through the cache
    before = bytes_read()
    with shelf.store.open(revision, "vda", Cache.AVOID) as image:
        image.readinto(0, memoryview(bytearray(BLOCK)))
    from_medium = bytes_read()
    assert shelf.read(revision) == DISK
    assert bytes_read() == from_medium > before


def bytes_read() -> int:
    """What this process had its kernel read from media: proc_pid_io(5)."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes: "):
            return int(line.split()[1])
    raise AssertionError("the kernel does not count")


def test_a_block_that_repeats_is_stored_once(shelf: Shelf) -> None:
    revision = shelf.publish(sample(BLOCK) * 20)
    [path] = chunks(shelf)
    # Threads that have the same block at the same moment each write it; there are at most eight.
    assert revision.disks["vda"].stored <= 8 * path.stat().st_size


def test_zero_blocks_cost_one_small_chunk(shelf: Shelf) -> None:
    with shelf.draft(70_000 * BLOCK) as draft:
        draft.zero(0, 70_000 * BLOCK)
        assert 0 < draft.stored <= files.PAGE
    assert len(chunks(shelf)) == 1


@pytest.mark.parametrize("torn", [b"", b"torn", bytes(5000)], ids=["empty", "short", "zeroes"])
@pytest.mark.parametrize("number", [1, 2, 3], ids=["data", "zeroes", "short-last-block"])
def test_a_torn_chunk_that_no_published_index_uses_is_replaced(
    shelf: Shelf, torn: bytes, number: int
) -> None:
    block = DISK[number * BLOCK : (number + 1) * BLOCK]
    digest = blake3(block).hexdigest()
    path = shelf.root / "chunks" / digest[:2] / f"{digest}.zst"
    path.parent.mkdir(parents=True)
    path.write_bytes(torn)
    revision = shelf.publish(DISK)
    assert path == chunk(shelf, revision, number)
    assert shelf.read(revision) == DISK


def test_a_bad_chunk_that_the_parent_has_in_another_place_is_written_again(
    shelf: Shelf,
) -> None:
    """The parent's line in the same place is relied on, nothing else."""
    parent = shelf.publish(DISK)
    chunk(shelf, parent, 0).write_bytes(b"torn")
    revision = shelf.publish(DISK[BLOCK : 2 * BLOCK] + DISK[:BLOCK] + DISK[2 * BLOCK :], parent)
    assert shelf.read(revision)[BLOCK : 2 * BLOCK] == DISK[:BLOCK]


def test_a_bad_chunk_is_replaced_in_one_step(shelf: Shelf) -> None:
    """Who has the old one open keeps all of it: a new file took its name."""
    path = chunk(shelf, shelf.publish(DISK), 0)
    path.write_bytes(b"torn")
    with path.open("rb") as old:
        assert shelf.read(shelf.publish(DISK)) == DISK
        assert os.fstat(old.fileno()).st_nlink == 0
        assert old.read() == b"torn"
    assert len(chunks(shelf)) == 4


def test_a_chunk_that_was_read_and_is_good_is_not_written_again(shelf: Shelf) -> None:
    shelf.publish(DISK)
    before = {path: path.stat().st_ino for path in chunks(shelf)}
    revision = shelf.publish(DISK)
    assert revision.disks["vda"].stored == 0
    assert {path: path.stat().st_ino for path in chunks(shelf)} == before


def test_unchanged_blocks_create_and_touch_no_chunk(shelf: Shelf) -> None:
    parent = shelf.publish(DISK)
    before = {path: path.stat().st_ino for path in chunks(shelf)}
    shelf.publish(BytesImage(DISK, parent=DISK), parent)
    shelf.publish(DISK, parent)
    assert {path: path.stat().st_ino for path in chunks(shelf)} == before


def test_a_change_makes_one_chunk_a_block(shelf: Shelf) -> None:
    parent = shelf.publish(DISK)
    before = chunks(shelf).keys()
    revision = shelf.publish(changed(DISK, BLOCK + 7), parent)
    assert chunks(shelf).keys() - before == {chunk(shelf, revision, 1)}


def test_collect_deletes_exactly_the_unused_chunks(shelf: Shelf) -> None:
    first = shelf.publish(DISK)
    second = shelf.publish(changed(DISK, 5, 3 * BLOCK), first)
    third = shelf.publish(changed(DISK, BLOCK), second)
    kept = {f"{digest}.zst" for each in (first, third) for digest in digests(shelf, each)}
    sizes = {path.name: len(frame) for path, frame in chunks(shelf).items()}
    unnamed = sizes.keys() - kept
    assert len(unnamed) == 2
    pages = {path: len(content) for path, content in stored(shelf.root)}
    freed = shelf.collect(first, third)
    gone = pages.keys() - dict(stored(shelf.root)).keys()
    assert freed == sum(sizes[name] for name in unnamed) + sum(pages[path] for path in gone)
    assert len(gone) == 3  # a page, its twin, and the twin of the index
    assert {path.name for path in chunks(shelf)} == kept
    assert shelf.read(first) == DISK
    assert shelf.read(third) == changed(DISK, BLOCK)


def test_collect_deletes_what_killed_drafts_left_and_all_chunks_if_none_is_used(
    shelf: Shelf,
) -> None:
    revision = shelf.publish(DISK)
    folder = chunk(shelf, revision, 0).parent
    for name in (f".{'0' * 64}.zst.4711", f".{'0' * 64}.4711", f"{'1' * 64}.zst"):
        (folder / name).write_bytes(b"stray")
    assert shelf.collect(revision) == 15
    assert len(chunks(shelf)) == 4
    shelf.collect()
    assert chunks(shelf) == {}


def test_collect_keeps_the_zero_chunk_of_a_disk_that_is_all_zero(shelf: Shelf) -> None:
    revision = shelf.publish(bytes(3 * BLOCK))
    assert shelf.collect(revision) == 0
    assert shelf.read(revision) == bytes(3 * BLOCK)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_without_unnamed_files_chunks_are_written_under_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> files.File:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "create_unnamed", refuse)
    shelf = Shelf.new(tmp_path, ChunkStore, BLOCK)
    content = sample(5 * BLOCK)
    assert shelf.read(shelf.publish(content)) == content


def test_a_name_never_shows_half_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = files.File.write, list[list[Path]]()

    def write(file: files.File, offset: int, content: bytes | memoryview) -> None:
        if len(content) > files.PAGE:
            seen.append(list((tmp_path / "chunks").glob("*/*")))
        real(file, offset, content)

    monkeypatch.setattr(files.File, "write", write)
    shelf = Shelf.new(tmp_path, ChunkStore, BLOCK)
    shelf.publish(sample(BLOCK))
    assert seen == [[]]
