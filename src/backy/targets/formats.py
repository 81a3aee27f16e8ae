"""The headers of images in a format. Raw bytes that are written over one destroy the image."""

from __future__ import annotations

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


def format_of(start: bytes) -> str:
    """The name of the format whose header `start` has, as qemu-img calls it; "" if it has none."""
    names = (name for offset, header, name in _HEADERS if start.startswith(header, offset))
    return next(names, "")
