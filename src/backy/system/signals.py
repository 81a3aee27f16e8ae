"""Signals that stop this process: handle them once, or delay them for a moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from backy.errors import CancelledError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The signals that `cancellable` handles now, or ignores since the first one arrived.
_handled: list[signal.Signals] = []


def sleep(seconds: float) -> None:
    """Wait, but return at once when a signal stops this process."""
    _stopped.wait(seconds)


_stopped = threading.Event()


@contextmanager
def cancellable() -> Iterator[None]:
    """In the body Ctrl-C, SIGTERM and SIGHUP raise CancelledError in the main thread, once.

    Later signals are ignored: clean-up takes well under a second.
    """

    def cancel(number: int, _: FrameType | None) -> None:
        _stopped.set()
        for other in _STOPPING:
            signal.signal(other, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise CancelledError(f"stopped by {name}", "What it did before that stays. Run it again.")

    # Signals that our parent made us ignore stay ignored: nohup, background jobs of a script.
    wanted = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    _stopped.clear()
    before = {number: signal.signal(number, cancel) for number in wanted}
    _handled[:] = wanted
    try:
        yield
    finally:
        _handled.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """In the body no signal stops this process; those that arrive are handled at its end.

    A program started in the body gets the signal settings of our parent, even if `cancellable`
    ignores signals now: a child inherits ignored signals, but not handlers. May be nested. Does
    nothing outside of the main thread, the only one that gets signals.
    """
    arrived: list[int] = []
    handled = _handled if threading.current_thread() is threading.main_thread() else ()
    before = {
        stopping: signal.signal(stopping, lambda number, _: arrived.append(number))
        for stopping in handled
    }
    try:
        yield
    finally:
        for stopping, handler in before.items():
            signal.signal(stopping, handler)
        for number in arrived:
            signal.raise_signal(number)


def on_signals(
    loop: AbstractEventLoop, *, reload: Callable[[], object], stop: Callable[[], object]
) -> None:
    """Make the event loop call `reload` on SIGHUP, and `stop` on SIGTERM and Ctrl-C."""
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
