"""A restore writes what the target does not have, and reads nothing else of the store."""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backy.errors import DamagedError, TargetError
from backy.model.revision import Revision
from backy.operations.differential import Differential
from backy.operations.restore import RestoredDisk, RestoreOptions, Way, restore
from backy.operations.verify_target import count_differences, verify_target
from backy.stores.blocks import StoredImage
from backy.system import files
from tests.faults.workloads import one_worker
from tests.lab.devices import device_of, needs_loop_devices
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import changed, sample

MIB = 1024**2
SHORT = 12_345
# Zeroes in whole steps of 1 MiB, in blocks of a step with data, and at the end of a step.
DISK = sample(MIB, seed=1) + bytes(2 * MIB) + sample(3 * BLOCK) + bytes(MIB) + sample(SHORT, seed=2)
BLOCKS = -(-len(DISK) // BLOCK)
DATA = sum(any(DISK[start : start + BLOCK]) for start in range(0, len(DISK), BLOCK))


@pytest.fixture(scope="module", params=["chunks", "images"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    if request.param == "chunks":
        yield Made(tmp_path_factory.mktemp("differential"))
        return
    with request.getfixturevalue("mounts").folder("xfs") as folder:
        yield Made(folder, "images")


@pytest.fixture(scope="module")
def revision(made: Made) -> Revision:
    return made.backup(DISK)


@contextmanager
def reads() -> Iterator[list[int]]:
    """The blocks that are read from the store meanwhile."""
    read: list[int] = []
    real = StoredImage._read

    def noted(self: StoredImage, number: int, block: memoryview) -> None:
        read.append(number)
        real(self, number, block)

    with patch.object(StoredImage, "_read", noted):
        yield read


def run(
    made: Made,
    revision: Revision,
    target: Path,
    **options: bool | type[Differential] | Callable[[Way], None] | Callable[[Way], int] | None,
) -> RestoredDisk:
    wanted = RestoreOptions(**{"differ": Differential, **options})  # type: ignore[arg-type]
    return restore(made.repository, revision, "vda", str(target), origins=[], options=wanted)


# What may be at the target: the disk with some blocks replaced, cut or made longer.
targets = st.builds(
    lambda stale, length, fill: (stale, length, fill),
    st.sets(st.integers(0, BLOCKS - 1), max_size=BLOCKS),
    st.integers(1, len(DISK) + 3 * BLOCK),
    st.sampled_from(["bytes", "zeroes", "hole"]),
)


def size_of(blocks: set[int]) -> int:
    return sum(min(BLOCK, len(DISK) - number * BLOCK) for number in blocks)


def make_target(path: Path, stale: set[int], length: int, fill: str) -> None:
    content = bytearray(DISK)
    for number in stale:
        start, end = number * BLOCK, min(number * BLOCK + BLOCK, len(DISK))
        content[start:end] = b"\xa5" * (end - start) if fill == "bytes" else bytes(end - start)
    content = content[:length] + b"\x5a" * (length - len(content))
    path.write_bytes(content)
    if fill == "hole":
        with files.open_to_write(path) as file:
            for number in stale:
                if number * BLOCK < length:
                    file.zero(number * BLOCK, min(BLOCK, length - number * BLOCK))


@given(targets, st.booleans())
@settings(max_examples=25)
def test_whatever_the_target_has_it_becomes_the_disk_and_only_what_differs_is_read(
    made: Made, revision: Revision, target: tuple[set[int], int, str], verify: bool
) -> None:
    with TemporaryDirectory(dir=made.base) as folder:
        path = Path(folder) / "target.img"
        make_target(path, *target)
        before = path.read_bytes().ljust(len(DISK), b"\0")[: len(DISK)]
        differ = {
            number
            for number in range(BLOCKS)
            if before[number * BLOCK :][:BLOCK] != DISK[number * BLOCK :][:BLOCK]
        }
        with reads() as read:
            done = run(made, revision, path, verify=verify_target if verify else None)
        assert path.read_bytes() == DISK
        assert set(read) <= differ
        assert len(read) == len(set(read))
        has_data = {number for number in differ if any(DISK[number * BLOCK :][:BLOCK])}
        # A block of zeroes between others that differ may be written with them.
        assert size_of(has_data) <= done.written <= size_of(differ)
        assert has_data <= set(read)


def test_a_target_that_is_the_disk_costs_no_read_of_the_store_and_no_write(
    made: Made, revision: Revision, tmp_path: Path
) -> None:
    (tmp_path / "target.img").write_bytes(DISK)
    with reads() as read, patch.object(files.File, "write", side_effect=AssertionError):
        assert run(made, revision, tmp_path / "target.img").written == 0
    assert read == []


def test_a_whole_restore_reads_all_data_once_and_never_the_target(
    made: Made, revision: Revision, tmp_path: Path
) -> None:
    (tmp_path / "target.img").write_bytes(DISK)
    with reads() as read:
        done = run(made, revision, tmp_path / "target.img", differ=None)
    assert len(read) == len(set(read)) >= DATA
    assert done.written == done.read
    assert (tmp_path / "target.img").read_bytes() == DISK


@needs_loop_devices
def test_a_device_is_compared_too_and_keeps_what_lies_beyond_the_disk(
    made: Made, revision: Revision, tmp_path: Path
) -> None:
    beyond = sample(MIB + 4096 - len(DISK) % 4096, seed=7)
    with device_of(changed(DISK, 5, 2 * MIB + 7, len(DISK) - 200) + beyond, tmp_path) as device:
        with reads() as read:
            done = run(made, revision, device, verify=verify_target)
        assert device.read_bytes() == DISK + beyond
    assert set(read) == {0, 2 * MIB // BLOCK, BLOCKS - 1}
    assert done.written == BLOCK + len(DISK) % BLOCK


@needs_loop_devices
def test_a_device_that_cannot_be_read_in_one_place_gets_that_place_from_the_store(
    made: Made, revision: Revision, tmp_path: Path
) -> None:
    content = DISK + bytes(4096 - len(DISK) % 4096)
    real = files.File.read_into

    def failing(self: files.File, offset: int, buffer: memoryview) -> int:
        if self.is_device and offset == 0:
            raise OSError(5, "Input/output error")
        return real(self, offset, buffer)

    with (
        device_of(content, tmp_path) as device,
        patch.object(files.File, "read_into", failing),
        reads() as read,
    ):
        run(made, revision, device)
        assert device.read_bytes()[: len(DISK)] == DISK
    assert read == [0]


class TestLost:
    """The repository has lost a block."""

    @pytest.fixture
    def lost(self, tmp_path: Path) -> tuple[Made, Revision]:
        made = Made(tmp_path / "lost")
        revision = made.backup(DISK)
        made.chunk(revision, 1).unlink()
        return made, revision

    def test_but_the_target_has_it_so_nothing_is_missing(
        self, lost: tuple[Made, Revision], tmp_path: Path
    ) -> None:
        target = tmp_path / "target.img"
        target.write_bytes(changed(DISK, 5))
        run(*lost, target)
        assert target.read_bytes() == DISK

    def test_and_the_target_has_something_else_so_it_gets_zeroes_and_that_is_told(
        self, lost: tuple[Made, Revision], tmp_path: Path
    ) -> None:
        target = tmp_path / "target.img"
        target.write_bytes(changed(DISK, BLOCK + 5))
        for _ in range(2):
            done = run(*lost, target, keep_going=True, verify=verify_target)
            assert done.lost == ((BLOCK, BLOCK),)
        assert target.read_bytes() == DISK[:BLOCK] + bytes(BLOCK) + DISK[2 * BLOCK :]
        with pytest.raises(DamagedError):
            run(*lost, target)


class TestVerify:
    @pytest.mark.parametrize("offset", [0, 2 * MIB, len(DISK) - 1], ids=["first", "zero", "last"])
    def test_names_the_range_that_is_not_what_was_written(
        self, made: Made, revision: Revision, tmp_path: Path, offset: int
    ) -> None:
        target = tmp_path / "target.img"

        def spoilt(way: Way) -> None:
            with target.open("r+b") as file:
                file.seek(offset)
                [byte] = file.read(1)
                file.seek(offset)
                file.write(bytes([byte ^ 1]))
            verify_target(way)

        with pytest.raises(TargetError) as caught:
            run(made, revision, target, verify=spoilt)
        start = offset - offset % BLOCK
        end = min(start + BLOCK, len(DISK))
        assert caught.value.message.endswith(f"written: bytes {start} to {end}")

    def test_reads_past_the_page_cache(
        self, made: Made, revision: Revision, tmp_path: Path
    ) -> None:
        opened: list[files.Cache] = []
        real = files.open_to_read

        def noted(path: files.AnyPath, cache: files.Cache = files.Cache.USE) -> files.File:
            if str(path).endswith("target.img"):
                opened.append(cache)
            return real(path, cache)

        def watched(way: Way) -> None:
            with patch.object(files, "open_to_read", noted):
                verify_target(way)

        run(made, revision, tmp_path / "target.img", verify=watched)
        assert opened[-1] is files.Cache.AVOID

    def test_of_many_ranges_names_ten(self, made: Made, revision: Revision, tmp_path: Path) -> None:
        def spoilt(way: Way) -> None:
            content = bytearray(DISK)
            content[:: 2 * BLOCK] = b"?" * len(content[:: 2 * BLOCK])
            (tmp_path / "target.img").write_bytes(content)
            verify_target(way)

        with pytest.raises(TargetError, match=r"and \d+ more$") as caught:
            run(made, revision, tmp_path / "target.img", verify=spoilt)
        assert caught.value.message.count(" to ") == 10


class TestDryRun:
    def test_says_how_much_would_be_written_and_changes_nothing(
        self, made: Made, revision: Revision, tmp_path: Path
    ) -> None:
        target = tmp_path / "target.img"
        target.write_bytes(changed(DISK, 5, MIB + 5))
        before = target.read_bytes()
        planned = run(made, revision, target, dry_run=count_differences)
        assert planned.written == 2 * BLOCK
        assert target.read_bytes() == before

    def test_of_a_shorter_target_counts_what_is_missing(
        self, made: Made, revision: Revision, tmp_path: Path
    ) -> None:
        target = tmp_path / "target.img"
        target.write_bytes(DISK[: MIB - 1])
        planned = run(made, revision, target, dry_run=count_differences)
        done = run(made, revision, target)
        assert planned.written == done.written > SHORT

    def test_of_a_new_file_counts_all_data(
        self, made: Made, revision: Revision, tmp_path: Path
    ) -> None:
        planned = run(made, revision, tmp_path / "new.img", dry_run=count_differences)
        assert planned.written == planned.read
        assert list(tmp_path.iterdir()) == []


class TestPartial:
    """A new file that a restore did not complete."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        return tmp_path / "new.img"

    @pytest.fixture
    def partial(self, target: Path) -> Path:
        return target.with_name(".new.img.partial")

    def stopped(self, made: Made, revision: Revision, target: Path, after: int = 20) -> None:
        """Run a restore whose store fails when `after` blocks were read."""
        count = 0
        real = StoredImage._read

        def failing(self: StoredImage, number: int, block: memoryview) -> None:
            nonlocal count
            count += 1
            if count > after:
                raise TargetError("it is enough", "Rest.")
            real(self, number, block)

        with (
            one_worker(),  # so that what was read before the last MiB is written
            patch.object(StoredImage, "_read", failing),
            pytest.raises(TargetError, match="it is enough") as caught,
        ):
            run(made, revision, target)
        self.hint = caught.value.hint

    def test_is_continued_by_the_next_restore(
        self, made: Made, revision: Revision, target: Path, partial: Path
    ) -> None:
        self.stopped(made, revision, target)
        assert not target.exists()
        assert f"Run it again to continue, or delete {partial}" in self.hint
        held = partial.read_bytes()
        with reads() as read:
            run(made, revision, target)
        assert target.read_bytes() == DISK
        assert not partial.exists()
        right = {n for n in range(BLOCKS) if held[n * BLOCK :][:BLOCK] == DISK[n * BLOCK :][:BLOCK]}
        assert not right & set(read)
        assert right

    def test_of_another_revision_is_continued_as_well(
        self, made: Made, revision: Revision, target: Path
    ) -> None:
        self.stopped(made, revision, target)
        other = made.backup(changed(DISK, 5) + sample(BLOCK, seed=5))
        run(made, other, target)
        assert target.read_bytes() == changed(DISK, 5) + sample(BLOCK, seed=5)

    def test_with_nothing_in_it_is_not_left(
        self, made: Made, revision: Revision, target: Path
    ) -> None:
        self.stopped(made, revision, target, after=0)
        assert list(target.parent.iterdir()) == []

    def test_is_not_filled_by_two_at_once(
        self, made: Made, revision: Revision, target: Path, partial: Path
    ) -> None:
        self.stopped(made, revision, target)
        with partial.open("r+b") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            before = partial.read_bytes()
            with pytest.raises(TargetError, match="another restore is writing") as caught:
                run(made, revision, target)
            assert "Wait" in caught.value.hint
            assert partial.read_bytes() == before
        run(made, revision, target)
        assert target.read_bytes() == DISK

    @pytest.mark.parametrize("kind", ["link", "hard-link", "fifo", "writable", "of-others"])
    def test_that_somebody_else_can_use_is_replaced(
        self, made: Made, revision: Revision, target: Path, partial: Path, kind: str
    ) -> None:
        bait = target.with_name("bait")
        bait.write_bytes(b"bait")
        bait.chmod(0o600)
        if kind == "link":
            partial.symlink_to(bait)
        elif kind == "hard-link":
            partial.hardlink_to(bait)
        elif kind == "fifo":
            os.mkfifo(partial)
        else:
            partial.write_bytes(b"bait")
            partial.chmod(0o666 if kind == "writable" else 0o600)
            if kind == "of-others":
                os.chown(partial, 65534, 65534)
        run(made, revision, target)
        assert target.read_bytes() == DISK
        assert bait.read_bytes() == b"bait"
        status = target.lstat()
        assert stat.S_ISREG(status.st_mode)
        assert (status.st_uid, status.st_nlink) == (os.geteuid(), 1)
        assert not status.st_mode & 0o077
