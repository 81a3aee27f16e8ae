"""QEMU's monitor protocol, one command at a time, each with a time limit.

https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from qemu.qmp import ExecuteError, QMPClient, QMPError
from qemu.qmp.qmp_client import GreetingError, NegotiationError

from backy.clients.qmp_answers import Status, Versions
from backy.errors import SourceError, translated
from backy.system import signals

Value = TypeVar("Value")
Work = Coroutine[Any, Any, object]

_ATTEMPTS = 3  # to be greeted
_LOOK_SECONDS = 0.2  # so often we look whether a signal told us to stop
_HINT = "Is QEMU running, and is no other program connected to this monitor?"
# Errors are raised, so they need not be printed, too.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class NotRunningError(SourceError):
    """Nobody listens on the socket: the VM is off."""


class Monitor:
    """A connection to a QEMU or a qemu-storage-daemon; see `connect`."""

    def __init__(self, path: Path, runner: asyncio.Runner, timeout_seconds: float) -> None:
        self._name = f"QEMU at {path}"
        self._runner = runner
        self._timeout = timeout_seconds
        self.client = QMPClient()
        self.client.events.event_filter = lambda _: False  # it would keep all of them

    def ask(self, command: str, within: float | None = None, /, **arguments: object) -> Any:  # noqa: ANN401 - QEMU's
        """Execute a command and give what it returns. Write underscores for dashes in names.

        Raises SourceError where QEMU refuses, or does not answer within `within` seconds, or by
        default within the time limit of the connection. QEMU may still execute the command later.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        about = " ".join([command, *(value for value in named.values() if isinstance(value, str))])
        return self.wait_for(about, lambda: self.client.execute(command, named), within)

    def query(self, kind: type[Value], command: str) -> Value:
        """As `ask`, but the answer is a `kind`. Raises SourceError where it is not."""
        answer = self.ask(command)
        try:
            return TypeAdapter(kind).validate_python(answer, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            why = f"{self._name}: {command} answers something unexpected: {where:.100}"
            raise SourceError(f"{why}: {first['msg']:.200}", _HINT) from error

    def version(self) -> tuple[int, int, int]:
        """The version of QEMU or qemu-storage-daemon."""
        found = self.query(Versions, "query-version").qemu
        return found.major, found.minor, found.micro

    def status(self) -> str:
        """The state of the VM, such as "running"; "" for a storage daemon, which has no VM."""
        with suppress(SourceError):
            return self.query(Status, "query-status").status
        return ""

    def wait_for(self, about: str, work: Callable[[], Work], within: float | None = None) -> object:
        """Give the result of a coroutine of the client. Raises SourceError, as `ask` does.

        `work` makes the coroutine where no signal can come between that and waiting for it.
        """
        is_cleanup = signals.is_stopping()
        seconds = signals.allowed(self._timeout if within is None else within)
        try:
            # An exception of a signal handler could be lost in the event loop.
            with signals.shielded():
                return self._runner.run(_finished(work(), seconds, is_cleanup=is_cleanup))
        # AssertionError: of the library, if QEMU ends meanwhile.
        except (QMPError, OSError, EOFError, AssertionError) as error:
            why = f"no answer within {seconds:.1f} s" if isinstance(error, TimeoutError) else error
            hint = "" if isinstance(error, ExecuteError) else _HINT
            raise SourceError(f"{self._name}: {about}: {why}", hint) from error

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Wait until `done` gives True. Raises SourceError where the time limit passes first."""
        deadline = time.monotonic() + signals.allowed(self._timeout)
        while not done():
            if time.monotonic() > deadline:
                raise SourceError(f"{self._name}: {what} did not end", _HINT)
            time.sleep(0.01)


async def _finished(work: Work, seconds: float, *, is_cleanup: bool) -> object:
    """The result of a coroutine. Raises TimeoutError; at once if a signal tells us to clean up."""
    task, deadline = asyncio.ensure_future(work), time.monotonic() + seconds
    while not task.done() and time.monotonic() < deadline:
        if signals.is_stopping() and not is_cleanup:
            break
        await asyncio.wait([task], timeout=min(_LOOK_SECONDS, seconds))
    return await asyncio.wait_for(task, 0)


@contextmanager
def connect(path: Path, timeout_seconds: float) -> Iterator[Monitor]:
    """Connect to the QEMU that listens on a Unix socket. It serves one connection at a time.

    Raises NotRunningError where nobody listens, SourceError where it does not greet in time.
    """
    with ExitStack() as stack:
        yield _entered(stack, path, timeout_seconds, _ATTEMPTS)


def _entered(stack: ExitStack, path: Path, timeout_seconds: float, attempts: int) -> Monitor:
    try:
        return stack.enter_context(_greeted(path, timeout_seconds))
    except SourceError as error:
        # What QEMU says first may be meant for the client before us: an answer, or an event.
        odd = isinstance(getattr(error.__cause__, "exc", None), (GreetingError, NegotiationError))
        if attempts == 1 or not odd:
            raise
    return _entered(stack, path, timeout_seconds, attempts - 1)


@contextmanager
def _greeted(path: Path, timeout_seconds: float) -> Iterator[Monitor]:
    """As `connect`, with one attempt."""
    with socket.socket(socket.AF_UNIX) as connected, asyncio.Runner() as runner:
        connected.settimeout(signals.allowed(timeout_seconds))
        with translated(SourceError, f"connecting to QEMU at {path}", _HINT):
            try:
                connected.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                why = f"nobody listens on {path}: the VM is off"
                raise NotRunningError(why, "Start the VM, or set `images`.") from error
        monitor = Monitor(path, runner, timeout_seconds)
        try:
            monitor.wait_for("greeting", lambda: monitor.client.connect(connected))
            yield monitor
        finally:
            # An error of the connection was raised before.
            with suppress(Exception), signals.shielded():
                runner.run(asyncio.wait_for(monitor.client.disconnect(), 1))
