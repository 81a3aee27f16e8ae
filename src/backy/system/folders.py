"""Folders, small files, and locks on them; also those of QEMU on images.

Functions raise OSError; callers know which object failed, and say so.
"""

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from backy.system import files, signals
from backy.system.files import AnyPath
from backy.system.place import Place, closing

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OUR_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO would block
_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length, process
_QEMU_LOCKS = (100, 200)  # block/file-posix.c: a byte for each right that is used, or refused
_QEMU_RIGHTS = 64


@contextmanager
def _named(path: AnyPath) -> Iterator[tuple[int | None, str | Path]]:
    """What functions of `os` take for a path: a descriptor of its folder, and a name in it."""
    if isinstance(path, Place):
        with path.folder() as folder:
            yield folder, path.name
    else:
        yield None, path


def make_folder(path: AnyPath, mode: int = 0o700) -> None:
    """Create a folder, by default for its owner only, and those above it. It may exist already."""
    above: list[AnyPath]
    if isinstance(path, Place):
        above = [Place(path.root, path.parts[:end]) for end in range(1, len(path.parts))]
    else:
        above = [each for each in reversed(path.parents) if not each.is_dir()]
    for each in (*above, path):
        with _named(each) as (folder, name), suppress(FileExistsError), files.inodes_named(each):
            os.mkdir(name, mode if each == path else 0o755, dir_fd=folder)
    if not (path.is_folder() if isinstance(path, Place) else path.is_dir()):
        raise FileExistsError(errno.EEXIST, "it is no folder")


def give(path: Path, owner: int) -> None:
    """Give a file or folder to the user with this number."""
    os.chown(path, owner, -1, follow_symlinks=False)


