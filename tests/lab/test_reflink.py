"""The file systems of the lab are real, their own, and gone afterwards."""

import fcntl
import os
from pathlib import Path

import pytest

from tests.lab import reflink
from tests.lab.needs import need
from tests.lab.volumes import Mounts

FICLONE = 0x40049409
BOTH = pytest.mark.parametrize("reflink_folder", ["xfs", "btrfs"], indirect=True)
KINDS = pytest.mark.parametrize("kind", ["xfs", "btrfs"])


def is_mounted(folder: Path) -> bool:
    return f" {folder} " in Path("/proc/self/mounts").read_text()


def loop_devices_of(folder: Path) -> list[Path]:
    """The loop devices whose file is, or was, beside `folder`."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return [f for f in files if f.read_text().startswith(str(folder.parent))]


@BOTH
def test_files_can_share_their_extents(reflink_folder: Path) -> None:
    (reflink_folder / "original").write_bytes(b"x" * 65536)
    with (reflink_folder / "original").open() as source, (reflink_folder / "clone").open("w") as to:
        fcntl.ioctl(to, FICLONE, source.fileno())
    assert (reflink_folder / "clone").read_bytes() == b"x" * 65536


@pytest.mark.parametrize("own_reflink_folder", ["xfs", "btrfs"], indirect=True)
def test_a_test_can_have_a_file_system_of_its_own(own_reflink_folder: Path) -> None:
    assert list(own_reflink_folder.iterdir()) == []
    assert own_reflink_folder.stat().st_dev != own_reflink_folder.parent.stat().st_dev


@KINDS
def test_all_tests_share_a_file_system_but_not_its_folders(mounts: Mounts, kind: str) -> None:
    with mounts.folder(kind) as one, mounts.folder(kind) as other:
        (one / "file").touch()
        assert one.parent == other.parent
        assert list(other.iterdir()) == []
    assert not one.exists()


@KINDS
def test_nothing_is_left_of_a_file_system_when_its_test_fails(kind: str) -> None:
    need(reflink.missing(kind))
    context = reflink.reflink_file_system(kind)
    folder = context.__enter__()
    assert is_mounted(folder)
    assert loop_devices_of(folder) != []
    failure = ZeroDivisionError()
    assert not context.__exit__(ZeroDivisionError, failure, None)
    assert not is_mounted(folder)
    assert not folder.parent.exists()
    assert loop_devices_of(folder) == []


@KINDS
def test_a_file_that_stays_open_does_not_keep_the_folder_mounted(kind: str) -> None:
    need(reflink.missing(kind))
    with reflink.reflink_file_system(kind) as folder:
        descriptor = os.open(folder / "open", os.O_CREAT | os.O_WRONLY)
    assert not is_mounted(folder)
    assert not folder.parent.exists()
    os.close(descriptor)


def test_nothing_is_left_when_the_file_system_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(reflink.MKFS, "xfs", ["false"])
    with pytest.raises(Exception, match="false"), reflink.reflink_file_system("xfs"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_only_root_can_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert reflink.missing("xfs") == "only root can mount a file system"


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reflink.MKFS, "xfs", ["mkfs.none"])
    need(reflink.missing("btrfs"))
    assert reflink.missing("xfs") == "mkfs.none not installed"
