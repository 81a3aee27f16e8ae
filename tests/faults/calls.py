"""The calls that the disk door makes to the system, of which one fails.

Of `os`, `fcntl` and the C library as the doors see them, and the methods of Path that any module of
backy calls itself.
"""

# ruff: noqa: ANN401 - it passes on whatever the system's calls take and give
from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from backy.errors import CancelledError
from backy.system import files, folders, place

Fault = Callable[..., Any]
OS = {
    "open", "close", "fstat", "pread", "preadv", "pwrite", "write", "fsync", "ftruncate",
    "lseek", "listdir", "scandir", "posix_fadvise", "fchmod", "stat", "mkdir",
    "rename", "link", "unlink", "rmdir",
}  # fmt: skip
CONTROL = {"flock", "ioctl"}
LIBRARY = {"fallocate", "syncfs", "syscall"}
PATH = (
    "stat", "lstat", "exists", "is_dir", "is_file", "iterdir", "mkdir", "rename", "unlink", "rmdir",
)  # fmt: skip
TAKING_SPACE = {
    "open", "close", "pwrite", "write", "fsync", "ftruncate", "ioctl",
    "fallocate", "syncfs", "mkdir", "rename", "link", "fchmod",
}  # fmt: skip
SHORT = {"pread", "preadv", "pwrite", "write"}
# Python repeats all others itself when a signal came (PEP 475), fcntl.flock among them; unless
# the signal's handler raises, which is the fault "signal".
NOT_REPEATED = {"ioctl", "fallocate", "syncfs", "syscall"}


class Calls:
    """Counts calls and notes their names in `made`; the `nth` of them, if any, has the fault."""

    def __init__(self, nth: int = 0, fault: Fault | None = None) -> None:
        self.made: list[str] = []
        self._nth = nth
        self._fault = fault

    def call(self, real: Callable[..., Any], name: str, *arguments: Any, **named: Any) -> Any:
        self.made.append(name)
        if self._fault and len(self.made) == self._nth:
            return self._fault(name, real, *arguments, **named)
        return real(*arguments, **named)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """In the body it counts."""
        with ExitStack() as stack:
            for name, real, known in (
                ("os", os, OS),
                ("fcntl", fcntl, CONTROL),
                ("_libc", files._libc, LIBRARY),
            ):
                counted = Counted(real, known, self)
                for door in (files, folders, place):
                    if hasattr(door, name):
                        stack.enter_context(patch.object(door, name, counted))
            for name in PATH:
                stack.enter_context(patch.object(Path, name, self._method(name)))
            yield

    def _method(self, name: str) -> Callable[..., Any]:
        real = getattr(Path, name)

        def method(path: Path, *arguments: Any, **named: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"]
            if caller.startswith("backy."):
                return self.call(partial(real, path), name, *arguments, **named)
            return real(path, *arguments, **named)

        return method


class Counted:
    """A module or library of which some calls are counted."""

    def __init__(self, real: Any, known: set[str], calls: Calls) -> None:
        self._real = real
        self._known = known
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        return partial(self._calls.call, real, name) if name in self._known else real


def failing(number: int) -> Fault:
    """Fails with an errno; a file that should be closed is closed."""

    def fault(name: str, real: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        _do_part(name, real, *arguments)
        if name in LIBRARY:
            ctypes.set_errno(number)
            return -1
        raise OSError(number, os.strerror(number))

    return fault


def signal(name: str, real: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    """What the handler of SIGTERM does to the call that it interrupts."""
    _do_part(name, real, *arguments)
    raise CancelledError("stopped by SIGTERM")


def _do_part(name: str, real: Callable[..., Any], *arguments: Any) -> None:
    """What has happened although the call failed."""
    if name == "close":
        real(*arguments)


def short(name: str, real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A read or write that does half of what it was asked for."""
    if name == "preadv" and len(arguments) == 3:
        descriptor, (buffer,), offset = arguments
        return real(descriptor, [buffer[: max(1, len(buffer) // 2)]], offset)
    if name in {"pwrite", "write"}:
        descriptor, content, *rest = arguments
        return real(descriptor, content[: max(1, len(content) // 2)], *rest)
    if name == "pread":
        descriptor, length, offset = arguments
        return real(descriptor, max(1, length // 2), offset)
    return real(*arguments, **named)


FAULTS: dict[str, Fault] = {
    "EIO": failing(errno.EIO),
    "ENOSPC": failing(errno.ENOSPC),
    "EINTR": failing(errno.EINTR),
    "signal": signal,
    "short": short,
}


def faults_of(name: str) -> list[str]:
    """What can happen to a call of that name."""
    found = ["EIO", "signal"]
    for fault, names in (("ENOSPC", TAKING_SPACE), ("EINTR", NOT_REPEATED), ("short", SHORT)):
        if name in names:
            found.append(fault)
    return found
