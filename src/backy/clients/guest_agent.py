"""The QEMU guest agent, which freezes a guest's file systems.

https://www.qemu.org/docs/master/interop/qemu-ga-ref.html
"""

import json
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from backy.errors import SourceError, translated
from backy.system import signals
from backy.system.process import Program, guarding

_LONGEST_ANSWER = 64 * 1024  # bytes; the answers to our commands are shorter than 100
_START_SECONDS = 10  # that a program may take to start on a very busy machine
_HINT = "Is the agent running in the guest, and is no other program connected to its socket?"


class Agent:
    """A connection to the agent in one guest. Agent and guest may be hostile, or hang."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        """Connect. Raises SourceError where nobody listens, or nobody answers."""
        self._name = f"the guest agent at {path}"
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_seconds)
        try:
            with translated(SourceError, f"connecting to {self._name}", _HINT):
                self._socket.connect(str(path))
            self.ask("guest-ping", timeout_seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def ask(self, command: str, timeout_seconds: float) -> object:
        """Execute a command without arguments, and give what it returns.

        Late answers to earlier commands, ours or those of another program, are skipped: the agent
        first repeats a random number that we send. Raises SourceError where the answer is an error
        or does not come in time; the agent may still execute the command later.
        """
        number = secrets.randbits(31)
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        seconds = signals.allowed(timeout_seconds)
        deadline = time.monotonic() + seconds
        with translated(SourceError, f"{self._name}: {command}", _HINT):
            self._socket.settimeout(seconds)
            # The first byte makes the agent drop an unfinished command of another program.
            lines = f"{json.dumps(sync)}\n{json.dumps({'execute': command})}\n"
            self._socket.sendall(b"\xff" + lines.encode())
            while self._answer(deadline).get("return") != number:
                pass
            answer = self._answer(deadline)
        if "return" not in answer:
            raise SourceError(f"{self._name}: {command}: {answer.get('error')!r:.300}", _HINT)
        return answer["return"]

    def attempt(self, command: str, timeout_seconds: float, failures: list[str]) -> bool:
        """Freeze or thaw; whether the agent answered. Adds to `failures` what went wrong."""
        try:
            if not self.ask(command, timeout_seconds):
                failures.append(f"{self._name}: {command} had an effect on no file system")
        except SourceError as error:
            failures.append(error.message)
            return False
        return True

    def _answer(self, deadline: float) -> dict[str, object]:
        """The next line, without what precedes its delimiter; {} where it is no JSON object."""
        while b"\n" not in self._received:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError("no answer in time")
            self._socket.settimeout(seconds)
            more = self._socket.recv(_LONGEST_ANSWER)
            if not more:
                raise OSError("it closed the connection")
            if len(self._received) > _LONGEST_ANSWER:
                raise OSError("its answer is too long")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        try:
            answer = json.loads(line.rpartition(b"\xff")[2])
        except (ValueError, RecursionError):
            return {}
        return answer if isinstance(answer, dict) else {}


@contextmanager
def frozen(path: Path, timeout_seconds: float) -> Iterator[list[str]]:
    """Freeze the guest's file systems during the body, which runs even where that fails.

    Gives the failures: why the guest was not frozen all the time; complete after the body.
    The guest is thawed whatever happens: the body fails, or this process is stopped or killed.
    Where the agent does not answer to that, it is asked again, once, with the same time limit.
    Freezing takes at most half of `timeout_seconds`; the body should not take longer than the
    other half. Raises SourceError where the guard that thaws after a kill cannot be started;
    nothing is frozen then.
    """
    failures: list[str] = []
    try:
        agent = Agent(path, timeout_seconds / 2)
    except SourceError as error:
        yield [error.message]
        return
    thaw_again = (sys.executable, "-P", "-m", __name__, str(path), str(timeout_seconds))
    program = Program(thaw_again, {}, b"", timeout_seconds + _START_SECONDS)
    with closing(agent), ExitStack() as stack:
        with translated(SourceError, f"starting the guard that thaws the guest at {path}"):
            guard = stack.enter_context(guarding([program]))
        stack.callback(agent.close)  # the agent has one connection at a time: now it is the guard's
        try:
            agent.attempt("guest-fsfreeze-freeze", timeout_seconds / 2, failures)
            yield failures
        finally:
            # A second signal must not come between.
            with signals.shielded():
                if agent.attempt("guest-fsfreeze-thaw", timeout_seconds, failures):
                    guard.disarm()


def main(path: str, seconds: str) -> None:
    """Thaw a guest after the process that froze it was killed. May raise SourceError."""
    with closing(Agent(Path(path), float(seconds))) as agent:
        agent.ask("guest-fsfreeze-thaw", float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
