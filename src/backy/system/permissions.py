"""Who may change a file that decides what root does."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from backy.system.place import Place

_MOST_LINKS = 40  # as the kernel


def others_may_write(path: Path | Place) -> str:
    """Who but root may change what is at `path`: "group 1000 may write /etc/backy"; "" if nobody.

    Looks at the file, at each link on the way and at every folder above, as sshd and sudo do: who
    may write to a folder may put another file there. The group root counts as root, unless an ACL
    hides who else is meant. If all of them are root's, nobody can change them after this, either.

    Always "" if this process is not root's: users answer for what they run. Raises OSError.
    """
    if os.geteuid() != 0:
        return ""
    steps = _steps_below(path) if isinstance(path, Place) else _steps(path)
    reasons = (_reason(step, status) for step, status in steps)
    return next(filter(None, reasons), "")


def others_may_write_program(command: str) -> str:
    """The same for a program, which is looked up as the system does; "" if there is none.

    Also "" if nobody can tell: starting it says what is wrong with it.
    """
    with suppress(OSError, ValueError):
        if found := find_program(command):
            return others_may_write(Path(found))
    return ""


def find_program(command: str) -> str:
    """The path of a program, looked up as the system does; "" if there is none."""
    folders = [""] if "/" in command else os.get_exec_path()
    paths = (os.path.join(folder, command) for folder in folders)
    return next((path for path in paths if Path(path).is_file() and os.access(path, os.X_OK)), "")


def _steps(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Each folder and link from the root on, and the file, with its lstat(2)."""
    left, current, links = [*reversed(path.absolute().parts)], "/", 0
    while left:
        step = os.path.normpath(os.path.join(current, left.pop()))  # no link is in `current`
        status = os.lstat(step)
        yield step, status
        if not stat.S_ISLNK(status.st_mode):
            current = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        left += reversed(Path(os.readlink(step)).parts)


def _steps_below(place: Place) -> Iterator[tuple[str, os.stat_result]]:
    yield from _steps(place.root.path)
    for end in range(1, len(place.parts) + 1):
        step = Place(place.root, place.parts[:end])
        yield str(step), step.status()


def _reason(path: str, status: os.stat_result) -> str:
    if status.st_uid:
        return f"user {status.st_uid} may write {path}"
    # The mode of a link means nothing. In a sticky folder others cannot replace what is root's.
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if is_sticky or stat.S_ISLNK(status.st_mode):
        return ""
    if status.st_mode & stat.S_IWOTH:
        return f"everybody may write {path}"
    if status.st_mode & stat.S_IWGRP and status.st_gid:
        return f"group {status.st_gid} may write {path}"
    if status.st_mode & stat.S_IWGRP and "system.posix_acl_access" in os.listxattr(path):
        return f"others may write {path}, by its ACL"
    return ""
