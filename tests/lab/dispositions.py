"""What the signals that stop a program do to it, however the tests were started.

A program inherits from its parent which signals it ignores: SIGHUP under nohup, SIGINT in the
background of a script.  A test that sends one sets what it needs.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Before the command of a program that is to be stopped by them, whatever its PATH is.
WITH_DEFAULTS = ("/usr/bin/env", "--default-signal=HUP,INT,TERM")


@contextmanager
def defaults() -> Iterator[None]:
    """Within the body, in the main thread, they stop this process, as if started at a terminal."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
