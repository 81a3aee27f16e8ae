"""A restore writes raw bytes: never over an image of a format, nor over one that a VM has open."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from backy.errors import TargetError
from backy.operations.restore import RestoreOptions, restore_job
from backy.operations.site import Site
from backy.system import files
from backy.system.folders import lock_out_qemu
from backy.targets import open_target
from backy.targets.formats import backing_files, format_of
from backy.units import KiB, MiB
from tests.conformance.target import restore
from tests.lab.devices import loop_device, needs_loop_devices
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import sample

DISK = sample(3 * BLOCK + 100)
# What qemu-img writes and begins with a header; but for LUKS, which takes seconds to make.
FORMATS = ("qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels")


def make(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", *options, str(path), "1M"], check=True)
    return path


def made_of(image_format: str, path: Path) -> Path:
    return make(path, "-f", image_format)


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_of_a_format_stays_and_qemu_img_is_named(
    tmp_path: Path, image_format: str
) -> None:
    path = made_of(image_format, tmp_path / "image")
    before = path.read_bytes()
    assert_stays(path, image_format.replace("qcow2", "qcow").replace("qcow", "qcow2"))
    assert path.read_bytes() == before


def test_an_image_in_several_files_stays_as_well(tmp_path: Path) -> None:
    path = make(tmp_path / "image.vmdk", "-f", "vmdk", "-o", "subformat=monolithicFlat")
    assert_stays(path, "vmdk")


def assert_stays(path: Path, image_format: str) -> None:
    target = open_target(str(path))
    with pytest.raises(TargetError, match=f"{path} is a {image_format} image") as caught:
        target.refuse_format(lambda: DISK[: 4 * KiB])
    assert f"qemu-img convert -f raw -O {image_format} NEW {path}" in caught.value.hint
    target.refuse_format(lambda: path.read_bytes()[: 4 * KiB])


def test_over_source_does_not_allow_it_either(tmp_path: Path) -> None:
    made = Made(tmp_path / "base")
    made.backup(vda=DISK)
    path = made_of("qcow2", tmp_path / "vm.qcow2")
    made.repository.remember_source({"type": "image", "disks": {"vda": str(path)}})
    before = path.read_bytes()
    site = Site(made.base)
    for place in (str(path), {"vda": str(path)}):
        with pytest.raises(TargetError, match="is a qcow2 image"):
            restore_job(site, "vm1", place, RestoreOptions(over_source=True))
    assert path.read_bytes() == before
    path.write_bytes(b"raw")
    restore_job(site, "vm1", str(path), RestoreOptions(over_source=True))
    assert path.read_bytes() == DISK


def test_a_disk_that_holds_an_image_itself_is_restored_over_one(tmp_path: Path) -> None:
    """A file source of a qcow2 stores the file as it is. So it is with LUKS on a whole disk."""
    path = made_of("qcow2", tmp_path / "vm.qcow2")
    made = Made(tmp_path / "base")
    made.backup(vda=path.read_bytes())
    before = path.read_bytes()
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", str(path)], check=True)
    restore_job(Site(made.base), "vm1", str(path), RestoreOptions(overwrite=True))
    assert path.read_bytes() == before


def test_a_folder_whose_name_looks_like_a_kind_of_target_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path / "base")
    made.backup(vda=DISK)
    (tmp_path / "ab:c").mkdir()
    monkeypatch.chdir(tmp_path)
    restore_job(Site(made.base), "vm1", "./ab:c")
    assert (tmp_path / "ab:c" / "vda.img").read_bytes() == DISK


@pytest.mark.parametrize("image_format", ["qcow2", "qcow", "qed"])
def test_what_an_image_of_the_source_is_based_on_is_not_overwritten(
    tmp_path: Path, image_format: str
) -> None:
    """Nor what that is based on: one is named by its path, the other as it lies beside it."""
    made = Made(tmp_path / "base")
    made.backup(vda=DISK)
    base, middle, top = (tmp_path / name for name in ("a.img", "b.img", "c.img"))
    base.write_bytes(bytes(MiB))
    make(middle, "-f", image_format, "-F", "raw", "-b", str(base))
    make(top, "-f", image_format, "-F", image_format, "-b", middle.name)
    image = {"path": str(top), "format": image_format, "backing": True}
    made.repository.remember_source({"type": "image", "disks": {"vda": image}})
    site = Site(made.base)
    for below in (base, middle):
        with pytest.raises(TargetError, match=f"{below} is the backing file of the source of"):
            restore_job(site, "vm1", str(below))
    restore_job(site, "vm1", str(base), RestoreOptions(over_source=True))
    assert base.read_bytes() == DISK


def test_a_header_that_makes_no_sense_names_no_backing_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for rest in (b"", b"\xff" * 100, b"\0\0\0\3" + b"\0" * 6 + b"\2\0\0\0\0\4" + bytes(64)):
        path.write_bytes(b"QFI\xfb" + rest)
        assert list(backing_files(path)) == []
    make(path, "-f", "qcow2", "-u", "-F", "raw", "-b", "image")
    assert len(list(backing_files(path))) == 100  # based on itself
    assert list(backing_files(tmp_path / "none")) == []


@pytest.mark.parametrize("is_link", [False, True], ids=["folder", "link"])
def test_a_part_that_somebody_else_may_have_left_is_not_continued(
    tmp_path: Path, is_link: bool
) -> None:
    folder = tmp_path / ("elsewhere" if is_link else ".new.qcow2.partial")
    folder.mkdir(0o700 if is_link else 0o755)
    planted = made_of("qcow2", folder / "new.qcow2")
    before = planted.read_bytes()
    if is_link:
        (tmp_path / ".new.qcow2.partial").symlink_to(folder)
    with pytest.raises(TargetError, match=r"partial is no folder that is only yours"):
        restore(open_target(f"qcow2:{tmp_path / 'new.qcow2'}"), bytes(MiB))
    assert planted.read_bytes() == before
    assert not (tmp_path / "new.qcow2").exists()


@needs_loop_devices
def test_a_device_that_holds_an_image_stays_until_it_is_erased(tmp_path: Path) -> None:
    backing = made_of("qcow2", tmp_path / "backing")
    os.truncate(backing, MiB)
    before = backing.read_bytes()
    with loop_device(backing) as device:
        target = open_target(str(device))
        with pytest.raises(TargetError, match="is a qcow2 image") as caught:
            target.refuse_format(lambda: b"")
        assert device.read_bytes() == before
        command = caught.value.hint.rpartition("erase its header: ")[2].removesuffix(".")
        subprocess.run(command.split(), check=True, capture_output=True)
        restore(target, DISK)


def test_other_bytes_have_no_format() -> None:
    for start in (b"", bytes(4096), sample(4096), b"QFI", b"\x55\xaa"):
        assert format_of(start) == ""


@contextmanager
def qemu(path: Path, folder: Path, *options: str) -> Iterator[None]:
    """A program of QEMU that has an image open."""
    ready = folder / "ready"
    command = ["qemu-nbd", "-t", f"--socket={folder}/socket", f"--pid-file={ready}", *options]
    with subprocess.Popen([*command, str(path)]) as process:
        try:
            while not ready.exists():
                assert process.poll() is None
            yield
        finally:
            process.kill()  # it forgets a SIGTERM that comes just before it serves


@needs_loop_devices
@pytest.mark.parametrize("way", ["writes", "reads", "backing", "device"])
def test_what_a_vm_has_open_is_not_overwritten(tmp_path: Path, way: str) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MiB))
    with ExitStack() as stack:
        if way == "device":
            path = stack.enter_context(loop_device(path))
        target = open_target(str(path))
        opened, options = path, ["-f", "raw"] + ["-r"] * (way == "reads")
        if way == "backing":
            opened = make(tmp_path / "top", "-f", "qcow2", "-F", "raw", "-b", str(path))
            options = ["-f", "qcow2"]
        target.check(MiB)
        with qemu(opened, tmp_path, *options):
            with pytest.raises(TargetError, match=f"{path} is locked: a VM") as caught:
                target.check(MiB)
            assert "Stop" in caught.value.hint
        restore(target, DISK)


@pytest.mark.parametrize("way", ["file", pytest.param("device", marks=needs_loop_devices)])
def test_what_a_restore_overwrites_no_vm_and_no_other_restore_can_open(
    tmp_path: Path, way: str
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MiB))
    with ExitStack() as stack:
        if way == "device":
            path = stack.enter_context(loop_device(path))
        command = ["qemu-io", "-f", "raw", "-c", "read 0 512", str(path)]
        with open_target(str(path)).open(MiB, BLOCK):
            with pytest.raises(TargetError, match=f"{path} is locked: .* or a restore|busy"):
                open_target(str(path)).check(MiB)
            with pytest.raises(TargetError, match=f"{path} is locked: .* or a restore|busy"):
                stack.enter_context(open_target(str(path)).open(2 * MiB, BLOCK))
            said = subprocess.run(command, check=False, capture_output=True, text=True)
            assert said.returncode
            assert "lock" in said.stderr
        open_target(str(path)).check(MiB)
        subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "disk.img").stat().st_size == MiB


def test_a_lock_against_qemu_is_not_taken_twice(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MiB))
    with files.open_to_write(path) as file, files.open_to_write(path) as other:
        assert lock_out_qemu(file)
        assert not lock_out_qemu(other)


def test_a_link_that_is_exchanged_while_it_is_followed_is_a_target_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def realpath(_: str) -> str:
        raise OSError(errno.EINVAL, "Invalid argument")  # of readlink(2): it is no link any more

    monkeypatch.setattr(os.path, "realpath", realpath)
    with pytest.raises(TargetError, match="looking at the target /images/vm1: Invalid argument"):
        open_target("/images/vm1")
