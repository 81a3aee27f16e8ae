"""Signals that stop this process: handle them once, or delay them for a moment.

A signal raises an exception in the main thread only. Other threads look whether one has come, and
calls to other programs and servers then get little time, so that the process ends by itself in
`_CLEANUP_SECONDS`. If it does not, `backy.system.last_resort` ends it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from backy.errors import CancelledError

Item = TypeVar("Item")

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANUP_SECONDS = 6  # from a signal until the last call of the clean-up has to end
# The signals that `cancellable` handles now, or ignores since the first one arrived.
_handled: list[signal.Signals] = []


def sleep(seconds: float) -> None:
    """Wait, but return at once when a signal stops this process."""
    _stopped.wait(seconds)


_stopped = threading.Event()
_stopped_at = [0.0]  # monotonic; of the first signal


def is_stopping() -> bool:
    """Whether a signal has told this process to stop; from any thread."""
    return _stopped.is_set()


def obey() -> None:
    """Raise CancelledError if a signal has told this process to stop.

    For loops outside of the main thread, which no signal interrupts.
    """
    if _stopped.is_set():
        raise CancelledError("stopped by a signal")


def obeying(items: Iterable[Item]) -> Iterator[Item]:
    """Give the items, but raise CancelledError as `obey` does."""
    for item in items:
        obey()
        yield item


def allowed(seconds: float) -> float:
    """How long a call may take now that usually may take `seconds`.

    That is less once a signal has told this process to stop: what is still called then only cleans
    up. It must not matter if such a call fails: the next run does it again.
    """
    if not _stopped.is_set():
        return seconds
    return min(seconds, max(0.1, _stopped_at[0] + _CLEANUP_SECONDS - time.monotonic()))


def stopped_at() -> float:
    """When the last signal came that told this process to stop: `time.monotonic`, or 0."""
    return _stopped_at[0]


def _stop() -> None:
    if not _stopped.is_set():
        _stopped_at[0] = time.monotonic()
        _stopped.set()


@contextmanager
def cancellable() -> Iterator[None]:
    """In the body Ctrl-C, SIGTERM and SIGHUP raise CancelledError in the main thread, once.

    Later signals are ignored: clean-up takes a few seconds at most; see `allowed`.
    """

    def cancel(number: int, _: FrameType | None) -> None:
        _stop()
        for other in STOPPING:
            signal.signal(other, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise CancelledError(f"stopped by {name}", "What it did before that stays. Run it again.")

    # Signals that our parent made us ignore stay ignored: nohup, background jobs of a script.
    wanted = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, cancel) for number in wanted}
    _handled[:] = wanted
    try:
        yield
    finally:
        _handled.clear()
        _stopped.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """In the body no signal stops this process; those that arrive are handled at its end.

    Its other threads stop at once, and calls get less time, as `allowed` says.

    A program started in the body gets the signal settings of our parent, even if `cancellable`
    ignores signals now: a child inherits ignored signals, but not handlers. May be nested. Does
    nothing outside of the main thread, the only one that gets signals.
    """
    arrived: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        _stop()
        arrived.append(number)

    handled = _handled if threading.current_thread() is threading.main_thread() else ()
    before = {stopping: signal.signal(stopping, remember) for stopping in handled}
    try:
        yield
    finally:
        for stopping, handler in before.items():
            signal.signal(stopping, handler)
        for number in arrived:
            signal.raise_signal(number)
