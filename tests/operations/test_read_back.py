"""A revision is published only if what it relies on is stored, as far as a backup can look."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backy.errors import DamagedError
from backy.operations import disk_backup
from backy.operations.backup import backup
from backy.operations.disk_backup import sample as sample_of
from backy.sources import Request
from tests.cli.runner import Backy, data, image
from tests.faults.workloads import one_worker
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import BytesImage, MemorySnapshot, MemorySource, sample

DISK = sample(6 * BLOCK + 100)
HOUR = timedelta(hours=1)
LARGE = sample(40 * BLOCK, 1)
PLAIN = MemorySource({"vda": DISK})


@pytest.fixture(params=["chunks", "images"])
def made(request: pytest.FixtureRequest, reflink_folder: Path) -> Made:
    return Made(reflink_folder, request.param)


@pytest.fixture
def chunks(tmp_path: Path) -> Made:
    return Made(tmp_path, "chunks")


def unchanged(made: Made) -> MemorySource:
    """A source that reports that nothing has changed since the newest revision."""
    newest = made.ids()[-1]
    return MemorySource({"vda": DISK}, known={newest: {"vda": DISK}})


def one_is_gone(made: Made) -> None:
    made.chunk(made.repository.find("latest"), 1).unlink()


def one_is_empty(made: Made) -> None:
    made.chunk(made.repository.find("latest"), 1).write_bytes(b"")


def zeroes_are_gone(made: Made) -> None:
    made.chunk(made.repository.find("latest"), 2).unlink()


def all_are_gone(made: Made) -> None:
    (made.root / "chunks").rename(made.root.parent / "elsewhere")


LOSSES: list[Callable[[Made], None]] = [one_is_gone, one_is_empty, zeroes_are_gone, all_are_gone]


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("is_tracked", [True, False], ids=["unchanged", "read-in-full"])
def test_what_the_parent_has_lost_is_stored_again_from_the_source(
    chunks: Made, lose: Callable[[Made], None], is_tracked: bool
) -> None:
    chunks.backup(DISK)
    lose(chunks)
    new = backup(chunks.repository, unchanged(chunks) if is_tracked else PLAIN)
    chunks.contents[new.id] = {"vda": DISK}
    assert chunks.intact()
    assert "could not be read back; stored again" in " ".join(new.warnings)


def test_a_block_that_the_parent_has_damaged_is_stored_again_from_the_source(made: Made) -> None:
    first = made.backup(DISK)
    path = made.chunk(first, 0) if made.store == "chunks" else made.root / "revisions" / first.id
    damaged = path if path.is_file() else path / "vda.img"
    damaged.chmod(0o600)
    with damaged.open("r+b") as file:
        file.seek(40)
        file.write(b"other bytes")
    new = backup(made.repository, unchanged(made))
    assert made.read(new) == DISK


class Thief(MemorySource):
    """While the last part of its disk is read, somebody takes away what is stored."""

    def __init__(self, chunks: Path) -> None:
        super().__init__({"vda": LARGE})
        self.chunks = chunks

    @contextmanager
    def opened(self, request: Request, disks: Mapping[str, bytes]) -> Iterator[MemorySnapshot]:
        with super().opened(request, disks) as snapshot:
            snapshot.disks["vda"] = StolenImage(self.chunks)
            yield snapshot


class StolenImage(BytesImage):
    def __init__(self, chunks: Path) -> None:
        super().__init__(LARGE)
        self._chunks = chunks
        self._is_left = True

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if self._is_left and offset + len(buffer) == self.size:
            self._is_left = False
            shutil.rmtree(self._chunks)
        super().readinto(offset, buffer)


def test_what_is_taken_away_during_a_backup_is_stored_again(chunks: Made) -> None:
    with one_worker():
        new = backup(chunks.repository, Thief(chunks.root / "chunks"))
    assert chunks.read(new) == LARGE


def test_a_backup_that_cannot_read_back_a_block_names_it_and_publishes_nothing(
    chunks: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks.backup(DISK)
    one_is_gone(chunks)
    monkeypatch.setattr("backy.stores.chunks.ChunkBlocks.repair", lambda *_: None)  # lost again
    with pytest.raises(DamagedError, match="block 1 was stored again, but cannot be read back"):
        backup(chunks.repository, unchanged(chunks))
    assert len(chunks.ids()) == 1


@pytest.mark.parametrize("is_verified", [False, True], ids=["sample", "all"])
def test_the_revision_says_what_was_read_back(made: Made, is_verified: bool) -> None:
    first = made.backup(DISK)
    zero = made.repository.codec.zero_digest(BLOCK)
    lines = made.lines(first)
    with_data = len(lines) - lines.count(zero) if made.store == "chunks" else -1
    new = backup(made.repository, unchanged(made), is_verified=is_verified).disks["vda"]
    assert new.looked_up == with_data + 1  # and the chunk of zeroes
    if is_verified:
        assert new.read_back == new.size
    else:
        assert 4 * BLOCK < new.read_back <= new.size


def test_verify_reads_back_all_of_a_larger_disk_and_a_sample_does_not(tmp_path: Path) -> None:
    backy = Backy(tmp_path / "backups")
    source = image(tmp_path / "vm1.img", data(1, 64 * BLOCK))
    small = ("--block-size", "64KiB")
    for options, least, most in (((), 8, 24), (("--verify",), 64, 64)):
        revision = backy.backup("vm1", source, *small, *options)
        [disk] = backy.said_of("vm1", revision)["disks"].values()
        assert least * BLOCK <= disk["read_back"] <= most * BLOCK
        assert disk["looked_up"] == 64


def test_the_sample_of_an_unchanged_disk_comes_to_each_block(chunks: Made) -> None:
    first = chunks.backup(data(1, 200 * BLOCK))
    seen: set[int] = set()
    with chunks.repository.store.open_index(first, "vda") as index:
        for hours in range(0, 30 * 24, 2):
            numbers = list(sample_of(index, datetime(2026, 1, 1, tzinfo=UTC) + hours * HOUR))
            assert len(numbers) <= 8
            seen |= set(numbers)
    assert seen == set(range(200))


@pytest.mark.parametrize("seconds", [0, 60], ids=["seen-by-the-sample", "seen-by-name"])
def test_where_one_name_is_missing_all_blocks_are_read_back(
    chunks: Made, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    monkeypatch.setattr(disk_backup, "_LOOK_UP_SECONDS", seconds)
    first = chunks.backup(data(1, 200 * BLOCK))
    lost = [chunks.chunk(first, number) for number in range(150)]
    for path in lost:
        path.unlink()
    new = backup(chunks.repository, MemorySource({"vda": data(1, 200 * BLOCK)}))
    chunks.contents[new.id] = chunks.contents[first.id]
    assert chunks.intact()
    assert new.disks["vda"].read_back >= 200 * BLOCK
    assert "disk vda: 150 stored blocks could not be read back" in new.warnings[-1]


def test_looking_up_names_ends_with_its_time(chunks: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks.backup(data(1, 200 * BLOCK))
    monkeypatch.setattr(disk_backup, "_LOOK_UP_SECONDS", 0)
    new = backup(chunks.repository, MemorySource({"vda": data(1, 200 * BLOCK)})).disks["vda"]
    assert new.looked_up == 1
    assert new.read_back == 8 * BLOCK
