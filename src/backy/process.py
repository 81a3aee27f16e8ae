"""The only door to other programs and to signals."""

from __future__ import annotations

import os
import signal
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


@contextmanager
def cancellable() -> Iterator[None]:
    """Within the body Ctrl-C, SIGTERM and SIGHUP raise CancelledError in the main thread, once.

    A second signal is ignored while the first is being obeyed: clean-up takes well under a second.
    """

    def cancel(number: int, _: FrameType | None) -> None:
        for stopping in _STOPPING:
            signal.signal(stopping, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise CancelledError(f"stopped by {name}", "Nothing was published; run it again.")

    # What our parent ignores we ignore, too: nohup, and jobs that a script put into the background.
    wanted = [each for each in _STOPPING if signal.getsignal(each) is not signal.SIG_IGN]
    before = {stopping: signal.signal(stopping, cancel) for stopping in wanted}
    try:
        yield
    finally:
        for stopping, handler in before.items():
            signal.signal(stopping, handler)
