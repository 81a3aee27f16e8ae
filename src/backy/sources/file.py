"""Source "file": disk images in files, sparse or not, and block devices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from backy.config.settings import DiskName, checking
from backy.errors import ConfigError, SourceError, translated
from backy.model.extent import Extent
from backy.model.revision import Consistency
from backy.sources import Request, SnapshotData, SourceSettings, checked
from backy.system import files
from backy.system.files import Cache, File


def _path(path: object) -> Path:
    """A path that the system can be asked for. Raises ConfigError where it is none."""
    shown = path if isinstance(path, str) else type(path).__name__
    if not isinstance(path, str) or not path or not path.isprintable():
        raise ConfigError(
            f"{shown!a:.200} cannot be the path of a source: nobody could read it in a message",
            "Give it a printable name in UTF-8, by a symbolic link for example.",
        )
    return Path(path)


class FileSettings(SourceSettings):
    """Each disk's image or block device."""

    disks: dict[DiskName, Annotated[Path, BeforeValidator(checking(_path))]] = Field(min_length=1)


class FileSource:
    """A Source; see there for the contract.

    A regular file on a file system with reflink is cloned first, so that its backup is one point
    in time. Otherwise it is read as it lies there, and a change while that goes on is reported.
    """

    is_shared = True

    def __init__(self, /, **settings: object) -> None:
        """Take {"disks": {name: absolute path}}, or as in backy 2 {"filename": absolute path}."""
        if settings.keys() == {"filename"}:
            settings = {"disks": {"vda": settings["filename"]}}
        self.paths = checked(FileSettings, settings).disks

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[FileSnapshot]:
        """See Source. Needs no parent: holes and hashes tell what changed."""
        with ExitStack() as stack:
            disks = {name: _open(path, stack) for name, path in self.paths.items()}
            yield FileSnapshot(disks, is_frozen=request.is_frozen)

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """Nothing is left behind: the clone has no name and goes with the process."""


class FileImage:
    """One file or block device, as an Image."""

    def __init__(self, file: File, origin: File) -> None:
        """Read from `file`: `origin` itself, or the clone of it."""
        self._file = file
        self._origin = origin
        self._began = origin.status()
        self.is_clone = file is not origin
        self.size = file.size()

    def extents(self) -> Iterator[Extent]:
        """Holes are ZERO."""
        with translated(SourceError, f"looking for holes in {self._origin.path}"):
            yield from self._file.extents(self.size)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image."""
        with translated(SourceError, f"reading {self._origin.path} at byte {offset}", _READ_HINT):
            length = self._file.read_into(offset, buffer)
        if length != len(buffer):
            raise SourceError(
                f"{self._origin.path} ended at byte {offset + length} while it was read",
                "Back it up while nobody resizes it, or from a snapshot.",
            )

    def warnings(self) -> Iterator[str]:
        """Whether the file was changed while it was read (a clone cannot be)."""
        with translated(SourceError, f"looking at {self._origin.path}", _READ_HINT):
            now = self._origin.status()
        can_tell = not (self.is_clone or self._origin.is_device)
        if can_tell and (now.st_mtime_ns, now.st_size) != (
            self._began.st_mtime_ns,
            self._began.st_size,
        ):
            yield f"{self._origin.path} changed while it was read; parts of it are older"


_READ_HINT = "Check the disk behind it (dmesg); nothing was published, older revisions are intact."


class FileSnapshot(SnapshotData):
    """All disks of the source, open for reading."""

    def __init__(self, disks: Mapping[str, FileImage], *, is_frozen: bool) -> None:
        """CRASH where all are clones: of one disk, for two are not cloned at once, or frozen."""
        is_point = is_frozen or len(disks) == 1
        is_point &= all(image.is_clone for image in disks.values())
        super().__init__(disks, Consistency.CRASH if is_point else Consistency.NONE)
        self._images = disks

    def warnings(self) -> list[str]:
        """See Snapshot."""
        return [warning for image in self._images.values() for warning in image.warnings()]


def _open(path: Path, stack: ExitStack) -> FileImage:
    with translated(
        SourceError, f"opening the source {path}", "Is the path right, and may you read it?"
    ):
        origin = stack.enter_context(files.open_to_read(path, Cache.SPARE))
        image = FileImage(_clone(origin, stack) or origin, origin)
    if not image.size:
        raise SourceError(
            f"{path} is empty", "A disk image has at least one byte; is the path right?"
        )
    return image


def _clone(origin: File, stack: ExitStack) -> File | None:
    """A clone without a name beside `origin`; None where the file system or the rights forbid."""
    if origin.is_device:
        return None
    try:
        clone = files.create_unnamed(origin.path.resolve().parent, Cache.SPARE)
    except OSError:
        return None
    stack.enter_context(clone)
    try:
        return clone if clone.clone_from(origin) else None
    except OSError:
        return None
