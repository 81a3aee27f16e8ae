"""Programs that run apart from us and outlive us; they are found again by their sockets."""

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen

from backy.system import files, signals
from backy.system.permissions import others_may_write_program

_START_SECONDS = 60  # that it may take on a very busy machine
_CREDENTIALS = struct.Struct("=iII")  # struct ucred, unix(7)


class Detached:
    """A running program."""

    def __init__(self, pid: int) -> None:
        """Raises OSError if there is no such process."""
        self._descriptor = os.pidfd_open(pid)

    def close(self) -> None:
        """Let go of it; the program goes on."""
        os.close(self._descriptor)

    def has_ended(self, within_seconds: float = 0) -> bool:
        """Whether it has ended, or ends within that time."""
        return bool(select.select([self._descriptor], [], [], within_seconds)[0])

    def stop(self, within_seconds: float = 5) -> None:
        """Send it SIGTERM, and SIGKILL where it is still there after that time."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)
            if self.has_ended(within_seconds):
                return


def start(command: Sequence[str], log: Path, path: Path) -> Detached:
    """Start a program in a session of its own, and wait until it listens at a Unix socket.

    What it prints is added to the file `log`. Raises OSError if it cannot be started, if it ends or
    does not listen in time, or if root refuses it because others may write it.
    """
    if refusal := others_may_write_program(command[0]):
        raise PermissionError(None, f"refused: {refusal}")
    with files.File(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW) as output:
        to = output.descriptor
        child = Popen(command, stdin=DEVNULL, stdout=to, stderr=to, start_new_session=True)
    deadline = time.monotonic() + _START_SECONDS
    try:
        while not (found := listening_at(path)):
            if child.poll() is not None or time.monotonic() > deadline:
                child.kill()
                raise TimeoutError(None, f"it does not listen at {path}")
            signals.sleep(0.02)
    finally:
        child.returncode = 0  # nobody waits for it: it is not a child of the next command
    return found


def listening_at(path: Path) -> Detached | None:
    """The program that listens at a Unix socket; None if nobody does. Raises OSError.

    One that hangs, so that its queue of connections is full, is an error, too.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except BlockingIOError as error:
            raise TimeoutError(None, f"nobody answers at {path}") from error
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    with suppress(ProcessLookupError):
        return Detached(_CREDENTIALS.unpack(peer)[0])
    return None
