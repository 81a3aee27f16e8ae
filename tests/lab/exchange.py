"""Two names change places in one step, as quickly as an enemy can do it: renameat2(2)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}
_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2


def exchange(first: Path, second: Path) -> None:
    """Give each the name of the other, in one step; if there is only one, rename it."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_long(_RENAMEAT2[os.uname().machine])
    names = [os.fsencode(first), os.fsencode(second)]
    if libc.syscall(number, _AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE):
        for old, new in (names, reversed(names)):
            if not libc.syscall(number, _AT_FDCWD, old, _AT_FDCWD, new, _NOREPLACE):
                return
