"""Signals that stop this process: handle them once, or delay them for a moment.

A signal raises an exception in the main thread only. Other threads look whether one has come, and
calls to other programs and servers then get little time, so that the process ends by itself in
`_CLEANUP_SECONDS`. If it does not, `ends_in_time` ends it.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from backy.errors import CancelledError

Item = TypeVar("Item")
Handler = Callable[[int, FrameType | None], object] | signal.Handlers

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANUP_SECONDS = 6  # from a signal until the last call of the clean-up has to end
_END_SECONDS = 9  # from a signal until the process is ended
# Python prints what these functions raise, and goes on, so a signal has to come again a bit later.
_DESTRUCTORS = ("__del__", "_remove")
_SOON_SECONDS = 0.01
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


def stop() -> None:
    """Note that a signal told this process to stop: it has to end in time from now on."""
    if not _stopped.is_set():
        _stopped_at[0] = time.monotonic()
        _stopped.set()


@contextmanager
def cancellable() -> Iterator[None]:
    """In the body Ctrl-C, SIGTERM and SIGHUP raise CancelledError in the main thread, once.

    Later signals are ignored: clean-up takes a few seconds at most; see `allowed`.
    """

    def cancel(number: int, frame: FrameType | None) -> None:
        stop()
        if frame and frame.f_code.co_name in _DESTRUCTORS:
            threading.Timer(_SOON_SECONDS, os.kill, (os.getpid(), number)).start()
            return
        for other in _STOPPING:
            signal.signal(other, signal.SIG_IGN)
        name = signal.Signals(number).name
        raise CancelledError(f"stopped by {name}", "What it did before that stays. Run it again.")

    # Signals that our parent made us ignore stay ignored: nohup, background jobs of a script.
    wanted = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    with _handling(wanted, cancel):
        _handled[:] = wanted
        try:
            yield
        finally:
            _handled.clear()
            _stopped.clear()


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
        stop()
        arrived.append(number)

    handled = _handled if threading.current_thread() is threading.main_thread() else ()
    try:
        with _handling(handled, remember):
            yield
    finally:
        for number in arrived:
            signal.raise_signal(number)


@contextmanager
def left_to_library() -> Iterator[None]:
    """In the body SIGINT, SIGTERM and SIGHUP have their defaults, so that a library handles them.

    Handlers of Python do not run while C code has the main thread, but libraries do not replace
    them. What our parent made us ignore stays ignored.
    """
    ours = [number for number in _STOPPING if callable(signal.getsignal(number))]
    with _handling(ours, signal.SIG_DFL):
        yield


@contextmanager
def _handling(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """In the body these signals have this handler, and then those that they had."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def ends_in_time(say_so: Callable[[], object]) -> Iterator[None]:
    """End this process if it has not left the body 9 s after a signal told it to stop.

    It ends as if killed, but with exit code 130, after calling `say_so`, whatever its threads do:
    a thread that reads from a file system that hangs cannot be interrupted, not even the main one.
    """
    left, began = threading.Event(), time.monotonic()

    def watch() -> None:
        # A signal that the main thread cannot handle is pending. Only who blocks it sees that.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        late = 0.0
        while late < _END_SECONDS and not left.wait(0.5):
            is_told = _stopped_at[0] > began or not signal.sigpending().isdisjoint(_STOPPING)
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
