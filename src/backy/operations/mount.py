"""Mount: every disk of every revision as a read-only file, by FUSE."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial, wraps
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from backy.errors import BackyError, ConfigError, NotFoundError, StoreError, TargetError, translated
from backy.image.cache import BlockCache
from backy.image.progress import Watcher
from backy.model.extent import Extent, Kind
from backy.model.names import is_job
from backy.model.revision import Revision, is_id
from backy.operations.open_disk import OpenDisk, Readers
from backy.operations.restore import saved_files
from backy.operations.site import Site
from backy.repository.base import jobs
from backy.repository.repository import Repository
from backy.stores.data import data_bytes
from backy.stores.index import Index
from backy.system import folders, process
from backy.system.signals import left_to_library
from backy.units import MiB, TiB

_CACHE = 64 * MiB  # bytes of blocks in memory, of all disks together
_MOST_OPEN = 256  # files that are open at once; a disk takes up to four descriptors
_REMEMBERED = 64  # repositories, and as many revisions
_COUNTED = TiB  # bytes of data, to say how much a disk takes; enough to see that it has holes
_MOST_NOTES = 4096  # sizes that are remembered, and messages that are not repeated
_LATEST = "latest"
_OPTIONS = {
    "foreground": True, "ro": True, "noexec": True, "default_permissions": True,
    "fsname": "backy", "subtype": "backy",
    "kernel_cache": True,  # what a path has does not change
    "max_idle_threads": 10,  # the default; libfuse 3.14.0 complains of its own
}  # fmt: skip
_ALLOW_OTHER = "Users but root need the line user_allow_other in /etc/fuse.conf for --allow-other."
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _File:
    """A file that a program has open. `extents` gives those from a byte on."""

    size: int
    read: Callable[[int, int], bytes]
    extents: Callable[[int], Iterator[Extent]]
    close: Callable[[], None] = lambda: None


def _answered(method: Callable[..., Result]) -> Callable[..., Result]:
    """The method as libfuse calls it: errors have numbers, and those of backy are logged."""

    @wraps(method)
    def call(tree: Tree, path: str, *arguments: int) -> Result:
        try:
            return method(tree, path, *arguments)
        except NotFoundError as error:
            raise OSError(errno.ENOENT, path) from error
        except BackyError as error:
            tree.say(f"{path}: {error.message}")
            raise OSError(errno.EIO, path) from error

    return call


class Tree:
    """What the kernel asks for: operations of libfuse. Any thread may call them.

    /JOB/REVISION/DISK.img, the files that a source saved beside the disks, and /JOB/latest, a link
    to the newest revision. `mode` has the bits of those who may read.
    """

    use_ns = True  # times are in nanoseconds

    def __init__(self, readers: Readers, patterns: Sequence[str], mode: int) -> None:
        self.ready: Callable[[], None] = lambda: None  # called when it is mounted
        self.was_mounted = False
        # Nothing is said again and again.
        self.say = lru_cache(_MOST_NOTES)(readers.watcher.warn)
        self._readers, self._site, self._folder = readers, readers.site, Path.cwd()
        self._patterns, self._mode = patterns, mode
        self._files: dict[int, _File] = {}
        self._numbers = count(1)
        self._opened = lru_cache(_REMEMBERED)(lambda job, _: self._site.repository(job))
        self._read_revision = lru_cache(_REMEMBERED)(Repository.revision)
        self._data = lru_cache(_MOST_NOTES)(self._count_data)

    def close(self) -> None:
        """Close what is still open when the kernel asks no more."""
        while self._files:
            self._files.popitem()[1].close()

    def init(self, _: str) -> None:
        """The file system is mounted."""
        os.chdir(self._folder)  # libfuse went to /, and the path of a repository may be relative
        self.was_mounted = True
        self.ready()

    @_answered
    def readdir(self, path: str, _: int) -> list[str]:
        """The names in a folder."""
        return [".", "..", *self._names(*_parts(path))]

    def _names(self, job: str = "", revision_id: str = "") -> Sequence[str]:
        if not job:
            found = jobs(self._site.base, lambda name: self.say(f"left alone: {name!a}"))
            return [name for name in found if _is_like(name, self._patterns)]
        repository = self._repository(job)
        if not revision_id:
            ids = _ids(repository)
            return [*ids, _LATEST] if ids else []
        revision = self._revision(repository, revision_id)
        return [*(f"{disk}.img" for disk in revision.disks), *_saved(repository, revision)]

    @_answered
    def readlink(self, path: str) -> str:
        """The id of the newest revision."""
        return _ids(self._repository(_parts(path)[0]))[-1]

    @_answered
    def getattr(self, path: str, _: int | None = None) -> dict[str, int]:
        """The result of stat(2)."""
        job, revision_id, name = (*_parts(path), "", "", "")[:3]
        if not job:
            return self._status(stat.S_IFDIR, self._site.base.stat().st_mtime_ns)
        repository = self._repository(job)
        changed = (repository.root / "revisions").status().st_mtime_ns
        if revision_id == _LATEST and (ids := _ids(repository)):
            return self._status(stat.S_IFLNK, changed, len(ids[-1]))
        if not revision_id:
            return self._status(stat.S_IFDIR, changed)
        revision = self._revision(repository, revision_id)
        taken = int(revision.time.timestamp()) * 10**9
        if not name:
            return self._status(stat.S_IFDIR, taken)
        if disk := _disk_called(name, revision):
            return self._status(stat.S_IFREG, taken, revision.disks[disk].size, self._data(path))
        if (size := _saved(repository, revision).get(name)) is None:
            raise NotFoundError(f"there is no {name!a}")
        return self._status(stat.S_IFREG, taken, size, size)

    def _status(self, kind: int, time: int, size: int = 0, data: int = 0) -> dict[str, int]:
        status = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), time)
        status["st_mode"] = kind | self._mode | (self._mode >> 2 if kind == stat.S_IFDIR else 0)
        status |= {"st_nlink": 1, "st_size": size, "st_blocks": -(-data // 512)}
        return status | {"st_uid": os.getuid(), "st_gid": os.getgid()}

    def _count_data(self, path: str) -> int:
        """How many bytes of a disk are data, counted to 1 TiB; all if its index cannot be read."""
        repository, revision, name = self._found(path)
        disk = _disk_called(name, revision)
        size = revision.disks[disk].size
        with suppress(StoreError), repository.store.open_index(revision, disk) as index:
            return min(size, data_bytes(index, _COUNTED))
        return size

    @_answered
    def open(self, path: str, _: int) -> int:
        """A number by which the file is read. Until `release` its revision is not purged."""
        if len(self._files) >= _MOST_OPEN:
            raise OSError(errno.ENFILE, path)
        repository, revision, name = self._found(path)
        number = next(self._numbers)
        if disk := _disk_called(name, revision):
            opened = OpenDisk(self._readers, repository, revision, disk, path)
            extents = partial(_extents, opened.stored.image.index)
            self._files[number] = _File(opened.size, opened.image.read, extents, opened.close)
        else:
            content = folders.read_file(repository.folder_of(revision) / name, MiB)
            self._files[number] = _content(content)
        return number

    @_answered
    def read(self, path: str, length: int, offset: int, number: int) -> bytes:
        """The bytes of an open file from `offset` on; fewer than `length` only at its end."""
        file = self._files[number]
        return file.read(offset, max(0, min(length, file.size - offset)))

    @_answered
    def lseek(self, path: str, offset: int, whence: int, number: int) -> int:
        """The next data or hole in an open file, by SEEK_DATA and SEEK_HOLE."""
        file = self._files[number]
        if not 0 <= offset < file.size:
            raise OSError(errno.ENXIO, path)
        is_hole = whence == os.SEEK_HOLE
        found = (each for each in file.extents(offset) if (each.kind is Kind.ZERO) == is_hole)
        if extent := next(found, None):
            return max(offset, extent.start)
        if is_hole:
            return file.size
        raise OSError(errno.ENXIO, path)

    def release(self, _: str, number: int) -> int:
        """No program has the file open any more."""
        self._files.pop(number).close()
        return 0

    def _repository(self, job: str) -> Repository:
        """The repository of a job; opened again if another folder has its name now."""
        if not is_job(job) or not _is_like(job, self._patterns):
            raise NotFoundError(f"there is no job {job!a}")
        status = (self._site.base / job).stat()
        return self._opened(job, (status.st_dev, status.st_ino))

    def _revision(self, repository: Repository, revision_id: str) -> Revision:
        if not is_id(revision_id) or not repository.has(revision_id):
            raise NotFoundError(f"there is no revision {revision_id!a}")
        return self._read_revision(repository, revision_id)

    def _found(self, path: str) -> tuple[Repository, Revision, str]:
        """What /JOB/REVISION/NAME says."""
        job, revision_id, name = _parts(path)
        repository = self._repository(job)
        return repository, self._revision(repository, revision_id), name


def _is_like(job: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(job, pattern) for pattern in patterns)


def _parts(path: str) -> list[str]:
    return list(filter(None, path.split("/")))


def _ids(repository: Repository) -> list[str]:
    with translated(StoreError, "listing its revisions"):
        return list(filter(is_id, folders.list_folder(repository.root / "revisions")))


def _disk_called(name: str, revision: Revision) -> str:
    """The disk whose file has this name, or ""."""
    disk = name.removesuffix(".img")
    return disk if disk != name and disk in revision.disks else ""


def _content(content: bytes) -> _File:
    """A saved file, which is small, and has no holes."""
    whole = Extent(0, len(content), Kind.DATA)
    return _File(len(content), lambda at, size: content[at : at + size], lambda _: iter([whole]))


def _extents(index: Index, start: int) -> Iterator[Extent]:
    return index.extents(first=start // index.block_size)


def _saved(repository: Repository, revision: Revision) -> dict[str, int]:
    """The files that a source saved beside the disks, with their sizes."""
    folder = repository.folder_of(revision)
    found = {name: (folder / name).status() for name in saved_files(repository, revision)}
    return {name: each.st_size for name, each in found.items() if stat.S_ISREG(each.st_mode)}


def mount(
    site: Site,
    folder: Path,
    patterns: Sequence[str],
    *,
    allow_other: bool,
    watcher: Watcher,
    ready: Callable[[], None],
) -> None:
    """Show the revisions of all jobs whose names match a pattern as files in `folder`.

    Calls `ready`, in another thread, when they can be read. Returns when somebody has unmounted
    it, or after SIGTERM, SIGINT or SIGHUP, which unmount it even if files in it are open.

    Only the user of this process may look inside, not even root, unless `allow_other`. Holds up to
    64 MiB of blocks in memory. `watcher` is warned of what cannot be read.

    Raises ConfigError if FUSE is not installed, TargetError if the folder cannot be used.
    """
    fuse, folder = _library(), folder.resolve()
    if not any(_is_like(job, patterns) for job in jobs(site.base)):
        watcher.warn(f"{site.base} has no job to show yet")
    _check(folder, site.base.resolve())
    process.allow_open_files(8 * _MOST_OPEN)
    with BlockCache(_CACHE) as cache, left_to_library(), ExitStack() as stack:
        readers = Readers("mount", site, cache, watcher)
        tree = Tree(readers, patterns, 0o444 if allow_other else 0o400)
        tree.ready = ready
        stack.callback(tree.close)
        try:
            fuse(tree, str(folder), allow_other=allow_other, **_OPTIONS)
        except RuntimeError as error:
            if not tree.was_mounted:  # else a signal has ended it
                hint = f"libfuse says above why. {_ALLOW_OTHER if allow_other else ''}".strip()
                raise TargetError(f"{folder} cannot be mounted", hint) from error


def _library() -> Any:  # noqa: ANN401 - it has no types
    """The class of mfusepy that mounts, with the one operation that it lacks."""
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # it would prefer version 2
    try:
        from mfusepy import FUSE  # type: ignore[import-untyped]  # noqa: PLC0415
    except (ImportError, OSError) as error:
        hint = "Install libfuse (the package fuse3), and pip install 'backy[mount]'."
        raise ConfigError(f"FUSE cannot be used: {error}", hint) from error

    class Fuse(FUSE):  # type: ignore[misc]
        def lseek(self, path: bytes, offset: int, whence: int, info: Any) -> int:  # noqa: ANN401
            found: int = self.operations.lseek(path.decode(), offset, whence, info.contents.fh)
            return found

    return Fuse


def _check(folder: Path, base: Path) -> None:
    """Raise TargetError unless the folder can be used. Unmounts what a killed mount left there."""
    if folder.is_relative_to(base):
        raise TargetError(f"{folder} is in the base directory", "Name a folder somewhere else.")
    if _is_left_over(folder):
        process.run(process.Program(("fusermount3", "-uz", str(folder)), {}, b"", 30))
    hint = f"mkdir {folder} makes it; umount -l {folder} takes away what is mounted there."
    with translated(TargetError, f"looking into {folder}", hint):
        is_empty = not any(folder.iterdir())
    if not is_empty:
        raise TargetError(f"{folder} is not empty", "Name an empty folder.")


def _is_left_over(folder: Path) -> bool:
    """Whether backy was mounted on the folder, and was killed."""
    try:
        os.scandir(folder).close()  # stat(2) may still know the answer
    except OSError as error:
        name = re.sub(r"[\\\s]", lambda found: f"\\{ord(found[0]):03o}", str(folder))
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")
        ours = [line for line in mounts if " - fuse.backy " in line]  # see proc_pid_mountinfo(5)
        return error.errno == errno.ENOTCONN and any(line.split(" ")[4] == name for line in ours)
    return False
