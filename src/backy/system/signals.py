"""Signals that tell this process to stop: obeyed once, or held off for a moment."""

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
# Those that `cancellable` handles now, or ignores since one came.
_taken: list[signal.Signals] = []


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
        raise CancelledError(f"stopped by {name}", "What was done by then stays. Run it again.")

    # What our parent ignores we ignore, too: nohup, and jobs that a script put into the background.
    wanted = [each for each in _STOPPING if signal.getsignal(each) is not signal.SIG_IGN]
    _stopped.clear()
    before = {stopping: signal.signal(stopping, cancel) for stopping in wanted}
    _taken[:] = wanted
    try:
        yield
    finally:
        _taken.clear()
        for stopping, handler in before.items():
            signal.signal(stopping, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """Within the body no signal stops this process; one that came is obeyed at its end.

    A program that is started in the body begins with the signals that our parent gave us, even
    where `cancellable` ignores them: an ignored signal would be inherited, a handler is not.
    May be nested. Does nothing in other threads than the main one, which alone gets signals.
    """
    arrived: list[int] = []
    taken = _taken if threading.current_thread() is threading.main_thread() else ()
    before = {each: signal.signal(each, lambda number, _: arrived.append(number)) for each in taken}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in arrived:
            signal.raise_signal(number)


def on_signals(
    loop: AbstractEventLoop, *, reload: Callable[[], object], stop: Callable[[], object]
) -> None:
    """Have the event loop call `reload` at SIGHUP, and `stop` at SIGTERM and Ctrl-C."""
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
