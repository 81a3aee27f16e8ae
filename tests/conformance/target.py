"""What every Target promises.  A target joins with a class of its own in a test module:

class TestMyTarget(TargetSuite):
    last_calls: ClassVar = ["sync"]  # of the disk door, after the last write

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        yield Trial(MyTarget(...), ...)  # which can take a disk of `size` bytes
"""

import gc
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import pytest

from backy.errors import TargetError
from backy.image.copy import copy
from backy.model.extent import Kind
from backy.nbd.client import Connection
from backy.system import files, folders
from backy.targets import Target
from backy.units import KiB, MiB
from tests.conformance.image import read
from tests.memory_source import BytesImage, sample

BLOCK = 64 * KiB
SYNCS: list[tuple[type, str]] = [(Connection, "flush"), (files.File, "sync")]
OLD = 0xA5  # what every byte is of a target that exists


@dataclass
class Trial:
    """A target, and how it looks to others. `content` is None if there is nothing under its name.

    `path` is the file or device that it is, if it is one. `allocated` gives the bytes that its
    content takes. `is_used`: it holds what only --overwrite allows to replace. `place` is what a
    source that reads the same has among its paths, if that is no path.
    """

    target: Target
    content: Callable[[], bytes | None]
    path: Path | None = None
    allocated: Callable[[], int] | None = None
    is_used: bool = False
    place: str = ""


