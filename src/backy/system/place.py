"""Places below a root: reached from the root's descriptor, never by name and never through a link.

A repository may have been prepared by somebody else, who may also change it while we work. Each
name in it is looked up by the kernel from one open descriptor with openat2(2), which stops at
links, at magic links of /proc and at "..". Where the kernel has no openat2 (before Linux 5.6) the
folders on the way are opened one by one with O_NOFOLLOW. A hard link and a bind mount look like
what they stand for; nobody can tell them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = ctypes.c_long(437)  # the same number on every architecture
_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve; linux/openat2.h
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08  # RESOLVE_…
_RESOLVE = _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_OPENAT2 = {errno.ENOSYS, errno.EPERM}  # the latter from a seccomp filter that is older than it
_PATIENCE = 100  # times to ask again where the kernel says that somebody renames folders meanwhile


class Root:
    """The folder at `path`, however that is reached; opened when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    @property
    def descriptor(self) -> int:
        """Of the folder, good for looking up names in it. Raises OSError where it is none."""
        if self._descriptor < 0:
            # The root itself may be reached through links: the administrator chose its name.
            self._descriptor = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor; it is opened again where it is needed again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # Nothing can be lost with such a descriptor, and here nobody could hear of an error.
        if self._descriptor >= 0:
            _libc.close(self._descriptor)


class Place:
    """A file or folder in or below a root, by the names that lead there; it need not exist."""

    __slots__ = ("parts", "root")

    def __init__(self, root: Root, parts: tuple[str, ...] = ()) -> None:
        self.root = root
        self.parts = parts

    @classmethod
    def at(cls, path: Path) -> Place:
        """The folder at `path`, as a root of its own."""
        return cls(Root(path))

    def __truediv__(self, name: str) -> Place:
        """What is called `name` in this folder. Raises ValueError for what is not one name."""
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
        """By name, for messages and for other programs; we never open it."""
        return self.root.path.joinpath(*self.parts)

    @property
    def name(self) -> str:
        """The last of the names; of the root, its own."""
        return self.parts[-1] if self.parts else self.root.path.name

    @property
    def parent(self) -> Place:
        """The folder that has it. The root has none here, and is its own."""
        return Place(self.root, self.parts[:-1])

    def with_name(self, name: str) -> Place:
        """Another one in the same folder."""
        return self.parent / name

    def open(self, flags: int, mode: int = 0o600) -> int:
        """A descriptor of it. Raises OSError: ELOOP where a link is on the way or at its end."""
        return _opened(self.root, self.parts, flags | os.O_CLOEXEC, mode)

    @contextmanager
    def folder(self) -> Iterator[int]:
        """A descriptor of the folder that has it, for calls that take a folder and a name."""
        descriptor = _opened(self.root, self.parts[:-1], _FOLDER, 0)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def status(self) -> os.stat_result:
        """What stat(2) says of it, or of a link that is in its place. Raises OSError."""
        if not self.parts:
            return os.stat(self.root.descriptor)
        with self.folder() as folder:
            return os.stat(self.name, dir_fd=folder, follow_symlinks=False)

    def exists(self) -> bool:
        """Whether anything has this name. Raises OSError where that cannot be told."""
        return self._mode() != 0

    def is_folder(self) -> bool:
        """Whether it is a folder, and not a link to one. Raises OSError as `exists` does."""
        return stat.S_ISDIR(self._mode())

    def _mode(self) -> int:
        try:
            return self.status().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0


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
    # The kernel refuses a mode where nothing can be made.
    makes = flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE
    how = _HOW.pack(flags, mode if makes else 0, _RESOLVE)
    arguments = ctypes.c_int(root.descriptor), os.fsencode(name), how, ctypes.c_size_t(_HOW.size)
    number = errno.EAGAIN
    for _ in range(_PATIENCE):
        descriptor: int = _libc.syscall(_OPENAT2, *arguments)
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(number, os.strerror(number))


def _walked(root: Root, parts: tuple[str, ...], flags: int, mode: int) -> int:
    """Open folder after folder, for kernels without openat2."""
    descriptor = os.open(".", _FOLDER, dir_fd=root.descriptor)
    try:
        for name in parts[:-1]:
            inner = os.open(name, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        return os.open(parts[-1], flags | os.O_NOFOLLOW, mode, dir_fd=descriptor)
    finally:
        os.close(descriptor)