def list_folder(path: AnyPath) -> list[str]:
    """The names in a folder, sorted; none if it does not exist."""
    try:
        descriptor = files.opened_by(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    with closing(descriptor):
        return sorted(os.listdir(descriptor))


def rename(old: AnyPath, new: AnyPath) -> None:
    """Rename a file or folder in one step. Durable after `sync_folder` of both parents."""
    with _named(old) as (from_folder, name), _named(new) as (to_folder, new_name):
        os.rename(name, new_name, src_dir_fd=from_folder, dst_dir_fd=to_folder)


def link_unnamed(file: files.File, path: Place) -> None:
    """Give a file from `create_unnamed` a name on its file system. Raises FileExistsError."""
    with path.folder() as folder:
        os.link(
            f"/proc/self/fd/{file.descriptor}", path.name, dst_dir_fd=folder, follow_symlinks=True
        )


def remove_file(path: AnyPath) -> int:
    """Delete a file; return the size that it had, or 0 if it does not exist."""
    try:
        with _named(path) as (folder, name):
            size = os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
            os.unlink(name, dir_fd=folder)
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


def remove_tree(path: AnyPath) -> None:
    """Delete a folder and everything in it, however deep, or a file. Never follows a link.

    Raises OSError (EXDEV) if another file system is mounted in it.
    """
    with _named(path) as (folder, name):
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            return
        with closing(os.open(name, _LIST, dir_fd=folder)) as descriptor:
            _empty(descriptor)
        os.rmdir(name, dir_fd=folder)


def _empty(top: int) -> None:
    """Empty an open folder, with two descriptors and no recursion: it may be very deep."""
    device = os.fstat(top).st_dev
    above: list[tuple[int, list[str]]] = []  # the inode of a folder, and what is left of it
    current = os.open(".", _LIST, dir_fd=top)
    try:
        left = _unlink_files(current)
        while left or above:
            if left:
                inner = os.open(left[-1], _LIST, dir_fd=current)
                above.append((os.fstat(current).st_ino, left))
                os.close(current)
                current = inner
                if os.fstat(current).st_dev != device:
                    raise OSError(errno.EXDEV, f"{left[-1]} in it is another file system")
                left = _unlink_files(current)
            else:
                outer = os.open("..", _LIST, dir_fd=current)
                os.close(current)
                current = outer
                inode, left = above.pop()
                if os.fstat(current).st_ino != inode:
                    raise OSError(errno.ESTALE, "somebody moved a folder in it")
                os.rmdir(left.pop(), dir_fd=current)
    finally:
        os.close(current)


def _unlink_files(folder: int) -> list[str]:
    """Delete everything in a folder but its subfolders; return the names of these."""
    with os.scandir(folder) as entries:
        is_folder = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    for name, is_one in is_folder.items():
        if not is_one:
            os.unlink(name, dir_fd=folder)
    return [name for name, is_one in is_folder.items() if is_one]


def remove_hidden(folder: AnyPath, is_ours: Callable[[str], bool]) -> None:
    """Delete everything in `folder` whose name is a dot and a name that `is_ours`.

    Others may have hidden files, too: NFS has `.nfs…` for a deleted file that is still open.
    """
    for name in list_folder(folder):
        if name.startswith(".") and is_ours(name[1:]):
            remove_tree(folder / name)


def remove_empty_folder(path: AnyPath) -> None:
    """Delete an empty folder."""
    with _named(path) as (folder, name):
        os.rmdir(name, dir_fd=folder)


def sync_folder(path: AnyPath) -> None:
    """Wait until the names in a folder are durable."""
    with files.File(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
        folder.sync()


def read_file(path: AnyPath, longest: int) -> bytes:
    """The content of a small regular file. Raises OSError (EFBIG) beyond `longest` bytes."""
    # Without `File`, because monitoring reads 20,000 files. O_NONBLOCK, because a FIFO would block.
    with closing(files.opened_by(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = b""
        while piece := os.pread(descriptor, min(status.st_size, longest) + 1, len(content)):
            content += piece
            if len(content) > longest:
                raise OSError(errno.EFBIG, f"larger than {longest} bytes")
    return content


def write_file(path: AnyPath, content: bytes, mode: int = 0o600) -> None:
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
    path: AnyPath, *, make: bool = False, shared: bool = False, patience_seconds: float = 0
) -> files.File:
    """Lock a folder, or with `make` a file, which is created if needed, by flock(2).

    Closing the result ends the lock. Raises BlockingIOError if another process still has it after
    `patience_seconds`.
    """
    with ExitStack() as stack:
        flags = _OUR_FILE if make else os.O_RDONLY | os.O_DIRECTORY
        file = stack.enter_context(files.File(path, flags))
        if make and not stat.S_ISREG(file.status().st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        deadline = time.monotonic() + signals.allowed(patience_seconds)
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        while True:
            try:
                fcntl.flock(file.descriptor, operation)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)
            else:
                stack.pop_all()
                return file


def open_own(path: AnyPath, cache: files.Cache) -> files.File:
    """A file that only we can use, locked by flock(2): the one that we left there, or a new one.

    Anything else of that name is removed first: a link, or a file that somebody else can open.
    Raises BlockingIOError if another process has the lock.
    """

    def status() -> os.stat_result | None:
        with suppress(FileNotFoundError), _named(path) as (folder, name):
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        return None

    if (found := status()) and not _is_own(found):
        remove_file(path)
    with ExitStack() as stack:
        file = stack.enter_context(files.File(path, _OUR_FILE, cache))
        fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened, now = file.status(), status()
        if now and _is_own(opened) and os.path.samestat(opened, now):
            stack.pop_all()
            return file
    raise BlockingIOError(errno.EAGAIN, "somebody replaced it meanwhile")


def is_own_folder(path: Path) -> bool:
    """Whether a folder is ours, and nobody else may look into it. False for a link."""
    status = path.lstat()
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return is_ours and not status.st_mode & 0o077


def _is_own(status: os.stat_result) -> bool:
    is_ours = status.st_uid == os.geteuid() and status.st_nlink == 1
    return is_ours and stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077


def lock_out_qemu(file: files.File) -> bool:
    """Keep QEMU and its tools from opening a file or device, which is open for writing.

    The lock ends when `file` is closed. False if one of them has it open, perhaps as a backing
    file, or if it is locked like this already. True where the file system has no locks.
    """
    for start in _QEMU_LOCKS:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, _QEMU_RIGHTS, 0)
        try:
            fcntl.fcntl(file.descriptor, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            return error.errno not in {errno.EAGAIN, errno.EACCES}
    return True
