"""What a restore overwrites: nothing that somebody may still need, unless it is asked to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.runner import SMALL, Backy, Refusal
from tests.lab.devices import loop_device, needs_loop_devices

MIB = 1024**2


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("what nobody else has")
    return path


@pytest.mark.parametrize("form", ["{}", "file:{}"])
def test_a_file_that_exists_is_overwritten_only_on_purpose(
    aged: Backy, notes: Path, form: str
) -> None:
    word = form.format(notes)
    said = aged.refuses(10, "restore", "vm1", word)
    assert f"{notes} exists" in said.message
    assert "--overwrite" in said.hint
    assert notes.read_text() == "what nobody else has"
    aged.quiet("restore", "vm1", word, "--overwrite")
    assert notes.read_bytes() == SMALL[3]


def test_the_file_behind_a_link_is_a_file_that_exists(aged: Backy, notes: Path) -> None:
    link = notes.with_name("link")
    link.symlink_to(notes)
    assert f"{link} exists" in aged.refuses(10, "restore", "vm1", link).message


def test_an_empty_file_may_be_filled(aged: Backy, tmp_path: Path) -> None:
    (tmp_path / "new.img").touch()
    aged.quiet("restore", "vm1", tmp_path / "new.img")
    assert (tmp_path / "new.img").read_bytes() == SMALL[3]


@pytest.mark.parametrize("name", ["vdb.img", "domain.xml"])
def test_in_a_folder_too_and_before_anything_is_written(
    two_disks: Backy, tmp_path: Path, name: str
) -> None:
    (revision,) = two_disks.revisions("vm1")
    (two_disks.base / "vm1" / "revisions" / revision / "domain.xml").write_text("<domain/>")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_text("of another VM")
    assert f"{folder / name} exists" in two_disks.refuses(10, "restore", "vm1", folder).message
    assert [each.name for each in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "of another VM"
    two_disks.ok("restore", "vm1", folder, "--overwrite")
    assert {each.name for each in folder.iterdir()} == {"vda.img", "vdb.img", "domain.xml"}


def test_a_mistyped_device_is_no_file_in_memory(aged: Backy) -> None:
    typo = Path("/dev/backy-no-such-device")
    assert f"there is no device {typo}" in aged.refuses(10, "restore", "vm1", typo).message
    assert not typo.exists()


def test_a_link_to_nowhere_is_not_replaced_by_a_file(aged: Backy, tmp_path: Path) -> None:
    link = tmp_path / "vm1.img"
    link.symlink_to(tmp_path / "not-mounted" / "vm1.img")
    said = aged.refuses(10, "restore", "vm1", link)
    assert f"{link} is a link to a file that does not exist" in said.message
    (tmp_path / "not-mounted").mkdir()
    aged.refuses(10, "restore", "vm1", link)
    assert link.is_symlink()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "backing").write_bytes(bytes(16 * MIB))
    with loop_device(tmp_path / "backing") as device:
        yield device


def refused(aged: Backy, device: Path) -> Refusal:
    return aged.refuses(10, "restore", "vm1", device)


def run(stack: ExitStack, *command: object, undo: tuple[object, ...] = ()) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    if undo:
        stack.callback(subprocess.run, [str(word) for word in undo], check=True)


@needs_loop_devices
def test_a_device_is_refused_by_whatever_uses_it(aged: Backy, device: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        run(stack, "mkswap", device)
        run(stack, "swapon", device, undo=("swapoff", device))
        assert "busy" in refused(aged, device).message
    with ExitStack() as stack:
        (tmp_path / "mounted").mkdir()
        run(stack, "mkfs.ext4", "-q", device)
        run(stack, "mount", device, tmp_path / "mounted", undo=("umount", tmp_path / "mounted"))
        assert "busy" in refused(aged, device).message
    aged.quiet("restore", "vm1", device)


@needs_loop_devices
def test_the_second_device_of_a_file_system_is_in_use_as_well(aged: Backy, tmp_path: Path) -> None:
    with ExitStack() as stack:
        devices = []
        for name in ("one", "two"):
            (tmp_path / name).touch()
            os.truncate(tmp_path / name, 120 * MIB)
            devices.append(stack.enter_context(loop_device(tmp_path / name)))
        (tmp_path / "mounted").mkdir()
        run(stack, "mkfs.btrfs", "-q", *devices)
        run(stack, "mount", devices[0], tmp_path / "mounted", undo=("umount", tmp_path / "mounted"))
        assert "busy" in refused(aged, devices[0]).message
        said = refused(aged, devices[1])
        assert "busy" in said.message
        assert "stop what uses it" in said.hint
