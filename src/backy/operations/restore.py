"""Restore: copy a disk of a revision to a file, a block device or a stream."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from backy.errors import DamagedError, StoreError, TargetError, translated
from backy.image.copy import copy
from backy.image.progress import SILENCE, Watcher
from backy.model.extent import merge_ranges
from backy.model.revision import Revision
from backy.operations.heal import Bad, Healer, Stored, healing
from backy.operations.origin import Origin, failures
from backy.repository.repository import Repository
from backy.system import files, folders
from backy.system.files import Cache, File
from backy.units import MiB, format_size

STREAM = "-"
_OWN_KINDS = ("blocks", "img")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: bytes read, and ranges as (start, length) that were damaged.

    Those in `lost` are zeroes in the target now; those in `healed` came from elsewhere.
    """

    read: int
    lost: tuple[tuple[int, int], ...] = ()
    healed: tuple[tuple[int, int], ...] = ()


def restore(
    repository: Repository,
    revision: Revision,
    disk: str,
    target: str,
    *,
    over_source: bool = False,
    keep_going: bool = False,
    origins: Sequence[Origin],
    watcher: Watcher = SILENCE,
) -> Restored:
    """Write a disk to `target`: a path, or "-" for standard output.

    A new file appears under its name only when it is complete. An existing file is overwritten
    in place and takes the disk's size; a block device keeps what lies beyond the disk. Zeroes
    become holes where the target can have them. On return everything is durable.

    A damaged block is healed from the sources that verify has; what cannot be healed becomes
    zeroes where `keep_going` says so. Raises TargetError where the target cannot take the disk,
    before anything was written, and DamagedError where a block cannot be given back.
    """
    watcher.begin(revision.disks[disk].size)
    with ExitStack() as stack:
        healer = stack.enter_context(healing(repository, "restore", origins, watcher))
        more = "." if keep_going else ". Or add --keep-going to get all the rest."
        try:
            stack.enter_context(repository.reading(revision))
            opened = repository.store.open(revision, disk, may_be_cut=keep_going)
            image = stack.enter_context(opened)
            stored = Stored(revision, disk, image)
            rescued = _Rescued(stored, healer, keep_going=keep_going)
            # Whole stored blocks at a time: each is decompressed once.
            block_size = max(MiB // image.block_size, 1) * image.block_size
            if target == STREAM:
                read = copy(rescued, StreamDraft(block_size), watcher=watcher, workers=1)
            else:
                _check_target(Path(target), repository, over_source=over_source)
                with _target(Path(target), image.size, block_size) as draft:
                    read = copy(rescued, draft, watcher=watcher)
        except DamagedError as error:
            what = f"{repository.name}: {revision.id} {disk}: {error.message}"
            whole = f"backy verify {repository.name} says which are whole"
            hints = [*failures(origins), f"Try an older revision; {whole}{more}"]
            raise DamagedError(what, ". ".join(hints)) from error
    return Restored(read, tuple(merge_ranges(rescued.lost)), tuple(merge_ranges(rescued.healed)))


def restore_files(repository: Repository, revision: Revision, folder: Path) -> list[Path]:
    """Copy what the source saved beside the disks, a domain's XML say, into `folder`.

    Files of that name are replaced. Raises StoreError or TargetError where that fails.
    """
    origin = repository.folder_of(revision)
    own = {"revision.json", *(f"{disk}.{kind}" for disk in revision.disks for kind in _OWN_KINDS)}
    written = []
    with repository.reading(revision):
        for name in folders.list_folder(origin):
            if name not in own:
                with translated(StoreError, f"reading {origin / name}"):
                    content = folders.read_file(origin / name, MiB)
                with translated(TargetError, f"writing {folder / name}"):
                    folders.write_file(folder / name, content)
                written.append(folder / name)
    return written


class _Rescued:
    """The image of a stored disk whose damaged blocks come from elsewhere, if they can."""

    def __init__(self, stored: Stored, healer: Healer, *, keep_going: bool) -> None:
        self.size = stored.image.size
        self.extents = stored.image.extents
        self.lost: set[tuple[int, int]] = set()
        self.healed: set[tuple[int, int]] = set()
        self._stored = stored
        self._healer = healer
        self._keep_going = keep_going

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image; where a block cannot be had it raises DamagedError, or gives zeroes."""
        if error := self._stored.damage(offset, buffer):
            size = self._stored.image.block_size
            for start in range(0, len(buffer), size):  # `restore` asks for whole blocks
                block = self._read((offset + start) // size, error)
                buffer[start : start + size] = block

    def _read(self, number: int, error: StoreError) -> bytes:
        block = self._stored.block(number)
        if block is not None:
            return block
        block, _ = self._healer.rescue(Bad(self._stored, number, error.message))
        if block is None and not self._keep_going:
            raise DamagedError(error.message, error.hint) from error
        index = self._stored.image.index
        length = index.length_of(number)
        (self.lost if block is None else self.healed).add((number * index.block_size, length))
        return bytes(length) if block is None else block


def _check_target(path: Path, repository: Repository, *, over_source: bool) -> None:
    """Refuse targets that would destroy what is being restored, or its origin."""
    with translated(TargetError, f"looking at the target {path}", "Name another target."):
        resolved = path.resolve()
        if any((folder / "repository.json").exists() for folder in (resolved, *resolved.parents)):
            raise TargetError(f"{path} lies inside a repository", "Restore to another place.")
        if not resolved.parent.is_dir():
            hint = "Make it first, or name another target."
            raise TargetError(f"there is no folder {path.parent}", hint)
        if resolved.is_dir():
            raise TargetError(f"{path} is a folder", f"Name a file in it: {path / 'disk.img'}.")
        for name, origin in _origins(repository.settings.source):
            if not over_source and _is_same(path, origin):
                why = f"{path} is the source of disk {name}; a restore would overwrite it"
                hint = "If that is what you want, stop the VM and add --over-source."
                raise TargetError(why, hint)


def _origins(settings: Mapping[str, object], disk: str = "") -> Iterator[tuple[str, Path]]:
    """The paths in the settings of a source, whatever its type, each with the disk's name."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _origins(value, "" if name in {"disks", "images"} else disk or name)
        elif isinstance(value, str) and value.startswith("/"):
            yield disk or name, Path(value)


def _is_same(path: Path, other: Path) -> bool:
    """Whether two names mean one file, or one block device."""
    if not path.exists() or not other.exists():
        return False
    status, others = path.stat(), other.stat()
    is_device = stat.S_ISBLK(status.st_mode) and stat.S_ISBLK(others.st_mode)
    return path.samefile(other) or (is_device and status.st_rdev == others.st_rdev)


@contextmanager
def _target(path: Path, size: int, block_size: int) -> Iterator[RawDraft]:
    with translated(TargetError, f"writing {path}", "Free some space or name another target."):
        if not path.exists():
            yield from _new_file(path, size, block_size)
            return
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise TargetError(f"{path} is neither a file nor a block device", "Use - for a stream.")
        with files.open_to_write(path, Cache.SPARE) as file:
            if file.is_device and file.size() < size:
                have = f"{format_size(file.size())} ({file.size()} bytes)"
                need = f"{format_size(size)} ({size} bytes)"
                raise TargetError(f"{path} has {have}; {need} are needed", "Use a larger device.")
            if not file.is_device:
                file.resize(size)
            yield RawDraft(file, block_size, is_new=False)
            file.sync()


def _new_file(path: Path, size: int, block_size: int) -> Iterator[RawDraft]:
    """Fill a file beside `path`, then rename it: nobody takes half a disk for a whole one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        folders.remove_file(partial)  # of a killed process that had our number
        with files.create(partial, Cache.SPARE) as file:
            file.resize(size)
            yield RawDraft(file, block_size, is_new=True)
            file.sync()
        folders.rename(partial, path)
        folders.sync_folder(path.parent)
    finally:
        folders.remove_file(partial)


class RawDraft:
    """A raw file or block device, as a Draft. What the target is still to get is never read."""

    def __init__(self, file: File, block_size: int, *, is_new: bool) -> None:
        self.block_size = block_size
        self._file = file
        self._is_new = is_new

    def write(self, offset: int, data: memoryview) -> None:
        """Write past the page cache: a restored disk would only push out what is in use."""
        with translated(TargetError, f"writing {self._file.path} at byte {offset}", "Is it full?"):
            self._file.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """A hole; in a new file there is one already."""
        if not self._is_new:
            with translated(TargetError, f"zeroing {self._file.path} at byte {offset}"):
                self._file.zero(offset, length)


class StreamDraft:
    """A pipe, as a Draft that must be written in ascending order: `copy` with one worker."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def write(self, offset: int, data: memoryview) -> None:
        """Append."""
        with translated(TargetError, f"writing to standard output at byte {offset}"):
            files.append_to_standard_output(data)

    def zero(self, offset: int, length: int) -> None:
        """Append zeroes."""
        zeroes = memoryview(bytes(min(length, MiB)))
        for start in range(0, length, MiB):
            self.write(offset + start, zeroes[: length - start])
