"""Everything that a disk can be restored to keeps what a Target promises."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from backy.errors import TargetError, UsageError
from backy.system import files
from backy.targets import is_folder, open_target
from backy.targets.device import DeviceTarget
from backy.targets.file import FileTarget
from backy.targets.nbd import NbdTarget
from backy.targets.qemu_image import QemuImageTarget
from backy.targets.rbd import RbdTarget
from backy.targets.stream import StreamDraft, StreamTarget
from backy.units import MiB
from tests.conformance.target import BLOCK, OLD, TargetSuite, Trial, restore
from tests.lab.devices import loop_device, needs_loop_devices
from tests.memory_source import sample


def content_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def allocated(path: Path) -> int:
    os.sync()
    return path.stat().st_blocks * 512


class TestNewFile(TargetSuite):
    last_calls: ClassVar = ["sync", "rename", "sync_folder", "sync", "sync"]

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        path = folder / "disk.img"
        target = FileTarget(str(path))
        yield Trial(target, lambda: content_of(path), path, lambda: allocated(path))


class TestExistingFile(TargetSuite):
    last_calls: ClassVar = ["sync"]

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        path = folder / "disk.img"
        path.write_bytes(bytes([OLD]) * (size + 1000))
        target = FileTarget(str(path))
        yield Trial(target, lambda: content_of(path), path, lambda: allocated(path), is_used=True)


class TestLongerThanTheFileWas(TestExistingFile):
    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        with super().open(folder, size) as trial:
            os.truncate(folder / "disk.img", size // 2)
            trial.is_used = size > 1  # an empty file is not
            yield trial


@needs_loop_devices
class TestDevice(TargetSuite):
    last_calls: ClassVar = ["sync"]
    beyond: ClassVar = 64 * 1024

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        backing = folder / "backing"
        backing.write_bytes(bytes([OLD]) * (-(-size // 4096) * 4096 + self.beyond))
        with loop_device(backing) as device:
            target = DeviceTarget(str(device))
            yield Trial(target, lambda: device.read_bytes()[:size], device)

    def test_keeps_the_bytes_beyond_the_disk(self, tmp_path: Path) -> None:
        disk = sample(2 * MiB + 12_345)
        with self.open(tmp_path, len(disk)) as trial:
            assert trial.path
            before = trial.path.read_bytes()
            restore(trial.target, disk)
            assert trial.path.read_bytes() == disk + before[len(disk) :]

    def test_is_refused_while_a_program_holds_it_for_itself(self, tmp_path: Path) -> None:
        with self.open(tmp_path, MiB) as trial:
            assert trial.path
            with (
                files.open_to_write(trial.path),
                pytest.raises(TargetError, match="Device or resource busy") as caught,
            ):
                trial.target.check(MiB)
            assert str(trial.path) in caught.value.message
            trial.target.check(MiB)

    def test_gives_the_space_of_zeroes_back(self, tmp_path: Path) -> None:
        with self.open(tmp_path, 2 * MiB) as trial:
            restore(trial.target, bytes(2 * MiB))
            assert allocated(tmp_path / "backing") <= self.beyond + BLOCK


class Redirected(StreamTarget):
    """Standard output is this descriptor while it is open."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    @contextmanager
    def open(self, size: int, block_size: int) -> Iterator[StreamDraft]:
        saved = os.dup(1)
        os.dup2(self._descriptor, 1)
        try:
            with super().open(size, block_size) as draft:
                yield draft
        finally:
            os.dup2(saved, 1)
            os.close(saved)


class TestStream(TargetSuite):
    last_calls: ClassVar[list[str]] = []

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        with tempfile.TemporaryFile() as file:
            target = Redirected(file.fileno())
            yield Trial(target, lambda: os.pread(file.fileno(), 2 * size + 1, 0))

    def test_is_written_in_ascending_order(self) -> None:
        assert StreamTarget().is_sequential

    def test_has_no_name(self) -> None:
        with pytest.raises(UsageError, match="a stream has no name 'tape'"):
            open_target("stream:tape")

    def test_a_reader_that_is_gone_is_named(self) -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        with (
            pytest.raises(TargetError, match="writing to standard output at byte 0: Broken"),
            Redirected(write_end).open(MiB, BLOCK) as draft,
        ):
            draft.write(0, memoryview(b"disk"))
        os.close(write_end)


