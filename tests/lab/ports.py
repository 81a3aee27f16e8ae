"""Ports for servers that tests start."""

import secrets
import socket
from contextlib import ExitStack, suppress

_FIRST, _COUNT = 10_000, 20_000  # all below 32768: the kernel gives connections the others


def free_port(count: int = 1) -> int:
    """A port of 127.0.0.1 that is free, as are those after it, `count` in all.

    It is taken at random, so that neither another test nor a connection has it before the server.
    """
    while True:
        # Not of `random`, which has the same seed in all workers of a run.
        port = _FIRST + secrets.randbelow(_COUNT)
        with suppress(OSError), ExitStack() as stack:
            for number in range(count):
                listener = stack.enter_context(socket.socket())
                listener.bind(("127.0.0.1", port + number))
            return port
