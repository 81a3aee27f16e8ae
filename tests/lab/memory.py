"""A pytest plugin: a process that runs thousands of tests gives back the memory that they took.

Commands run in it whose errors, cycles with their tracebacks, hold buffers of many MiB.  With so
many objects around, Python looks for such garbage too rarely, and glibc keeps what is freed.
"""

import ctypes
import gc
import os
from pathlib import Path

_ENOUGH = 128 * 1024**2  # bytes more than after the last time
_libc = ctypes.CDLL(None)
_bytes_before = [0]


def pytest_runtest_logfinish() -> None:
    """After a test."""
    if _bytes() > _bytes_before[0] + _ENOUGH:
        gc.collect()
        _libc.malloc_trim(0)
        _bytes_before[0] = _bytes()


def _bytes() -> int:
    """How much memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
