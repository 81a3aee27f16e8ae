"""The priority of this process and of others, for processors and disks."""

import ctypes
import os
import platform
from dataclasses import dataclass

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IO_CLASSES = {"best-effort": 2 << 13 | 7, "idle": 3 << 13}  # linux/ioprio.h


@dataclass(frozen=True, slots=True)
class Priority:
    """`nice` is 0 to 19; `io_class` "none" (as it is), "best-effort" or "idle"."""

    nice: int = 0
    io_class: str = "none"

    def give(self, pid: int = 0) -> None:
        """Give it to a process, or to this thread (0) and those that it starts later.

        The disk gets the lowest level of a class of ioprio_set(2), whose errors are ignored. Raises
        OSError if the process has ended, or has less priority already.
        """
        os.setpriority(os.PRIO_PROCESS, pid, self.nice)
        number = _IOPRIO_SET.get(platform.machine())
        if number and self.io_class in _IO_CLASSES:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.syscall(ctypes.c_long(number), 1, pid, _IO_CLASSES[self.io_class])


def be_idle() -> None:
    """Let all other processes go first."""
    Priority(19, "idle").give()
