"""Ask our own daemon, over its Unix socket."""

import json
import socket
from pathlib import Path
from typing import Any

from backy.errors import StoreError
from backy.model.answers import DaemonRequest, PromisesReply, StatusAnswer
from backy.model.messages import error_from
from backy.units import MiB

NO_DAEMON = "the daemon is not running"
_LONGEST_REPLY = 256 * MiB  # 10,000 jobs take 5 MiB
_TIMEOUT_SECONDS = 10


def status(path: Path) -> StatusAnswer | None:
    """The state of all jobs; None without a daemon. Raises as `ask` does."""
    return ask(path, DaemonRequest(do="status"))


def promises(path: Path) -> PromisesReply | None:
    """The promises that `backy check` judges by; None without a daemon. Raises as `ask` does."""
    return ask(path, DaemonRequest(do="promises"))


def run(path: Path, job: str) -> bool:
    """Have a job backed up before all others; False without a daemon. Raises as `ask` does."""
    return ask(path, DaemonRequest(do="run", job=job)) is not None


def look(path: Path, job: str) -> bool:
    """Tell the daemon that a job has changed; False without a daemon. Raises as `ask` does."""
    return ask(path, DaemonRequest(do="look", job=job)) is not None


def ask(path: Path, request: DaemonRequest) -> Any | None:  # noqa: ANN401 - JSON of the request's kind
    """The reply of the daemon at `path`; None if no daemon listens there.

    Raises the error that the daemon answered with, and StoreError if it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_TIMEOUT_SECONDS)
        try:
            channel.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise StoreError(f"asking the daemon at {path}: {error}", "Are you root?") from error
        try:
            channel.sendall(json.dumps(request).encode() + b"\n")
            reply = _receive(channel)
        except (OSError, ValueError) as error:
            hint = "Look at its log: journalctl -u backy."
            raise StoreError(f"the daemon at {path} does not answer: {error}", hint) from error
    if reply.get("event") == "error":
        raise error_from(reply)
    return reply


def _receive(channel: socket.socket) -> dict[str, Any]:
    with channel.makefile("rb") as stream:
        reply = json.loads(stream.readline(_LONGEST_REPLY))
    if not isinstance(reply, dict):
        raise ValueError("the reply is not a JSON object")  # noqa: TRY004 - as json.loads does
    return reply
