"""Source "image": disk images of every format that QEMU reads, of VMs that do not run.

They are read through QEMU's own locks: an image that a VM writes to is refused, and while we read
no VM can be started from it, nor any program change it that respects these locks. So all disks
are of one point in time, as after a power cut: CRASH. Nothing tells what changed since a parent.

What is in an image was written by a guest, or by a customer who uploaded it. Its format is never
guessed from that, and a file that it names is not opened unless the administrator says so: else
a guest could write a qcow2 header with /etc/shadow as its backing file into its raw disk.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from backy.clients.qemu_nbd import HINT, serve
from backy.config.settings import AbsolutePath, DiskName, Seconds
from backy.errors import SourceError, translated
from backy.model.revision import Consistency
from backy.nbd.remote_image import NbdImage
from backy.sources import Request, SnapshotData, SourceSettings, checked
from backy.system import files
from backy.units import KiB, TiB, format_size

_NAMES = ("luks", "qcow", "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc")
_FORMATS = {".img": "raw", ".vhd": "vpc"} | {f".{each}": each for each in _NAMES}
_LARGEST = 64 * TiB  # a few bytes can claim to be 8 EiB, and an index has 65 bytes a block
_HARM_HINT = "A disk can have 64 TiB. Is it an image that somebody made to do harm?"
_TRUST_HINT = "If you trust all who could write to it, and mean those files, say backing: true."


def _format(given: dict[str, Any]) -> str:
    return _FORMATS.get(given["path"].suffix.lower(), "")


class ImageDisk(SourceSettings):
    """An image. `backing` allows it to name other files, which may be any that we may read."""

    path: AbsolutePath
    format: str = Field(default_factory=_format, min_length=1, validate_default=True)
    key_file: AbsolutePath | None = None
    backing: bool = False


_Disk = Annotated[ImageDisk, BeforeValidator(lambda d: {"path": d} if isinstance(d, str) else d)]


class ImageSettings(SourceSettings):
    """See docs/sources/image.md."""

    disks: dict[DiskName, _Disk] = Field(min_length=1)
    timeout: Seconds = Field(default=60, ge=1)


class ImageSource:
    """A Source; see there for the contract."""

    is_shared = True

    def __init__(self, /, **settings: object) -> None:
        self.settings = checked(ImageSettings, settings)
        self.paths = {name: each.path for name, each in self.settings.disks.items()}

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[SnapshotData]:
        """See Source. Every disk is locked before the first is read."""
        with ExitStack() as stack:
            opened = {
                name: stack.enter_context(_open(each, self.settings.timeout))
                for name, each in self.settings.disks.items()
            }
            yield SnapshotData(opened, Consistency.CRASH)

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """Nothing is left behind: a lock goes with qemu-nbd, and that with us."""


@contextmanager
def _open(wanted: ImageDisk, timeout_seconds: float) -> Iterator[NbdImage]:
    name, objects = str(wanted.path), []
    with (
        translated(SourceError, f"opening the image {name}", HINT),
        files.open_to_read(wanted.path) as file,
    ):
        head = file.read_bytes(0, 64 * KiB).ljust(80, b"\0")
        driver = "host_device" if file.is_device else "file"
    if not wanted.backing and _names_files(wanted.format, head):
        raise SourceError(f"{name} says that its data is in other files, too", _TRUST_HINT)
    node: dict[str, Any] = {"driver": driver, "filename": name, "locking": "on"}
    if wanted.format == "raw":
        # QEMU lets others write to what it reads as raw, unless it is told not to in this way.
        unshared = ["write", "resize"]
        node = {"driver": "blkdebug", "unshare-child-perms": unshared, "image": node}
    node = {"driver": wanted.format, "file": node} | ({} if wanted.backing else {"backing": None})
    if wanted.key_file:
        objects = ["--object", "secret,id=key,file=" + str(wanted.key_file).replace(",", ",,")]
        key = {"key-secret": "key"}
        node |= {"encrypt": {"format": "luks", **key}} if wanted.format == "qcow2" else key
    arguments = (*objects, f"json:{json.dumps(node)}")
    with serve(arguments, name, timeout_seconds=timeout_seconds) as image:
        if image.size > _LARGEST:
            raise SourceError(f"{name} has a disk of {format_size(image.size)}", _HARM_HINT)
        yield image


def _names_files(image_format: str, head: bytes) -> bool:
    """Whether an image that begins so names files, which QEMU opens even if it only looks.

    That are a backing file, in qcow2 an external data file (bit 2 of the incompatible features),
    and what the descriptor of a VMDK has; one in a single file begins with KDMV and a capacity.
    https://www.qemu.org/docs/master/interop/qcow2.html, block/qed.h and block/vmdk.c of QEMU
    """
    match image_format:
        case "qcow" | "qcow2":
            return any(head[8:16]) or (head[7] > 2 and head[79] & 4 > 0)  # noqa: PLR2004
        case "qed":
            return head[16] & 1 > 0
        case "vmdk":
            is_single = head[:4] == b"KDMV" and any(head[12:20])
            return not is_single or b"parentFileNameHint" in head
        case _:
            return False
