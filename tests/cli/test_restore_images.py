"""What was backed up from a qcow2 comes back as a qcow2, unless somebody asks for another."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.runner import SMALL, Backy


@pytest.fixture
def qcow2(backy: Backy, tmp_path: Path) -> Backy:
    """vm1 has one revision of a qcow2 and one of a raw image."""
    for name in ("vda", "vdb"):
        (tmp_path / f"{name}.raw").write_bytes(SMALL[1])
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
    subprocess.run([*command, tmp_path / "vda.raw", tmp_path / "vda.qcow2"], check=True)
    sources = [f"vda=qcow2:{tmp_path}/vda.qcow2", f"vdb=raw:{tmp_path}/vdb.raw"]
    backy.ok("backup", "vm1", *(word for each in sources for word in ("--source", each)))
    return backy


def kind(path: Path) -> str:
    """The format of an image that holds the disk."""
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", path], check=True, capture_output=True
    )
    found: str = json.loads(done.stdout)["format"]
    raw = path.with_name("content")
    subprocess.run(["qemu-img", "convert", "-f", found, "-O", "raw", path, raw], check=True)
    assert raw.read_bytes().rstrip(b"\0") == SMALL[1].rstrip(b"\0")
    raw.unlink()
    return found


def test_in_a_folder_each_disk_is_an_image_as_before(qcow2: Backy, tmp_path: Path) -> None:
    folder = tmp_path / "restored"
    folder.mkdir()
    said = qcow2.ok("restore", "vm1", folder).out
    assert f"vda restored to qcow2:{folder}/vda.qcow2" in said
    assert sorted(path.name for path in folder.iterdir()) == ["vda.qcow2", "vdb.img"]
    assert kind(folder / "vda.qcow2") == "qcow2"
    assert kind(folder / "vdb.img") == "raw"
    refused = qcow2.run("restore", "vm1", folder)
    assert refused.code == 10
    assert "--overwrite" in refused.err
    qcow2.ok("restore", "vm1", folder, "--overwrite")
    assert kind(folder / "vda.qcow2") == "qcow2"


@pytest.mark.parametrize(
    ("disk", "name", "expected"),
    [
        pytest.param("vda", "new", "qcow2", id="as-before"),
        pytest.param("vda", "new.img", "raw", id="img-is-raw"),
        pytest.param("vda", "new.raw", "raw", id="raw-is-raw"),
        pytest.param("vda", "new.vmdk", "vmdk", id="by-suffix"),
        pytest.param("vdb", "new.QCOW2", "qcow2", id="raw-by-suffix"),
        pytest.param("vdb", "new", "raw", id="raw-as-before"),
    ],
)
def test_a_path_says_the_format_by_its_suffix(
    qcow2: Backy, tmp_path: Path, disk: str, name: str, expected: str
) -> None:
    qcow2.ok("restore", "vm1", "--disk", f"{disk}={tmp_path / name}")
    assert kind(tmp_path / name) == expected


def test_file_and_vhdx_say_it_before_the_path(qcow2: Backy, tmp_path: Path) -> None:
    raw, vhdx = tmp_path / "a.qcow2", tmp_path / "b"
    qcow2.ok("restore", "vm1", "--disk", f"vda=file:{raw}", "--disk", f"vdb=vhdx:{vhdx}")
    assert raw.read_bytes().rstrip(b"\0") == SMALL[1].rstrip(b"\0")
    assert kind(vhdx) == "vhdx"


def test_a_link_in_a_folder_is_not_followed(qcow2: Backy, tmp_path: Path) -> None:
    folder = tmp_path / "restored"
    folder.mkdir()
    (folder / "vda.qcow2").symlink_to(tmp_path / "vda.qcow2")
    refused = qcow2.run("restore", "vm1", folder, "--overwrite")
    assert refused.code == 10
    assert "is a link" in refused.err


def test_the_image_that_is_the_source_is_refused(qcow2: Backy, tmp_path: Path) -> None:
    refused = qcow2.run("restore", "vm1", f"qcow2:{tmp_path}/vda.qcow2", "--disk", "vda")
    assert refused.code == 10
    assert "is the source of disk vda" in refused.err


@pytest.mark.parametrize("kind_of_image", ["qcow2", "vmdk", "vhdx"])
def test_a_restore_that_was_killed_before_qemu_img_made_the_image_is_simply_run_again(
    aged: Backy, tmp_path: Path, kind_of_image: str
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "qemu-img").write_text("#!/bin/sh\nkill -KILL $PPID\n")
    (programs / "qemu-img").chmod(0o755)
    path = tmp_path / f"new.{kind_of_image}"
    words = ["restore", "vm1", f"{kind_of_image}:{path}", "-r", "first"]
    killed = aged.run_program(*words, env={"PATH": f"{programs}:{os.environ['PATH']}"})
    assert killed.code == -signal.SIGKILL
    assert (tmp_path / f".{path.name}.partial" / path.name).stat().st_size == 0
    aged.quiet(*words)
    assert kind(path) == kind_of_image
    assert not (tmp_path / f".{path.name}.partial").exists()