class TargetSuite:
    """One kind of target, with disks that end and do not end where a block does."""

    last_calls: ClassVar[list[str]]
    """What it calls of the disk door after the last write, so that all is durable."""

    sizes: ClassVar = [
        pytest.param(2 * MiB, id="whole-blocks"),
        pytest.param(2 * MiB + 12_345, id="short-last-block"),
        pytest.param(2 * MiB + 512, id="whole-sectors"),
        pytest.param(1, id="one-byte"),
    ]

    @abstractmethod
    def open(self, folder: Path, size: int) -> AbstractContextManager[Trial]:
        """A target for a disk of `size` bytes; `folder` is empty and may be used for it."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "size" in metafunc.fixturenames:
            metafunc.parametrize("size", self.sizes)

    @pytest.fixture
    def disk(self, size: int) -> bytes:
        return sample(size)

    @pytest.fixture
    def trial(self, tmp_path: Path, size: int) -> Iterator[Trial]:
        folder = tmp_path / "folder"
        folder.mkdir()
        with self.open(folder, size) as trial:
            yield trial

    def test_holds_the_disk_byte_for_byte(self, trial: Trial, disk: bytes) -> None:
        restore(trial.target, disk)
        assert trial.content() == disk

    def test_looking_at_it_writes_nothing(self, trial: Trial, disk: bytes) -> None:
        before = trial.content()
        with calls() as called:
            trial.target.refuse({"vda": Path("/nowhere/vda.img")})
            trial.target.refuse_format(lambda: disk[:4096])
            trial.target.check(len(disk))
            trial.target.capacity()
        assert called == []
        assert trial.content() == before

    def test_a_disk_that_is_all_zeroes_leaves_nothing_of_what_was_there(
        self, trial: Trial, size: int
    ) -> None:
        restore(trial.target, bytes(size))
        assert trial.content() == bytes(size)

    def test_zeroes_take_no_space(self, trial: Trial, disk: bytes) -> None:
        restore(trial.target, bytes(len(disk)))
        if trial.allocated:
            assert trial.allocated() <= BLOCK

    def test_what_it_holds_is_only_replaced_by_who_says_so(self, trial: Trial) -> None:
        before = trial.content()
        if not trial.is_used:
            trial.target.refuse_used()
            return
        with calls() as called, pytest.raises(TargetError) as caught:
            trial.target.refuse_used()
        assert "--overwrite" in caught.value.hint
        assert called == []
        assert trial.content() == before

    def test_it_is_read_back_while_it_is_written(self, trial: Trial, disk: bytes) -> None:
        if trial.target.read_back() is None:
            return
        with trial.target.open(len(disk), BLOCK) as draft:
            held = trial.target.read_back()
            assert held
            with held as image:
                start = read(image, 0, 1)
                copy(BytesImage(disk), draft, workers=1)
        old = bytes([OLD])
        assert start == old
        assert trial.content() == disk

    def test_an_image_of_a_format_is_not_destroyed_by_another_disk(
        self, trial: Trial, disk: bytes
    ) -> None:
        if trial.path and trial.path.exists():
            header = b"QFI\xfb\0\0\0\3"
            with trial.path.open("r+b") as file:
                file.write(header)
            with pytest.raises(TargetError, match="is a qcow2 image") as caught:
                trial.target.refuse_format(lambda: disk[:4096])
            assert "qemu-img convert" in caught.value.hint
            trial.target.refuse_format(lambda: header)

    def test_a_disk_that_it_cannot_hold_is_refused_before_anything_is_written(
        self, trial: Trial
    ) -> None:
        capacity = trial.target.capacity()
        before = trial.content()
        if capacity is None:
            trial.target.check(2**50)
        else:
            trial.target.check(capacity)
            with pytest.raises(TargetError, match=str(capacity + 1)):
                trial.target.check(capacity + 1)
        assert trial.content() == before

    def test_it_is_durable_before_it_can_be_taken_for_complete(
        self, trial: Trial, disk: bytes
    ) -> None:
        with calls() as called:
            restore(trial.target, disk)
        writes = {"write", "zero", "write_zeroes", "resize", "append_to_standard_output"}
        last = max(number for number, call in enumerate(called) if call in writes)
        assert called[last + 1 :] == self.last_calls

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "broken")], ids=repr)
    def test_what_stops_the_copy_gets_through_and_nothing_looks_complete(
        self, trial: Trial, disk: bytes, tmp_path: Path, error: BaseException
    ) -> None:
        before = entries(tmp_path), trial.content()

        def stopped() -> None:
            with trial.target.open(len(disk), BLOCK) as draft:
                copy(BytesImage(disk[: len(disk) // 2] or disk), draft, workers=1)
                raise error

        gc.collect()  # else what an earlier test left may close its files meanwhile
        before_opening = descriptors()
        with calls() as called, pytest.raises(type(error)) as caught:
            stopped()
        assert caught.value is error
        assert descriptors_that_stay(before_opening) == before_opening
        assert not set(called) & {"sync", "rename", "flush"}
        assert entries(tmp_path) == before[0]
        assert trial.content() is None or len(disk) == 1 or trial.content() != disk

    def test_what_is_not_durable_is_an_error_and_does_not_look_complete(
        self, trial: Trial, disk: bytes, tmp_path: Path
    ) -> None:
        owner = next((owner for owner, name in SYNCS if name in self.last_calls), None)
        if not owner:
            return
        before, name = entries(tmp_path), dict(SYNCS)[owner]
        failing = patch.object(owner, name, side_effect=OSError(5, "Input/output error"))
        with failing, pytest.raises(TargetError, match="Input/output error"):
            restore(trial.target, disk)
        assert entries(tmp_path) == before

    def test_what_it_holds_is_read_back_where_it_can_be_read(
        self, trial: Trial, disk: bytes
    ) -> None:
        before, old = trial.target.read_back(), trial.content()
        if before is None:
            assert not old or self.last_calls == []
        else:
            with before as image:
                assert old
                assert read(image, 0, len(old)) == old
        restore(trial.target, disk)
        after = trial.target.read_back()
        assert (after is None) == (self.last_calls == [])
        if after is not None:
            with after as image:
                assert image.size >= len(disk)
                assert read(image, 0, len(disk)) == disk
                assert_extents_hold(image.extents(), disk)

    def test_the_source_itself_is_refused_under_any_name(
        self, trial: Trial, tmp_path: Path
    ) -> None:
        if trial.path and trial.path.exists():
            link = tmp_path / "link"
            link.symlink_to(trial.path)
            for source in (trial.path, link):
                with pytest.raises(TargetError, match="is the source of disk vdb") as caught:
                    trial.target.refuse({"vda": Path("/nowhere"), "vdb": source})
                assert "--over-source" in caught.value.hint
            trial.target.refuse({"vda": Path("/nowhere\0"), "vdb": Path("/dev/null")})
        if trial.place and trial.content() is not None:
            with pytest.raises(TargetError, match="is the source of disk vdb") as caught:
                trial.target.refuse({"vda": "nbd:other/", "vdb": trial.place})
            assert "--over-source" in caught.value.hint
        elif trial.place:
            trial.target.refuse({"vdb": trial.place})

    def test_writes_ascend_where_it_says_so_or_come_from_several_threads(
        self, trial: Trial, disk: bytes
    ) -> None:
        if trial.target.is_sequential:
            return
        with trial.target.open(len(disk), BLOCK) as draft:
            copy(BytesImage(disk), draft, workers=8)
        assert trial.content() == disk


def restore(target: Target, disk: bytes) -> None:
    """What the verb does."""
    target.refuse({})
    target.refuse_format(lambda: disk[:4096])
    target.check(len(disk))
    with target.open(len(disk), BLOCK) as draft:
        assert draft.block_size == BLOCK
        copy(BytesImage(disk), draft, workers=1 if target.is_sequential else None)


def assert_extents_hold(extents: object, disk: bytes) -> None:
    """What is called zero is zero."""
    for extent in extents:  # type: ignore[attr-defined]
        if extent.kind is Kind.ZERO:
            assert not any(disk[extent.start : extent.end])


def entries(folder: Path) -> list[str]:
    """All names below a folder, but for what the next restore continues."""
    names = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(
        str(name) for name in names if not any(each.endswith(".partial") for each in name.parts)
    )


def descriptors() -> list[str]:
    """What is open in this process."""
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def descriptors_that_stay(expected: list[str]) -> list[str]:
    """What is open, at the latest after 10 s: a thread closes the pipe of a program that ended."""
    deadline = time.monotonic() + 60
    while (found := descriptors()) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


@contextmanager
def calls() -> Iterator[list[str]]:
    """What the body calls of the disk door, by name, in order."""
    called: list[str] = []

    def noted(owner: object, name: str) -> AbstractContextManager[object]:
        real = getattr(owner, name)

        def call(*arguments: object, **options: object) -> object:
            called.append(name)
            return real(*arguments, **options)

        return patch.object(owner, name, call)

    with (
        noted(files.File, "write"),
        noted(files.File, "zero"),
        noted(files.File, "resize"),
        noted(files.File, "sync"),
        noted(Connection, "write"),
        noted(Connection, "write_zeroes"),
        noted(Connection, "flush"),
        noted(folders, "rename"),
        noted(folders, "sync_folder"),
        noted(files, "append_to_standard_output"),
    ):
        yield called
