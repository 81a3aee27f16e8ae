"""Restore: write one disk of a revision, or all of them, to targets."""

from __future__ import annotations

import errno
import html
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backy.errors import (
    ConfigError,
    DamagedError,
    NotFoundError,
    StoreError,
    TargetError,
    UsageError,
    translated,
)
from backy.image.copy import copy, data_of
from backy.image.image import Draft, Image, read_bytes
from backy.image.progress import SILENCE, Pace, PacedImage, Watcher, warned
from backy.model.extent import merge_ranges
from backy.model.names import is_disk_name
from backy.model.revision import Revision, disk_of
from backy.operations.heal import StoredDisk, healing
from backy.operations.healing_image import HealingImage
from backy.operations.origin import Origin, failures
from backy.operations.site import Site
from backy.repository.repository import Repository
from backy.system import folders
from backy.system.place import Place
from backy.targets import Target, in_format, is_folder, name_in_folder, open_target
from backy.units import KiB, MiB

if TYPE_CHECKING:
    from backy.operations.differential import Differential

_OWN_KINDS = (".blocks", ".img", ".qcow2", ".vmdk", ".vhdx")
_NO_SAVED_FILE = {errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EFBIG}  # a link, folder, FIFO …
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """Options of one restore.

    `spec` is a revision word. `disk` chooses one of several disks. `overwrite` allows a file that
    exists, and `over_source` the source itself. `keep_going` writes zeroes in the place of lost
    blocks. `differ` is Differential: only what the target does not have is written; None writes all
    data. `verify` compares each target with the index at the end. At most `rate` bytes a second are
    read. With `dry_run`, which counts what would be written, nothing is written and no hook runs.
    `typed` is what the user typed, if that stood for all targets; the record has it.
    """

    spec: str = "latest"
    disk: str | None = None
    over_source: bool = False
    keep_going: bool = False
    overwrite: bool = False
    differ: type[Differential] | None = None
    verify: Callable[[Way], None] | None = None
    rate: int | None = None
    dry_run: Callable[[Way], int] | None = None
    typed: str = ""


@dataclass(frozen=True, slots=True)
class RestoredDisk:
    """The result for one disk; `revision` is an id.

    `size`, `read` and `written` are in bytes: `read` counts what the revision has as data,
    `written` how much of it the target did not have.

    `lost` and `healed` are the ranges that were damaged, as (start, length). The target has zeroes
    in the lost ones, and the right bytes in those that were healed.
    """

    revision: str
    disk: str
    target: str
    size: int
    read: int
    written: int
    seconds: float
    lost: Ranges = ()
    healed: Ranges = ()


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """The result of a restore: its disks, and the `files` that were written beside them.

    `unasked` has a sentence for each origin of good bytes that could not be asked, with the reason.
    """

    revision: Revision
    disks: Sequence[RestoredDisk]
    files: Sequence[Path] = ()
    unasked: Sequence[str] = ()

    @property
    def lost(self) -> int:
        """The number of lost ranges in all disks."""
        return sum(len(disk.lost) for disk in self.disks)


def restore_job(
    site: Site,
    job: str,
    target: str | Mapping[str, str],
    options: RestoreOptions = RestoreOptions(),
    *,
    watcher: Watcher = SILENCE,
    on_start: Callable[[Revision, Mapping[str, str]], None] = lambda *_: None,
    on_disk: Callable[[RestoredDisk], None] = lambda _: None,
) -> RestoreResult:
    """Restore disks of a job, one after the other, and run the job's hooks around each of them.

    `target` is one of these: a word that `open_target` takes, for one disk; a folder, which gets
    every disk (or the one of the options) as DISK.img, and the files that the source saved beside
    the disks; or such a word for each disk, by its name. `on_start` is called with these words, by
    disk, when all checks are passed, and `on_disk` after each disk.

    Before a hook runs, this raises NotFoundError if there is no such revision or disk, UsageError
    if a target is not valid, and TargetError if it must not be overwritten. Later it raises
    TargetError if the target cannot take the disk, before anything is written; HookError; and what
    `restore` raises.
    """
    repository = site.repository(job)
    revision = repository.find(options.spec)
    words = _words(repository, revision, target, options.disk)
    spared = {} if options.over_source else _source_paths(site, repository, revision, watcher)
    in_folder = isinstance(target, str) and is_folder(target)
    for word in words.values():
        opened = open_target(word, in_folder=in_folder)
        opened.refuse(spared)
        if options.verify and opened.is_sequential:
            raise UsageError(f"{word} cannot be read back", "Leave out --verify.")
    if not options.overwrite and not options.over_source:
        beside = saved_files(repository, revision) if in_folder else []
        for word in (*words.values(), *(f"{target}/{name}" for name in beside)):
            open_target(word).refuse_used()
    hooks = None if options.dry_run else site.hooks(job, watcher.note)
    origins = site.origins(repository)
    on_start(revision, words)
    times = 2 if options.verify else 1
    watcher.begin(times * sum(_data_of(repository, revision, name) for name in words))
    disks = []
    run = partial(restore, repository, revision, origins=origins, options=options, watcher=watcher)
    for name, word in words.items():
        with ExitStack() as stack:
            if hooks:
                stack.callback(hooks.run, "after-restore", revision.id, disk=name, target=word)
                hooks.run("before-restore", revision.id, disk=name, target=word)
            # `restore` opens the target again, because a hook may have made it.
            done = run(name, word, spared=spared, in_folder=in_folder)
        disks.append(done)
        on_disk(done)
    with_files = in_folder and not options.dry_run
    files = restore_files(repository, revision, Path(str(target)), watcher) if with_files else []
    return RestoreResult(revision, disks, files, failures(origins))


