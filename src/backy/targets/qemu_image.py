"""Targets "qcow2", "vmdk", "vhdx" and "luks": images that QEMU writes, through a qemu-nbd."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path

from backy.clients.program import output_of
from backy.clients.qemu_nbd import ImageFile, image_arguments
from backy.errors import TargetError, UsageError, translated
from backy.nbd.uri import Address
from backy.system import files, folders
from backy.targets.path import PathTarget
from backy.targets.remote import RemoteTarget, as_target_error, served_by_qemu

_HINT = "Free some space or name another target."
_OPEN_HINT = "Is it an image in that format, and does nothing else use it?"
_LEFT_HINT = "If no restore to it runs, remove {} and run it again."
_KEY = "?key-file="
_SECTOR = 512  # bytes; sizes of such images are multiples of it
_TIMEOUT_SECONDS = 60


class QemuImageTarget(RemoteTarget):
    """A Target; see there for the contract. An existing image keeps its size and its format.

    A new image is filled in a folder beside the path, under its own name, because a vmdk has that
    name inside. After a failure it stays there, and the next restore to this path continues.
    """

    def __init__(self, kind: str, place: str) -> None:
        """`place` is a path; for luks, the path of a file with the key follows."""
        super().__init__(f"{kind}:{place}")
        path, _, key = place.partition(_KEY) if kind == "luks" else (place, "", "")
        if kind == "luks" and not key:
            why = f"{self._name} names no file with its key"
            raise UsageError(why, f"Write luks:PATH{_KEY}FILE.")
        if not place.isprintable():
            raise UsageError(f"{place!a:.200} is not printable", "QEMU needs another path.")
        self._beside = PathTarget(path)
        self.identity = self._beside.identity
        self._kind = kind
        self._path = Path(self.identity)  # a new image goes to where a link leads
        self._key = Path(key).absolute() if key else None
        self._partial = self._path.with_name(f".{self._path.name}.partial") / self._path.name

    def refuse(self, sources: Mapping[str, Path | str]) -> None:
        """See Target."""
        self._beside.refuse(sources)

    def refuse_format(self, read_start: Callable[[], bytes]) -> None:
        """See Target. An image of that format is what it is to be."""

    def refuse_used(self) -> None:
        """See Target."""
        self._beside.refuse_used()

    def check(self, size: int) -> None:
        """See Target."""
        self._beside.check_file()
        super().check(size)

    def _served(self) -> AbstractContextManager[Address]:
        """See RemoteTarget."""
        wanted = ImageFile(path=self._current(), format=self._kind, key_file=self._key)
        left_hint = "" if self._exists() else f" {_LEFT_HINT.format(self._partial.parent)}"
        with as_target_error(_OPEN_HINT + left_hint):
            arguments = image_arguments(wanted)
        return served_by_qemu(arguments, self._name, _OPEN_HINT + left_hint)

    def _exists(self) -> bool:
        """See RemoteTarget. An empty file is replaced by an image."""
        with translated(TargetError, f"looking at {self._path}"):
            return self._path.exists() and self._path.stat().st_size > 0

    def _has_content(self) -> bool:
        """See RemoteTarget."""
        return self._exists() or self._has_partial()

    def _has_partial(self) -> bool:
        """Whether a restore left a part of it. Raises TargetError if others may have done so."""
        folder = self._partial.parent
        with translated(TargetError, f"looking at {folder}"):
            if os.path.lexists(folder) and not folders.is_own_folder(folder):
                why = f"{folder} is no folder that is only yours"
                raise TargetError(why, "Remove it, or name another target.")
            # One that is empty was made by a process that was killed before qemu-img filled it.
            return self._partial.exists() and self._partial.stat().st_size > 0

    def _current(self) -> Path:
        return self._path if not self._is_new and self._exists() else self._partial

    def _make(self, size: int) -> bool:
        """See RemoteTarget. Encrypted zeroes have to be written."""
        size += -size % _SECTOR
        if self._has_partial():
            with self._connected() as connections:
                if connections.export.size == size:
                    return False
        with translated(TargetError, f"making {self._partial}", _HINT):
            folders.make_folder(self._partial.parent)
            folders.remove_file(self._partial)
            files.create(self._partial).close()  # for its owner only
        try:
            self._create(size)
        except TargetError:
            with suppress(OSError):  # nobody could continue it
                folders.remove_tree(self._partial.parent)
            raise
        return not self._key

    @as_target_error(_HINT)
    def _create(self, size: int) -> None:
        options: list[str] = []
        if self._key:
            key = str(self._key).replace(",", ",,")
            options = ["--object", f"secret,id=key,file={key}", "-o", "key-secret=key"]
        command = ["qemu-img", "create", "-q", "-f", self._kind, *options, str(self._partial)]
        title = f"making {self._name}"
        output_of([*command, str(size)], title, timeout_seconds=_TIMEOUT_SECONDS)

    def _publish(self) -> None:
        """See RemoteTarget."""
        with translated(TargetError, f"renaming {self._partial} to {self._path}", _HINT):
            with files.open_to_write(self._partial) as file:
                file.sync()  # what qemu-nbd wrote when it closed the image
            if self._exists():
                raise TargetError(f"{self._path} has appeared meanwhile", "Move it away.")
            folders.rename(self._partial, self._path)
            folders.sync_folder(self._path.parent)
            folders.remove_empty_folder(self._partial.parent)


qcow2, vmdk, vhdx, luks = (
    partial(QemuImageTarget, kind) for kind in ("qcow2", "vmdk", "vhdx", "luks")
)