class TestWhatIsNoFile:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        os.mkfifo(tmp_path / "fifo")
        return tmp_path

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            pytest.param("missing/disk.img", "there is no folder .*/missing", id="no-folder"),
            pytest.param("folder", "/folder is a folder", id="folder"),
            pytest.param("fifo", "/fifo is no regular file", id="fifo"),
            pytest.param("file/disk.img", "there is no folder .*/file", id="file-as-folder"),
        ],
    )
    def test_is_refused_with_the_reason(self, folder: Path, name: str, why: str) -> None:
        with pytest.raises(TargetError, match=why):
            open_target(str(folder / name)).check(MiB)

    def test_a_file_that_must_not_be_written_is_refused_before_anything_is(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbidden(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(files, "open_to_write", forbidden)
        with pytest.raises(TargetError, match=r"opening .*/file: Permission denied"):
            open_target(str(folder / "file")).check(MiB)

    @pytest.mark.parametrize("place", ["disk.img", "chunks/disk.img", "repository.json"])
    def test_in_a_repository_nothing_is_overwritten_or_made(self, folder: Path, place: str) -> None:
        (folder / "repository.json").touch()
        with pytest.raises(TargetError, match="lies inside a repository"):
            open_target(str(folder / place)).refuse({})

    def test_a_device_by_name_must_be_one(self, folder: Path) -> None:
        with pytest.raises(TargetError, match="/file is not a block device"):
            open_target(f"device:{folder}/file").check(MiB)


class TestWords:
    @pytest.mark.parametrize(
        ("word", "kind"),
        [
            ("-", StreamTarget),
            ("stream:", StreamTarget),
            ("disk.img", FileTarget),
            ("/images/a:b.img", FileTarget),
            ("./rbd:pool", FileTarget),
            ("rbd:pool/vm1", RbdTarget),
            ("qcow2:vm1.img", QemuImageTarget),
            ("nbd://localhost/vm1", NbdTarget),
            ("nbds+unix:///vm1?socket=/run/nbd", NbdTarget),
            ("c:disk.img", FileTarget),
            ("file:disk.img", FileTarget),
            ("device:/dev/vg/vm1", DeviceTarget),
            ("./-", FileTarget),
        ],
    )
    def test_name_a_target(self, word: str, kind: type) -> None:
        assert isinstance(open_target(word), kind)

    @needs_loop_devices
    def test_a_device_is_known_by_its_path(self, tmp_path: Path) -> None:
        (tmp_path / "backing").write_bytes(bytes(4096))
        with loop_device(tmp_path / "backing") as device:
            assert isinstance(open_target(str(device)), DeviceTarget)

    def test_an_unknown_name_is_refused_with_what_there_is(self) -> None:
        with pytest.raises(UsageError, match="there is no target 'tape'") as caught:
            open_target("tape:nst0")
        assert caught.value.hint == (
            "Built in: device, file, stream, qcow2, vmdk, vhdx, luks, rbd, nbd, nbds, nbd+unix, "
            "nbds+unix. To restore to a file of that name, write ./tape:nst0."
        )

    @pytest.mark.parametrize("word", ["", "a\0b", "file:"])
    def test_what_is_no_path_is_refused(self, word: str) -> None:
        with pytest.raises(UsageError, match="cannot be a path"):
            open_target(word)

    def test_a_folder_is_one_by_its_path_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "rbd:pool").mkdir()
        monkeypatch.chdir(tmp_path)
        words = [str(tmp_path), "./rbd:pool", ".", "rbd:pool", "missing", "", "x" * 300, "a\0b"]
        assert [word for word in words if is_folder(word)] == words[:3]
