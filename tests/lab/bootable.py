"""A disk that a BIOS starts the lab's guest from, and small ones that start something else."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab.guest import built
from tests.lab.needs import absent

MIB = 1024**2
SIZE = 32 * MIB
missing = absent("mformat", "mcopy", "syslinux", "mkfs.ext4", "qemu-system-x86_64", "qemu-img")
_CONFIG = """\
DEFAULT linux
LABEL linux
  KERNEL vmlinuz
  INITRD initrd.img
  APPEND console=ttyS0 quiet panic=-1 init_on_alloc=0
"""
# mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt: the power switch of QEMU's machine q35.
POWERS_OFF = bytes.fromhex("ba0406b80020eff4ebfd") + bytes(500) + b"\x55\xaa"


def boot_disk(path: Path) -> Path:
    """Make a disk with a FAT file system and SYSLINUX, which starts the guest of guest.py."""
    kernel = built()
    config = path.with_name("syslinux.cfg")
    config.write_text(_CONFIG)
    with path.open("wb") as file:
        file.truncate(SIZE)
    geometry = ["-h", "16", "-s", "63", "-T", str(SIZE // 512)]
    files = [str(each) for each in (kernel / "vmlinuz", kernel / "initrd.img", config)]
    for command in (
        ["mformat", "-i", str(path), *geometry, "::"],
        ["mcopy", "-i", str(path), *files, "::"],
        ["syslinux", "--install", str(path)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return path


def data_disk(path: Path) -> Path:
    """Make a disk with an empty ext4."""
    with path.open("wb") as file:
        file.truncate(24 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
    return path
