"""Sockets that listen for clients."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backy.errors import ConfigError, translated
from backy.system import folders


@contextmanager
def unix_listener(path: Path, group: int | None = None) -> Iterator[socket.socket]:
    """A Unix socket for our user only, or also for the `group` with this number.

    It is removed at the end. Replaces a socket at which nobody listens. Raises ConfigError if
    somebody does, or if it cannot be made.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        with translated(ConfigError, f"listening at {path}", "Choose another path."):
            refuse_living(path)
            folders.remove_socket(path)
            mask = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            if group is not None:
                os.chown(path, -1, group)
                folders.allow(path, 0o660)
            listener.listen()
        try:
            yield listener
        finally:
            folders.remove_socket(path)


def refuse_living(path: Path) -> None:
    """Raise OSError if somebody listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0)  # who hangs listens, too, but its queue may be full
        if path.is_socket() and client.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another server listens there")


@contextmanager
def tcp_listener(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an IP address of this machine. Raises ConfigError."""
    with translated(ConfigError, f"listening at {host}, port {port}", "Choose another address."):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    with listener:
        yield listener
