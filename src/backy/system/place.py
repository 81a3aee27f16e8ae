"""Places below a root: opened relative to the root's descriptor, never through a link.

A repository may come from an attacker, who may also change it while we work. So the folders on the
way are opened one by one with O_NOFOLLOW, each from the descriptor of the one above, and no part is
"..". Hard links and bind mounts cannot be detected: they look like their target.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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

    def as_root(self) -> Place:
        """The same folder, opened now: what is in it is found without the way to it."""
        root = Root(self.path)
        root.descriptor = self.open(_FOLDER)
        return Place(root)

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
    return _walked(root.descriptor, parts or (".",), flags, mode)


def _walked(folder: int, parts: tuple[str, ...], flags: int, mode: int) -> int:
    """Open what lies below an open folder, one part of the path after the other."""
    name, below = parts[0], parts[1:]
    try:
        if not below:
            return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=folder)
        inner = os.open(name, _FOLDER, dir_fd=folder)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        raise
    try:
        return _walked(inner, below, flags, mode)
    finally:
        os.close(inner)
