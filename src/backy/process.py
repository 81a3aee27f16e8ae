"""The only door to other programs and to signals."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from backy.errors import CancelledError

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def identity() -> str:
    """Name this process for a person who finds the lock taken: "backy[4711]"."""
    return f"backy[{os.getpid()}]"


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def allow_open_files(count: int) -> None:
    """Raise the soft limit of open files to `count`, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def be_idle() -> None:
    """Let all other processes go first, on the processors and on the disk (ioprio_set(2)).

    The threads that are started from here on inherit it. Does what the system allows.
    """
    os.nice(19)
    if number := _IOPRIO_SET.get(platform.machine()):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(ctypes.c_long(number), 1, 0, _IOPRIO_IDLE)  # 1: this thread


_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, linux/ioprio.h


def sleep(seconds: float) -> None:
    """Wait, but no longer than until a signal stops this process."""
    _stopped.wait(seconds)


_stopped = threading.Event()


@contextmanager
def cancellable() -> Iterator[None]:
    """Within the body Ctrl-C, SIGTERM and SIGHUP raise CancelledError in the main thread, once.

    A second signal is ignored while the first is being obeyed: clean-up takes well under a second.
    """

    def cancel(number: int, _: FrameType | None) -> None:
        _stopped.set()
        for stopping in _STOPPING:
            signal.signal(stopping, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise CancelledError(f"stopped by {name}", "Nothing was published; run it again.")

    # What our parent ignores we ignore, too: nohup, and jobs that a script put into the background.
    wanted = [each for each in _STOPPING if signal.getsignal(each) is not signal.SIG_IGN]
    _stopped.clear()
    before = {stopping: signal.signal(stopping, cancel) for stopping in wanted}
    try:
        yield
    finally:
        for stopping, handler in before.items():
            signal.signal(stopping, handler)
