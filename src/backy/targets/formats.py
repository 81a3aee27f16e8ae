"""The headers of images in a format. Raw bytes that are written over one destroy the image."""

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from backy.system import files
from backy.system.files import File

LENGTH = 4096  # bytes at the start of an image that have its header

# Offset, bytes and name, as in the sources of QEMU: block/*.c and crypto/block-luks-priv.h.
_HEADERS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"LUKS\xba\xbe", "luks"),
)
# Where a header has the offset and the length of the name of a backing file.
# https://www.qemu.org/docs/master/interop/qcow2.html, and block/qed.h of QEMU
_BACKING_NAMES = {"qcow2": (">QI", 8), "qed": ("<II", 56)}
_LONGEST_CHAIN = 100
_LONGEST_NAME = 1023  # bytes of the name of a backing file, in QEMU


def format_of(start: bytes) -> str:
    """The name of the format whose header `start` has, as qemu-img calls it; "" if it has none."""
    names = (name for offset, header, name in _HEADERS if start.startswith(header, offset))
    return next(names, "")


def backing_files(path: Path) -> Iterator[Path]:
    """The local file on which an image is based (qcow2, qed), its own one, and so on.

    Reads headers alone, and ends where there is none.
    """
    for _ in range(_LONGEST_CHAIN):
        name = ""
        with suppress(OSError, ValueError), files.open_to_read(path) as file:
            name = _backing_name(file)
        if not name:
            return
        path = path.parent / name
        yield path


def _backing_name(file: File) -> str:
    start = file.read_bytes(0, LENGTH).ljust(LENGTH, b"\0")
    layout, place = _BACKING_NAMES.get(format_of(start), ("", 0))
    offset, length = struct.unpack_from(layout, start, place) if layout else (0, 0)
    if not 0 < offset < file.size() or length > _LONGEST_NAME:
        return ""
    return file.read_bytes(offset, length).decode(errors="surrogateescape").removeprefix("file:")
