"""Disk images in QEMU's formats, opened so that their content cannot choose what else is read.

A guest wrote the content of an image, or a customer who uploaded it. So the format is never guessed
from the content, and a file that the image names is opened only if the administrator allows it.
Otherwise a guest could write a qcow2 header with /etc/shadow as its backing file to its raw disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from backy.clients.qemu_nbd import HINT, serve
from backy.config.settings import AbsolutePath, Values
from backy.errors import SourceError, translated
from backy.image.image import LARGEST, SIZE_HINT
from backy.nbd.remote_image import NbdImage
from backy.system import files
from backy.units import KiB, format_size

_NAMES = ("luks", "qcow", "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc")
_FORMATS = {".img": "raw", ".vhd": "vpc"} | {f".{each}": each for each in _NAMES}
_HEADER = 64 * KiB  # bytes that tell whether an image names other files
_BACKING_HINT = "If you trust all who could write to it and want those files, set backing: true."


def _format_by_suffix(given: dict[str, Any]) -> str:
    return _FORMATS.get(given["path"].suffix.lower(), "")


class ImageFile(Values):
    """Settings of one image, in a file or on a block device.

    `backing` allows it to name other files. They can be any files that we may read.
    """

    path: AbsolutePath
    format: str = Field(default_factory=_format_by_suffix, min_length=1, validate_default=True)
    key_file: AbsolutePath | None = None
    backing: bool = False


ImageFileOrPath = Annotated[
    ImageFile, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)
]


@contextmanager
def open_image_file(wanted: ImageFile, timeout_seconds: float) -> Iterator[NbdImage]:
    """Lock an image and give its content. QEMU's locks keep others from writing to it meanwhile.

    Opening takes `timeout_seconds` at most. Raises SourceError where a VM or a program has it open
    for writing, where it names other files and may not, and where it cannot be read.
    """
    name, arguments = str(wanted.path), image_arguments(wanted, unshared=("write", "resize"))
    with serve(arguments, name, timeout_seconds=timeout_seconds) as image:
        if image.size > LARGEST:
            raise SourceError(f"{name} has a disk of {format_size(image.size)}", SIZE_HINT)
        yield image


def image_arguments(wanted: ImageFile, *, unshared: Sequence[str] = ()) -> list[str]:
    """The arguments with which qemu-nbd exports an image.

    What is `unshared` nobody else may do to a raw image: by default QEMU lets others write to one
    that it reads. Raises SourceError where the image names other files and may not.
    """
    name, is_device = str(wanted.path), _check_header(wanted)
    node: dict[str, Any] = {
        "driver": "host_device" if is_device else "file",
        "filename": name,
        "locking": "on",
    }
    if wanted.format == "raw" and unshared:
        node = {"driver": "blkdebug", "unshare-child-perms": unshared, "image": node}
    node = {"driver": wanted.format, "file": node} | ({} if wanted.backing else {"backing": None})
    objects: list[str] = []
    if wanted.key_file:
        objects = ["--object", "secret,id=key,file=" + str(wanted.key_file).replace(",", ",,")]
        key = {"key-secret": "key"}
        node |= {"encrypt": {"format": "luks", **key}} if wanted.format == "qcow2" else key
    return [*objects, f"json:{json.dumps(node)}"]


def _check_header(wanted: ImageFile) -> bool:
    """Check that an image names no other files, unless it may; give whether it is on a device."""
    with (
        translated(SourceError, f"opening the image {wanted.path}", HINT),
        files.open_to_read(wanted.path) as file,
    ):
        header = file.read_bytes(0, _HEADER).ljust(80, b"\0")
        is_device = file.is_device
    if not wanted.backing and _names_files(wanted.format, header):
        raise SourceError(f"{wanted.path} has some of its data in other files", _BACKING_HINT)
    return is_device


def _names_files(image_format: str, header: bytes) -> bool:
    """Whether an image with this header names other files, which QEMU would open.

    That is: a backing file; in qcow2 also an external data file (bit 2 of the incompatible
    features); in VMDK also the extents of its descriptor. A VMDK that is a single file begins with
    KDMV and a capacity. QEMU refuses what does not begin like the format that is named.
    https://www.qemu.org/docs/master/interop/qcow2.html, block/qed.h and block/vmdk.c of QEMU
    """
    match image_format:
        case "qcow" | "qcow2":
            is_external = header[7] > 2 and header[79] & 4 > 0  # noqa: PLR2004
            return header[:4] == b"QFI\xfb" and (any(header[8:16]) or is_external)
        case "qed":
            return header[:4] == b"QED\0" and header[16] & 1 > 0
        case "vmdk":
            is_single = header[:4] == b"KDMV" and any(header[12:20])
            return not is_single or b"parentFileNameHint" in header
        case _:
            return False
