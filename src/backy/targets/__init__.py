"""Targets: where a disk is restored to. A plug-in is a class that is a `Target`."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Protocol

from backy.errors import ConfigError, UsageError
from backy.image.image import Draft, Image
from backy.plugins import load

STREAM = "-"
_URIS = ("nbd", "nbds", "nbd+unix", "nbds+unix")  # kinds that take the whole word
IMAGES = ("qcow2", "vmdk", "vhdx")  # kinds of files that a path can be by its suffix
_BUILT_IN = {
    "device": "backy.targets.device:DeviceTarget",
    "file": "backy.targets.file:FileTarget",
    "stream": "backy.targets.stream:StreamTarget",
    **{kind: f"backy.targets.qemu_image:{kind}" for kind in (*IMAGES, "luks")},
    "rbd": "backy.targets.rbd:RbdTarget",
    **dict.fromkeys(_URIS, "backy.targets.nbd:NbdTarget"),
}
_IN_FOLDER = {"file": "backy.targets.file:FileInFolder"}
_NAMED = re.compile(r"([a-z][a-z0-9+]+):(.*)", re.DOTALL)


class Target(Protocol):
    """Takes one disk: the mirror of a Source. Every method may raise TargetError.

    The class is called with what was typed after the target's name, and raises UsageError if that
    is no place; it opens nothing.
    """

    @property
    def is_sequential(self) -> bool:
        """Whether its draft must be written in ascending order, so by one thread."""

    @property
    def identity(self) -> str:
        """The same for two words that lead to one place."""

    def refuse(self, sources: Mapping[str, Path | str]) -> None:
        """Raise TargetError if a restore would destroy what has to stay, such as a repository.

        `sources` must not be overwritten, by disk: see `paths` of Source. The target need not exist
        yet: this is asked before the first hook runs, and again after it.
        """

    def refuse_format(self, read_start: Callable[[], bytes]) -> None:
        """Raise TargetError if it holds an image of a format, such as qcow2, that would be lost.

        A disk that begins with the header of the same format is one. `read_start` gives its start,
        and is called only where that matters.
        """

    def refuse_used(self) -> None:
        """Raise TargetError if it has content that only --overwrite allows to replace.

        A block device is never asked: whoever names one means it.
        """

    def check(self, size: int) -> None:
        """Raise TargetError if it cannot take a disk of `size` bytes now. Writes nothing."""

    def capacity(self) -> int | None:
        """The bytes that it can hold; None if it grows, or nobody knows."""

    def open(self, size: int, block_size: int) -> AbstractContextManager[Draft]:
        """A draft of a disk of `size` bytes that has this block size; the caller has checked it.

        On a clean exit the disk is complete and durable. A target that is new appears only then;
        one that existed is overwritten in place, and of no use after an exception. Then the next
        draft continues.
        """

    def read_back(self) -> AbstractContextManager[Image] | None:
        """What it holds now, as an Image; None if that is nothing, or cannot be read.

        It is read from the medium. While a draft is open, it is what the draft will make complete.
        """


def open_target(word: str, *, in_folder: bool = False) -> Target:
    """The target that a user names.

    With `in_folder` the user named the folder that it is in, and no link is followed.

    "-" is standard output, NAME:PLACE is a place of the target plug-in NAME, a URI of NBD is an
    export, and anything else is the path of a raw file or block device. Raises UsageError if there
    is no such target.
    """
    if in_folder and not _NAMED.fullmatch(word):
        target: Target = load("backy.targets", "file", _IN_FOLDER)(word)
        return target
    if word == STREAM:
        return _target("stream", "", word)
    if named := _NAMED.fullmatch(word):
        if named[1] == "libvirt":  # see operations.restore_domain
            raise UsageError("a domain gets all disks", f"Write: backy restore JOB {word}")
        return _target(named[1], word if named[1] in _URIS else named[2], word)
    return _target("device" if _is_device(Path(word)) else "file", word, word)


def in_format(word: str, recorded: str) -> str:
    """The same target, with the kind of image that a path stands for.

    That is what its suffix says; .img and .raw are raw. A path with another suffix, or with none,
    gets the format that is `recorded` for the disk, if such an image can be made. Where none is
    recorded, the bytes of the disk may be those of an image themselves, so the path stays raw.
    """
    path = Path(word)
    if not recorded or word == STREAM or _NAMED.fullmatch(word) or _is_device(path):
        return word
    suffix = path.suffix.lower().removeprefix(".")
    kind = suffix if suffix in {*IMAGES, "img", "raw"} else recorded
    return f"{kind}:{word}" if kind in IMAGES else word


def name_in_folder(disk: str, recorded: str) -> str:
    """The name of the file for a disk in a folder."""
    return f"{disk}.{recorded if recorded in IMAGES else 'img'}"


def is_folder(word: str) -> bool:
    """Whether a user names a folder that exists, for all disks of a revision."""
    with suppress(OSError, ValueError):  # the target says what is wrong with the path
        return bool(word) and not _NAMED.fullmatch(word) and Path(word).is_dir()
    return False


def _is_device(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return path.is_block_device()
    return False


def _target(name: str, place: str, word: str) -> Target:
    try:
        target_class = load("backy.targets", name, _BUILT_IN)
    except ConfigError as error:
        if error.__cause__:  # it is installed, and broken
            raise
        hint = f"{error.hint} To restore to a file of that name, write ./{word}."
        raise UsageError(error.message, hint) from error
    target: Target = target_class(place)
    return target
