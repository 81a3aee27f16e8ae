"""End this process if it cannot end by itself after a signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backy.errors import CancelledError
from backy.system.signals import STOPPING, stopped_at

_END_SECONDS = 9  # from a signal until the process is ended


@contextmanager
def ends_in_time(say_so: Callable[[], object]) -> Iterator[None]:
    """End this process if it has not left the body 9 s after a signal told it to stop.

    It ends as if killed, but with exit code 130, after calling `say_so`, whatever its threads do:
    a thread that reads from a file system that hangs cannot be interrupted, not even the main one.
    """
    left, began = threading.Event(), time.monotonic()

    def watch() -> None:
        # A signal that the main thread cannot handle is pending. Only who blocks it sees that.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        late = 0.0
        while late < _END_SECONDS and not left.wait(0.5):
            is_told = stopped_at() > began or not signal.sigpending().isdisjoint(STOPPING)
            late = late + 0.5 if is_told else 0
        if not left.is_set():
            signal.alarm(1)  # `say_so` may hang, too; this needs no thread of ours
            say_so()
            os._exit(CancelledError.exit_code)

    threading.Thread(target=watch, name="ends-in-time", daemon=True).start()
    try:
        yield
    finally:
        left.set()