def _data_of(repository: Repository, revision: Revision, disk: str) -> int:
    """How many bytes of data a disk has; its size, if its index is damaged."""
    with suppress(StoreError), repository.store.open(revision, disk, may_be_cut=True) as image:
        return data_of(image, whole_blocks(image.block_size))
    return revision.disks[disk].size


def _words(
    repository: Repository, revision: Revision, target: str | Mapping[str, str], disk: str | None
) -> dict[str, str]:
    """The target of each disk to restore, as a word that `open_target` takes."""
    formats = {name: disk.image_format for name, disk in revision.disks.items()}
    if not isinstance(target, str):
        words = {_disk_of(repository, revision, name): word for name, word in target.items()}
    elif not is_folder(target):
        words = {_disk_of(repository, revision, disk): target}
    else:
        names = [_disk_of(repository, revision, disk)] if disk else revision.disks
        folder = target.rstrip("/")  # as it was typed: ./ab:c must not become ab:c, a plug-in's
        words = {name: f"{folder}/{name_in_folder(name, formats[name])}" for name in names}
        if link := next((word for word in words.values() if Path(word).is_symlink()), ""):
            # Who put it there may mean another file.
            raise TargetError(f"{link} is a link", "Remove it, or name what it leads to.")
    words = {name: in_format(word, formats[name]) for name, word in words.items()}
    if len({open_target(word).identity for word in words.values()}) < len(words):
        raise UsageError("two disks cannot go to one target", "Name another target for each.")
    return words


def _disk_of(repository: Repository, revision: Revision, disk: str | None) -> str:
    """The name of the disk. Raises DamagedError if it has an index, but is not in revision.json."""
    try:
        return disk_of(revision, disk)
    except NotFoundError as error:
        if f"{disk}.blocks" not in folders.list_folder(repository.folder_of(revision)):
            raise
        message = f"{repository.name}: {error.message}, but the index of one"
        raise DamagedError(message, "restore.sh and docs/restore-by-hand.md may help.") from error


def _source_paths(
    site: Site, repository: Repository, revision: Revision, watcher: Watcher
) -> Mapping[str, Path | str]:
    """What the settings of the source name, and a domain.xml of libvirt that was saved.

    Whoever wrote these into the repository can have a target refused, and no more.
    """
    paths: dict[str, Path | str] = {}
    with suppress(OSError):
        saved = folders.read_file(repository.folder_of(revision) / "domain.xml", MiB)
        names = re.findall(rb"<source (?:file|dev|protocol='rbd' name)='([^']+)'", saved)
        for name in map(html.unescape, map(os.fsdecode, names)):
            paths[f"at {name}"] = Path(name) if name.startswith("/") else f"rbd:{name}"
    with warned(watcher, "cannot check whether the target is the source", ConfigError):
        paths.update(site.source_paths(repository))
    return paths


def restore(
    repository: Repository,
    revision: Revision,
    disk: str,
    target: str,
    *,
    origins: Sequence[Origin],
    options: RestoreOptions = RestoreOptions(),
    spared: Mapping[str, Path | str] | None = None,
    in_folder: bool = False,
    watcher: Watcher = SILENCE,
) -> RestoredDisk:
    """Write a disk to a target, as `open_target` takes it. On return it is complete and durable.

    Zeroes become holes if the target can have them. With `options.differ`, blocks that the target
    has already are neither fetched nor written. Damaged blocks are healed from other revisions and
    `origins`; `watcher` is warned of each damaged range.

    Raises TargetError, before anything is written, if the target is a path in `spared`, holds an
    image of a format, or cannot take the disk; if writing fails; and if it is to be verified and
    holds other bytes at the end. Raises DamagedError if a block is lost and `keep_going` is False.
    """
    began = time.monotonic()
    opened = open_target(target, in_folder=in_folder)
    opened.refuse(spared or {})
    opened.check(revision.disks[disk].size)
    with ExitStack() as stack:
        healer = stack.enter_context(healing(repository, "restore", origins, watcher))
        name = f"{repository.name}: {revision.id} {disk}"
        explained = partial(_damage_explained, name, repository.name, origins, options)
        with explained():
            stack.enter_context(repository.reading(revision))
            opening = repository.store.open(revision, disk, may_be_cut=options.keep_going)
            stored = StoredDisk(revision, disk, stack.enter_context(opening))
            image = HealingImage(stored, healer, keep_going=options.keep_going)
            opened.refuse_format(lambda: bytes(read_bytes(image, 0, min(4 * KiB, image.size))))
            data = data_of(image, whole_blocks(stored.image.block_size))
        way = Way(target, opened, stored, image, data, options, Pace(options.rate), watcher)
        written = options.dry_run(way) if options.dry_run else way.fill(explained)
        lost, healed = tuple(merge_ranges(image.lost)), tuple(merge_ranges(image.healed))
        _warn_of_damage(disk, lost, healed, watcher)
        if options.verify:
            options.verify(way)
    seconds = time.monotonic() - began
    return RestoredDisk(revision.id, disk, target, image.size, data, written, seconds, lost, healed)


