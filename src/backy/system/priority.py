"""The priority of this process and of others, for processors and disks."""

from __future__ import annotations

import ctypes
import os
import platform


def be_idle() -> None:
    """Give this process the lowest priority for processors and disks (ioprio_set(2)).

    Threads that are started later inherit it. Errors of ioprio_set(2) are ignored.
    """
    os.nice(19)
    set_io_class(0, "idle")


def set_io_class(pid: int, name: str) -> None:
    """Put a process, or this thread (0), at the lowest level of a class of ioprio_set(2)."""
    if number := _IOPRIO_SET.get(platform.machine()):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(ctypes.c_long(number), 1, pid, _IO_CLASSES[name])


_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IO_CLASSES = {"best-effort": 2 << 13 | 7, "idle": 3 << 13}  # linux/ioprio.h
