"""Read and write whatever QEMU can open, through a qemu-nbd of our own.

The content of an image cannot choose what else is read. A guest wrote it, or a customer who
uploaded it. So the format is never guessed from the content, and a file that the image names is
opened only if the administrator allows it. Otherwise a guest could write a qcow2 header with
/etc/shadow as its backing file to its raw disk.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BeforeValidator, Field

from backy.config.settings import AbsolutePath, Values
from backy.errors import SourceError, translated
from backy.image.image import LARGEST, SIZE_HINT
from backy.nbd.remote_image import NbdImage, open_image
from backy.nbd.uri import Address, parse_uri
from backy.system import files, folders, signals
from backy.system.process import serving
from backy.units import KiB, format_size

_HINT = "Does it exist, is it complete and in that format, and may you read it?"
_LOCK_HINT = "Shut the VM down, or back it up while it runs with type: qemu or type: libvirt."
# The limit of memory is for hostile images. With 16 connections qemu-nbd has 0.6 GiB, most of it
# stacks of threads that it never touches.
_LIMITS = ("prlimit", "--data=2147483648", "--core=0")
_COMMAND = (*_LIMITS, "qemu-nbd", "--persistent", "--shared=16")
_NAMES = ("luks", "qcow", "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc")
_FORMATS = {".img": "raw", ".vhd": "vpc"} | {f".{each}": each for each in _NAMES}
_HEADER = 64 * KiB  # bytes that tell whether an image names other files
_BACKING_HINT = "If you trust all who could write to it and want those files, set backing: true."
_LONGEST_REASON = 500  # characters of what qemu-nbd printed


@contextmanager
def serve(
    arguments: Sequence[str], title: str, *, bitmap: str | None = None, timeout_seconds: float = 60
) -> Iterator[NbdImage]:
    """The content of what a qemu-nbd with `arguments` exports, read-only, as an Image.

    With `bitmap` the export has the persistent bitmap of that name, which must exist. See
    `run_server` for the rest.
    """
    options = ["--read-only", *([f"--bitmap={bitmap}"] if bitmap else [])]
    server = run_server([*options, *arguments], title, timeout_seconds=timeout_seconds)
    connected = partial(open_image, bitmap=bitmap, timeout_seconds=timeout_seconds)
    with server as address, connected(address) as image:
        yield image


@contextmanager
def run_server(
    arguments: Sequence[str], title: str, *, timeout_seconds: float
) -> Iterator[Address]:
    """Start a qemu-nbd with `arguments`, and give the address of its export.

    `arguments` end with the file to export; errors call it `title`. Opening it takes
    `timeout_seconds` at most. The program ends with the body, and dies with us if we are killed.

    It bypasses the page cache (2 GiB took 2.9 s instead of 5.6 s, and left nothing in the cache)
    except on file systems without O_DIRECT.

    Raises SourceError where qemu-nbd cannot open it, with the reason it gave, or takes too long.
    """
    deadline = time.monotonic() + timeout_seconds
    for cache in ("none", "writeback"):
        with ExitStack() as stack:
            folder = Path(os.environ.get("TMPDIR", "/tmp"), f"backy-{secrets.token_hex(8)}")  # noqa: S108 - nobody guesses it
            socket, ready = folder / "socket", folder / "ready"
            options = [f"--socket={socket}", f"--pid-file={ready}", f"--cache={cache}"]
            with translated(SourceError, f"{title}: starting qemu-nbd"):
                folders.make_folder(folder)
                stack.callback(folders.remove_tree, folder)
                program = stack.enter_context(serving([*_COMMAND, *options, *arguments]))
            while not (is_ready := ready.exists()) and not program.has_ended():
                signals.sleep(0.01)
                if time.monotonic() > deadline:
                    break
            if is_ready:
                address = parse_uri(f"nbd+unix:///?socket={quote(str(socket))}")
                yield replace(address, text=title)
                return
        output = program.said() or f"it took longer than {timeout_seconds} s"
        if cache == "writeback" or "O_DIRECT" not in output:
            # It begins with what it was to open, which may be a page of JSON.
            why = " ".join(output.rpartition("': ")[2].split())[:_LONGEST_REASON]
            raise SourceError(f"{title}: qemu-nbd: {why}", _LOCK_HINT if " lock " in why else _HINT)


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
    opening = translated(SourceError, f"opening the image {wanted.path}", _HINT)
    with opening, files.open_to_read(wanted.path) as file:
        header = file.read_bytes(0, _HEADER).ljust(80, b"\0")
        driver = "host_device" if file.is_device else "file"
    if not wanted.backing and _names_files(wanted.format, header):
        raise SourceError(f"{wanted.path} has some of its data in other files", _BACKING_HINT)
    node: dict[str, Any] = {"driver": driver, "filename": str(wanted.path), "locking": "on"}
    if wanted.format == "raw" and unshared:
        node = {"driver": "blkdebug", "unshare-child-perms": unshared, "image": node}
    node = {"driver": wanted.format, "file": node} | ({} if wanted.backing else {"backing": None})
    objects: list[str] = []
    if wanted.key_file:
        objects = ["--object", "secret,id=key,file=" + str(wanted.key_file).replace(",", ",,")]
        key = {"key-secret": "key"}
        node |= {"encrypt": {"format": "luks", **key}} if wanted.format == "qcow2" else key
    return [*objects, f"json:{json.dumps(node)}"]


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
