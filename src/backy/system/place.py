"""Places below a root: opened relative to the root's descriptor, never through a link.

A repository may come from an attacker, who may also change it while we work. The kernel looks up
each name from one open descriptor with openat2(2), which refuses symbolic links, magic links of
/proc and "..". If the kernel has no openat2 (before Linux 5.6), we open the folders on the way one
by one with O_NOFOLLOW. Hard links and bind mounts cannot be detected: they look like their target.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = ctypes.c_long(437)  # the same number on every architecture
_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve; linux/openat2.h
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08  # RESOLVE_…
_RESOLVE = _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_OPENAT2 = {errno.ENOSYS, errno.EPERM}  # EPERM: from a seccomp filter older than openat2
_ATTEMPTS = 100  # openat2 returns EAGAIN while somebody renames folders


class Root:
    """The folder at `path`, which may be reached through links: the administrator chose it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def descriptor(self) -> int:
        """A descriptor for looking up names in it. Raises OSError if it cannot be opened."""
        try:
            return os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise FileNotFoundError(errno.ENOENT, "its links lead in a circle") from error

    def __del__(self) -> None:
        # An error is ignored: nothing was written through it, and nobody could handle it here.
        if "descriptor" in vars(self):
            _libc.close(self.descriptor)


class Place:
    """A root, or a file or folder below it. It need not exist."""

    __slots__ = ("parts", "root")

    def __init__(self, root: Root, parts: tuple[str, ...] = ()) -> None:
        self.root = root
        self.parts = parts

    @classmethod
    def at(cls, path: Path) -> Place:
        """The folder at `path`, as a root."""
        return cls(Root(path))

    def __truediv__(self, name: str) -> Place:
        """The entry `name` of this folder. Raises ValueError if `name` is not one file name."""
        if name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is not the name of a file")
        return Place(self.root, (*self.parts, name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        # The same as str(self.path), in half the time: monitoring makes 30,000 of them.
        return os.path.join(self.root.path, *self.parts)

    __repr__ = __str__

    @property
    def path(self) -> Path:
        """The path, for messages and other programs; we never open it."""
        return self.root.path.joinpath(*self.parts)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.parts[-1] if self.parts else self.root.path.name

    @property
    def parent(self) -> Place:
        """The folder that contains it; of a root, the root itself."""
        return Place(self.root, self.parts[:-1])

    def with_name(self, name: str) -> Place:
        """The entry `name` of the same folder."""
        return self.parent / name

    def open(self, flags: int, mode: int = 0o600) -> int:
        """A new descriptor; the caller closes it.

        Raises OSError, with ELOOP if any part of the path is a link.
        """
        return _opened(self.root, self.parts, flags | os.O_CLOEXEC, mode)

    def folder(self) -> AbstractContextManager[int]:
        """A descriptor of the folder that contains it, for calls with `dir_fd`."""
        return closing(_opened(self.root, self.parts[:-1], _FOLDER, 0))

    def status(self) -> os.stat_result:
        """Its stat(2); if it is a link, that of the link. Raises OSError."""
        if not self.parts:
            return os.stat(self.root.descriptor)
        with self.folder() as folder:
            return os.stat(self.name, dir_fd=folder, follow_symlinks=False)

    def exists(self) -> bool:
        """Whether it exists, even as a link. Raises OSError if that cannot be determined."""
        return self._mode() != 0

    def is_folder(self) -> bool:
        """Whether it is a folder, not a link to one. Raises OSError as `exists` does."""
        return stat.S_ISDIR(self._mode())

    def _mode(self) -> int:
        try:
            return self.status().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close a descriptor at the end of the body."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(root: Root, parts: tuple[str, ...], flags: int, mode: int) -> int:
    if not parts:
        return os.open(".", flags, dir_fd=root.descriptor)
    try:
        return _openat2(root, "/".join(parts), flags, mode)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    return _walked(root, parts, flags, mode)


def _openat2(root: Root, name: str, flags: int, mode: int) -> int:
    # The kernel refuses a mode unless the call can create a file.
    creates = flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE
    how = _HOW.pack(flags, mode if creates else 0, _RESOLVE)
    arguments = ctypes.c_int(root.descriptor), os.fsencode(name), how, ctypes.c_size_t(_HOW.size)
    number = errno.EAGAIN
    for _ in range(_ATTEMPTS):
        descriptor: int = _libc.syscall(_OPENAT2, *arguments)
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(number, os.strerror(number))


def _walked(root: Root, parts: tuple[str, ...], flags: int, mode: int) -> int:
    """Open the folders on the way one by one, for kernels without openat2."""
    descriptor = os.open(".", _FOLDER, dir_fd=root.descriptor)
    try:
        for name in parts[:-1]:
            inner = os.open(name, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        return os.open(parts[-1], flags | os.O_NOFOLLOW, mode, dir_fd=descriptor)
    finally:
        os.close(descriptor)
