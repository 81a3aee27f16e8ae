"""The door to folders: listing, making, renaming and removing, small files, and locks on both.

Functions raise OSError; their callers know which object failed and say so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from pathlib import Path

from backy.system import files


def make_folder(path: Path) -> None:
    """Make `path`, for its owner only, and the folders above it; one that exists is fine."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def give(path: Path, owner: int) -> None:
    """Make the user with this number own a file or folder."""
    os.chown(path, owner, -1)


def list_folder(path: Path, *, follow: bool = True) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder."""
    if not follow and path.is_symlink():
        raise OSError(errno.ELOOP, f"{path} is a link")
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder, in one step; durable after `sync_folder` of both parents."""
    old.rename(new)


def remove_file(path: Path) -> int:
    """Unlink, and give the size that the file had; 0 where it is gone already."""
    try:
        size = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def remove_socket(path: Path) -> None:
    """Unlink a Unix socket that nobody listens at any more; anything else stays."""
    if path.is_socket():
        path.unlink(missing_ok=True)


def allow(path: Path, mode: int) -> None:
    """Give a file, or a socket, these rights, whatever the umask is."""
    path.chmod(mode)


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it, never following a symbolic link out of it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()  # rmtree would open a FIFO, and wait
    else:
        shutil.rmtree(path)


def remove_hidden(folder: Path, end: str = "") -> None:
    """Remove all in `folder` whose names begin with a dot, and have that `end`."""
    for name in list_folder(folder):
        if name.startswith(".") and name.endswith(end):
            remove_tree(folder / name)


def remove_empty_folder(path: Path) -> None:
    """Remove a folder that has nothing in it."""
    path.rmdir()


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are durable."""
    with files.File(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
        folder.sync()


def read_file(path: Path, limit: int) -> bytes:
    """All of a small regular file. Raises OSError (EFBIG) where it is longer than `limit` bytes."""
    # Without `File`, because monitoring reads 20,000 of them; O_NONBLOCK: a FIFO would hang us.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = b""
        while piece := os.pread(descriptor, min(status.st_size, limit) + 1, len(content)):
            content += piece
            if len(content) > limit:
                raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    finally:
        os.close(descriptor)
    return content


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a small file, replacing one of that name in one step; durable on return."""
    new = path.with_name(f".{path.name}.new")
    try:
        remove_file(new)  # never written through: it may be a FIFO, or a link to elsewhere
        with files.File(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=mode) as file:
            file.write(0, content)
            os.fchmod(file.descriptor, mode)  # whatever the umask is
            file.sync()
        rename(new, path)
    except OSError:
        remove_file(new)
        raise
    sync_folder(path.parent)


def locked(
    path: Path, *, make: bool = False, shared: bool = False, patience_seconds: float = 0
) -> files.File:
    """Take flock(2) on a folder, or on a file that `make` makes; it ends when that is closed.

    Raises BlockingIOError where another process still holds it after `patience_seconds`.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW if make else os.O_RDONLY | os.O_DIRECTORY
    file = files.File(path, flags)
    try:
        deadline = time.monotonic() + patience_seconds
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        while True:
            try:
                fcntl.flock(file.descriptor, operation)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)
            else:
                return file
    except BaseException:
        file.close()
        raise
