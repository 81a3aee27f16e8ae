"""Folders, small files, and locks on both.

Functions raise OSError; callers know which object failed, and say so.
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
    """Create a folder, for its owner only, and those above it. It may exist already."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def give(path: Path, owner: int) -> None:
    """Give a file or folder to the user with this number."""
    os.chown(path, owner, -1)


def list_folder(path: Path, *, follow: bool = True) -> list[str]:
    """The names in a folder, sorted; none if it does not exist.

    Without `follow` a symbolic link to a folder raises OSError.
    """
    if not follow and path.is_symlink():
        raise OSError(errno.ELOOP, f"{path} is a link")
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder in one step. Durable after `sync_folder` of both parents."""
    old.rename(new)


def remove_file(path: Path) -> int:
    """Delete a file; return the size that it had, or 0 if it does not exist."""
    try:
        size = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def remove_socket(path: Path) -> None:
    """Delete a Unix socket; anything else of that name stays."""
    if path.is_socket():
        path.unlink(missing_ok=True)


def allow(path: Path, mode: int) -> None:
    """Set the mode of a file or socket, whatever the umask is."""
    path.chmod(mode)


def remove_tree(path: Path) -> None:
    """Delete a folder and everything in it, or a file. Never follows a symbolic link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()  # rmtree would open a FIFO, which blocks
    else:
        shutil.rmtree(path)


def remove_hidden(folder: Path, end: str = "") -> None:
    """Delete everything in `folder` whose name starts with a dot and ends with `end`."""
    for name in list_folder(folder):
        if name.startswith(".") and name.endswith(end):
            remove_tree(folder / name)


def remove_empty_folder(path: Path) -> None:
    """Delete an empty folder."""
    path.rmdir()


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are durable."""
    with files.File(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
        folder.sync()


def read_file(path: Path, longest: int) -> bytes:
    """The content of a small regular file. Raises OSError (EFBIG) beyond `longest` bytes."""
    # Without `File`, because monitoring reads 20,000 files. O_NONBLOCK, because a FIFO would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = b""
        while piece := os.pread(descriptor, min(status.st_size, longest) + 1, len(content)):
            content += piece
            if len(content) > longest:
                raise OSError(errno.EFBIG, f"larger than {longest} bytes")
    finally:
        os.close(descriptor)
    return content


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Create a small file, or replace it in one step. Durable on return."""
    new = path.with_name(f".{path.name}.new")
    try:
        remove_file(new)  # not opened: it may be a FIFO, or a link to elsewhere
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
    """Lock a folder, or with `make` a file, which is created if needed, by flock(2).

    Closing the result ends the lock. Raises BlockingIOError if another process still has it after
    `patience_seconds`.
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
