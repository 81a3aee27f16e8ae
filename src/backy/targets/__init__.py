"""Targets: where a disk is restored to. A plug-in is a class that is a `Target`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Protocol

from backy.errors import ConfigError, TargetError, UsageError, translated
from backy.image.image import Draft, Image
from backy.plugins import load

STREAM = "-"
_BUILT_IN = {
    "device": "backy.targets.device:DeviceTarget",
    "file": "backy.targets.file:FileTarget",
    "stream": "backy.targets.stream:StreamTarget",
}
_IN_FOLDER = {"file": "backy.targets.file:FileInFolder"}
_NAMED = re.compile(r"([a-z][a-z0-9+]+):(.*)", re.DOTALL)


class Target(Protocol):
    """Takes one disk: the mirror of a Source. Every method may raise TargetError."""

    @property
    def is_sequential(self) -> bool:
        """Whether its draft must be written in ascending order, so by one thread."""

    def refuse(self, sources: Mapping[str, Path]) -> None:
        """Raise TargetError if a restore would destroy what has to stay, such as a repository.

        `sources` are files and devices that must not be overwritten, by disk. The target need not
        exist yet: this is asked before the first hook runs, and again after it.
        """

    def refuse_format(self, read_start: Callable[[], bytes]) -> None:
        """Raise TargetError if it holds an image of a format, such as qcow2, that would be lost.

        A disk that begins with the header of the same format is one. `read_start` gives its start,
        and is called only where that matters.
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


class TargetClass(Protocol):
    """What makes a target; it opens nothing."""

    def __call__(self, place: str) -> Target:
        """Raises UsageError if `place`, what was typed after the target's name, is none."""


def open_target(word: str, *, in_folder: bool = False) -> Target:
    """The target that a user names.

    With `in_folder` the user named the folder that it is in, and no link is followed.

    "-" is standard output, NAME:PLACE is a place of the target plug-in NAME, anything else is the
    path of a file or block device. Raises UsageError if there is no such target.
    """
    if in_folder:
        made: TargetClass = load("backy.targets", "file", _IN_FOLDER)
        return made(word)
    if word == STREAM:
        return _target_class("stream", word)("")
    if named := _NAMED.fullmatch(word):
        return _target_class(named[1], word)(named[2])
    return _target_class("device" if _is_device(Path(word)) else "file", word)(word)


def refuse_existing(words: Iterable[str]) -> None:
    """Raise TargetError if one of the targets that a user names is a file, and not empty."""
    for word in words:
        path = Path(word.removeprefix("file:"))
        with translated(TargetError, f"looking at the target {word}", "Name another target."):
            is_used = word != STREAM and path.is_file() and path.stat().st_size
        if is_used:
            hint = "Name a new file, or add --overwrite to write what differs."
            raise TargetError(f"{path} exists", hint)


def is_folder(word: str) -> bool:
    """Whether a user names a folder that exists, for all disks of a revision."""
    with suppress(OSError, ValueError):  # the target says what is wrong with the path
        return bool(word) and not _NAMED.fullmatch(word) and Path(word).is_dir()
    return False


def _is_device(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return path.is_block_device()
    return False


def _target_class(name: str, word: str) -> TargetClass:
    try:
        made: TargetClass = load("backy.targets", name, _BUILT_IN)
    except ConfigError as error:
        if error.__cause__:  # it is installed, and broken
            raise
        hint = f"{error.hint} To restore to a file of that name, write ./{word}."
        raise UsageError(error.message, hint) from error
    return made