@contextmanager
def _damage_explained(
    name: str, job: str, origins: Sequence[Origin], options: RestoreOptions
) -> Iterator[None]:
    """Say in a DamagedError which disk it is, and what helps."""
    try:
        yield
    except DamagedError as error:
        verify = f"backy verify {job} shows which are good"
        more = "." if options.keep_going else ". Or add --keep-going to get all the rest."
        hints = [*failures(origins), f"Try an older revision; {verify}{more}"]
        raise DamagedError(f"{name}: {error.message}", ". ".join(hints)) from error


@dataclass(frozen=True, slots=True)
class Way:
    """From a stored disk to a target."""

    target: str
    opened: Target
    stored: StoredDisk
    image: HealingImage
    data: int
    options: RestoreOptions
    pace: Pace
    watcher: Watcher

    def fill(self, explained: Callable[[], AbstractContextManager[None]]) -> int:
        """Write to the target what it does not have; return how many bytes of data those were."""
        size, blocks = self.image.size, whole_blocks(self.stored.image.block_size)
        differ = self.options.differ if self.opened.read_back() else None
        with self.opened.open(size, blocks) as draft, explained(), ExitStack() as stack:
            # Only now it has the size of the disk.
            held = self.opened.read_back() if differ else None
            back = stack.enter_context(held) if held else None
            if not differ or not back or back.size < size:
                return self._copy(self.image, draft)
            pair = differ(self.stored, back, draft, self.image.readinto)
            self.watcher.begin(data_of(pair, blocks) - self.data)
            self._copy(pair, pair)
            return pair.written

    def _copy(self, image: Image, draft: Draft) -> int:
        workers = 1 if self.opened.is_sequential else None
        return copy(PacedImage(image, self.pace, self.watcher), draft, workers=workers)


def whole_blocks(block_size: int) -> int:
    """A block size for targets: that of the store, or so many of these blocks that make 1 MiB.

    So each stored block is decompressed only once.
    """
    return max(MiB // block_size, 1) * block_size


def _warn_of_damage(disk: str, lost: Ranges, healed: Ranges, watcher: Watcher) -> None:
    done = [(each, "were damaged; a good copy was used") for each in healed]
    done += [(each, "are lost; the target has zeroes there") for each in lost]
    for (start, length), what in done:
        watcher.warn(f"disk {disk}: bytes {start} to {start + length} {what}")


def restore_files(
    repository: Repository, revision: Revision, folder: Path, watcher: Watcher = SILENCE
) -> list[Path]:
    """Copy the files that the source saved beside the disks, such as a domain's XML, to `folder`.

    Returns the paths of the copies. Replaces files of the same name. The repository may have files
    that no source saved, so this writes no hidden file, no file named like an image or an index,
    and nothing through a link; what cannot be a saved file is named in a warning. Raises
    StoreError if reading fails, TargetError if writing fails.
    """
    stored, target = repository.folder_of(revision), Place.at(folder)
    written = []
    with repository.reading(revision):
        for name in saved_files(repository, revision):
            with translated(StoreError, f"reading {stored / name}"):
                try:
                    content = folders.read_file(stored / name, MiB)
                except OSError as error:
                    if error.errno not in _NO_SAVED_FILE:
                        raise
                    why = error.strerror
                    watcher.warn(f"{stored / name} was not saved by a source, left alone: {why}")
                    continue
            with translated(TargetError, f"writing {folder / name}"):
                folders.write_file(target / name, content)
            written.append(folder / name)
    return written


def saved_files(repository: Repository, revision: Revision) -> list[str]:
    """The names in the folder of a revision that a source may have saved beside the disks."""
    names = filter(is_disk_name, folders.list_folder(repository.folder_of(revision)))
    return [each for each in names if each != "revision.json" and not each.endswith(_OWN_KINDS)]
