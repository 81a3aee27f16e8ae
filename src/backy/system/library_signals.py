"""Leave signals to a library in C that has the main thread."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from backy.system.signals import STOPPING


@contextmanager
def left_to_library() -> Iterator[None]:
    """In the body SIGINT, SIGTERM and SIGHUP have their defaults, so that a library handles them.

    Handlers of Python do not run while C code has the main thread, but libraries do not replace
    them. What our parent made us ignore stays ignored.
    """
    ours = [number for number in STOPPING if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
