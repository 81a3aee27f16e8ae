"""An end to a test that would otherwise hang the whole run."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ends(seconds: float = 60) -> Iterator[None]:
    """Fail where the body, in the main thread, is still running after so long; may be nested."""

    def fail(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"still running after {seconds} seconds")

    handler = signal.signal(signal.SIGALRM, fail)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
