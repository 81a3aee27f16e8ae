"""A source that is typed after --source is backed up, of whichever kind it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.runner import Backy, data, image
from tests.lab.ceph import Cluster
from tests.sources.rbd_machine import OBJECTS, unique


def test_thirty_disks_are_backed_up(backy: Backy, tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{number}.img", data(number)[:4096]) for number in range(30)]
    backy.ok("backup", "vm1", *(f"--source={path}" for path in paths))
    assert backy.content("vm1", disk="vdad") == paths[-1].read_bytes()


def test_a_file_with_an_equals_sign_in_its_name_is_found(
    backy: Backy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "img=1", data(1))
    backy.ok("backup", "vm1", "--source", "img=1")
    assert backy.content("vm1", disk="vda") == data(1)
    image(tmp_path / "1", data(2))  # now there is a disk that is meant in any case
    backy.ok("backup", "vm2", "--source", "img=1")
    assert backy.content("vm2", disk="img") == data(2)


def test_an_image_of_a_format_and_an_export_are_backed_up(backy: Backy, tmp_path: Path) -> None:
    raw, qcow2 = image(tmp_path / "raw.img", data(1)[: 64 * 1024]), tmp_path / "disk"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, qcow2], check=True)
    backy.ok("backup", "vm1", "--source", f"qcow2:{qcow2}")
    assert backy.content("vm1") == raw.read_bytes()
    socket, ready = tmp_path / "socket", tmp_path / "ready"
    command = ["qemu-nbd", "-t", "-r", "-f", "raw", f"--socket={socket}", f"--pid-file={ready}"]
    with subprocess.Popen([*command, str(raw)]) as server:
        while not ready.exists():
            assert server.poll() is None
        backy.ok("backup", "vm2", "--source", f"nbd+unix:///?socket={socket}")
        server.kill()
    assert backy.content("vm2") == raw.read_bytes()


def test_an_image_of_ceph_is_backed_up(ceph: Cluster, backy: Backy) -> None:
    name, env = f"rbd/{unique('my')} vm", {"CEPH_CONF": os.fspath(ceph.conf)}
    ceph.create(name, 1024**2, *OBJECTS)
    for _ in range(2):
        result = backy.run("backup", "vm1", "--source", f"rbd:{name}", env=env)
        assert result.code == 0, result
    assert backy.content("vm1") == bytes(1024**2)
    # What only a repository remembers of it is not used.
    assert "--source" in backy.refuses(3, "backup", "vm1").hint
