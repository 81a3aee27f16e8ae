"""All errors, with the exit codes of the commands.

    BackyError             1   base of all errors that are not bugs
    ├── UsageError         2   the command line is wrong
    ├── ConfigError        3   the configuration or repository.json is wrong
    ├── SourceError        4   the source is missing, unreadable or empty
    ├── StoreError         5   the repository cannot be read or written
    │   ├── DamagedError   6   stored bytes are missing or changed
    │   ├── BusyError      7   another process holds the lock
    │   └── FullError      8   no space left on the repository's file system
    ├── NotFoundError      9   no such job, revision or disk
    ├── TargetError       10   the restore target cannot take the disk
    ├── HookError         11   a required hook failed; nothing was published or restored
    ├── OutputError       74   the work is done, but some output could not be written
    └── CancelledError   130   Ctrl-C or SIGTERM

Any other exception is a bug: it keeps its traceback and has exit code 70. 70 and 74 are
EX_SOFTWARE and EX_IOERR of sysexits.h.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

BUG = 70


LONGEST_TEXT = 2000  # characters of a message


def visible(text: str) -> str:
    """A text for people, at most 2,000 characters of it, with control characters as escapes.

    Names and texts in a repository, of a storage or of a hook may come from an enemy: they must
    neither steer a terminal nor fill a log.
    """
    shown = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
    if shown.isprintable():  # nearly all are, and a table has many of them
        return shown
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


class BackyError(Exception):
    """An error that a person can fix: what failed, on which object, why, and what to do next."""

    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls, exit_code: int = 0) -> None:
        """A class without an exit code of its own has that of its base."""
        if exit_code:
            cls.exit_code = exit_code

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = visible(message)
        self.hint = visible(hint)
        super().__init__(self.message)


class UsageError(BackyError, exit_code=2):
    """The command line is wrong; nothing was read or written, and nothing is recorded."""


class ConfigError(BackyError, exit_code=3):
    """A setting is wrong; nothing was read or written."""


class SourceError(BackyError, exit_code=4):
    """The source cannot be read; no revision was made."""


class StoreError(BackyError, exit_code=5):
    """The repository cannot be read or written; published revisions are unchanged."""

    @property
    def is_damage(self) -> bool:
        """Whether the stored bytes are wrong; False if only this machine could not read them."""
        return getattr(self.__cause__, "errno", None) not in _NO_DAMAGE


FULL = {errno.ENOSPC, errno.EDQUOT}  # no space, no inodes, or no quota left
_NO_DAMAGE = {
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip


class DamagedError(StoreError, exit_code=6):
    """Stored bytes are missing or have changed."""


class BusyError(StoreError, exit_code=7):
    """Another process holds the lock that this command needs; run it again later."""


class FullError(StoreError, exit_code=8):
    """The file system of the repository has no space or quota left; free some and run it again."""


class NotFoundError(BackyError, exit_code=9):
    """There is no such job, revision or disk."""


class TargetError(BackyError, exit_code=10):
    """The restore target cannot take the disk."""


class HookError(BackyError, exit_code=11):
    """A required hook failed; nothing was published or restored."""


class OutputError(BackyError, exit_code=74):
    """The command has done its work, but could not write all of its output."""


class CancelledError(BackyError, exit_code=130):
    """The user or the service manager stopped the command; the history is as it was before."""


class DamageIgnored:
    """A context manager that ends its body at stored bytes that are damaged; raises the rest."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> bool:
        return isinstance(error, StoreError) and error.is_damage


@contextmanager
def translated(kind: type[BackyError], what: str, hint: str = "") -> Iterator[None]:
    """Turn an OSError in the body into `kind`, or into FullError if a store has no space left.

    `what` names the action and the object: "vm1: writing chunk ab12…".
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL and issubclass(kind, StoreError):
            full_hint = (
                "Free some space, then run it again: backy purge JOB empties the trash, "
                "backy purge JOB -r REV deletes a revision at once."
            )
            raise FullError(f"{what}: {reason}", full_hint) from error
        if error.errno == errno.EROFS:
            hint = hint or "Mount it for writing; what only reads works without that."
        raise kind(f"{what}: {reason}", hint) from error
