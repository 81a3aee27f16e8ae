"""The first, second, third … call of the disk door to the system fails, until none does.

After each failure the command has said so with a BackyError, the history is the old or the new
one, and backy goes on from it unaided. That is how SQLite tests I/O errors
(https://sqlite.org/testing.html, "I/O error testing").
"""

# ruff: noqa: ANN401 - it passes on whatever the system's calls take and give
from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from backy import disk
from backy.errors import BackyError
from tests.faults.workloads import WORKLOADS, Workload, check, one_worker, prepared

CALLS = {
    "open", "close", "fstat", "pread", "preadv", "pwrite", "write", "fsync", "ftruncate",
    "copy_file_range", "lseek", "listdir", "posix_fadvise", "fchmod",
}  # fmt: skip


class FailingSystem:
    """The os module, of which one call fails: the `nth` of those in CALLS."""

    def __init__(self, nth: int, fault: Callable[..., Any]) -> None:
        self.left = nth
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                return self._fault(real, *arguments, **named)
            return real(*arguments, **named)

        return call


def failing(number: int) -> Callable[..., Any]:
    """A call that fails with an errno; a file that should be closed is closed all the same."""

    def fault(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if real is os.close:
            real(*arguments, **named)
        raise OSError(number, os.strerror(number))

    return fault


def short(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A read or write that does half of what it was asked for."""
    if real is os.preadv and not named and len(arguments) == 3:
        descriptor, (buffer,), offset = arguments
        return real(descriptor, [buffer[: max(1, len(buffer) // 2)]], offset)
    if real in {os.pwrite, os.write}:
        descriptor, content, *rest = arguments
        return real(descriptor, content[: max(1, len(content) // 2)], *rest)
    return real(*arguments, **named)


FAULTS = {
    "EIO": failing(errno.EIO),
    "ENOSPC": failing(errno.ENOSPC),
    "short": short,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_call_that_fails_leaves_the_old_or_the_new_history(
    workload: Workload, fault: str, tmp_path: Path
) -> None:
    prototype = tmp_path / "prototype"
    prototype.mkdir()
    with one_worker():
        known = prepared(prototype, workload, "chunks")
        nth, done = 0, False
        while not done:
            nth += 1
            base = tmp_path / "base"
            shutil.copytree(prototype, base)
            system = FailingSystem(nth, FAULTS[fault])
            with patch.object(disk, "os", system), suppress(BackyError):
                workload.command(base, "chunks")
            done = system.left > 0
            try:
                check(base, workload, known, "chunks")
            except Exception as error:
                raise AssertionError(f"{workload.name}: {fault} at call {nth}") from error
            shutil.rmtree(base)
    assert nth > 10
