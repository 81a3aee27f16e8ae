"""The images that a VM of ours gets."""

import shutil
from pathlib import Path

import pytest

from backy.clients.vm import Destination, Overlay
from backy.errors import SourceError
from tests.lab.needs import absent, need

KINDS = {
    "overlay": lambda path: Overlay(path, 4096, "vm1/rev/vda", 0).make(),
    "raw": lambda path: Destination(str(path)).make(4096),
    "qcow2": lambda path: Destination(f"qcow2:{path}").make(4096),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_for_its_owner_only_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Who opened it before its mode was right could read later what the guest writes."""
    need(absent("qemu-img"))
    path, mode = tmp_path / "image", tmp_path / "mode"
    program = tmp_path / "qemu-img"
    real = shutil.which("qemu-img")
    program.write_text(f'#!/bin/sh\nstat -c %a {path} > {mode}\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    KINDS[kind](path)
    assert mode.read_text() == "600\n"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", KINDS)
def test_what_appears_under_its_name_meanwhile_is_left_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "image").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=f"making {tmp_path / 'image'}: File exists"):
        KINDS[kind](tmp_path / "image")
    assert not (tmp_path / "elsewhere").exists()
