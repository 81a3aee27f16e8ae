"""The QEMU guest agent, which holds a guest's file systems still.

https://www.qemu.org/docs/master/interop/qemu-ga-ref.html
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from backy.errors import SourceError, translated
from backy.system import signals
from backy.system.guard import guarding
from backy.system.process import Program

_LONGEST = 64 * 1024  # bytes of an answer; ours are all shorter than 100
_START = 10  # seconds for a program to start in, on a machine that is as busy as it gets
_HINT = "Does the agent run in the guest, and does no other program hold its socket?"


class Agent:
    """A connection to the agent in one guest. Either may be hostile, or hang."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        """Connect. Raises SourceError where nobody listens there, or nobody answers."""
        self._name = f"the guest agent at {path}"
        self._heard = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_seconds)
        try:
            with translated(SourceError, f"connecting to {self._name}", _HINT):
                self._socket.connect(str(path))
            self.ask("guest-ping", timeout_seconds)
        except SourceError:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, command: str, timeout_seconds: float) -> object:
        """What a command without arguments returns.

        What the agent still had to say to somebody else, or to a command that took too long, is
        told apart by a number of ours that it says first. Raises SourceError where it answers
        with an error, or not in time; it may do what it was asked for all the same.
        """
        number = secrets.randbits(31)
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        deadline = time.monotonic() + timeout_seconds
        with translated(SourceError, f"{self._name}: {command}", _HINT):
            self._socket.settimeout(timeout_seconds)
            # The first byte has it forget what somebody before us left unfinished.
            lines = f"{json.dumps(sync)}\n{json.dumps({'execute': command})}\n"
            self._socket.sendall(b"\xff" + lines.encode())
            while self._answer(deadline).get("return") != number:
                pass
            answer = self._answer(deadline)
        if "return" not in answer:
            raise SourceError(f"{self._name}: {command}: {answer.get('error')!r:.300}", _HINT)
        return answer["return"]

    def attempt(self, command: str, timeout_seconds: float, failures: list[str]) -> bool:
        """Whether the agent answers, with the number of file systems that it did it to."""
        try:
            if not self.ask(command, timeout_seconds):
                failures.append(f"{self._name}: {command} found no file system")
        except SourceError as error:
            failures.append(error.message)
            return False
        return True

    def _answer(self, deadline: float) -> dict[str, object]:
        """The next line, from where its delimiter is on; {} where that is no JSON object."""
        while b"\n" not in self._heard:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError("no answer in time")
            self._socket.settimeout(seconds)
            more = self._socket.recv(_LONGEST)
            if not more or len(self._heard) > _LONGEST:
                raise OSError("it talks without end" if more else "it hung up")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        try:
            answer = json.loads(line.rpartition(b"\xff")[2])
        except (ValueError, RecursionError):
            return {}
        return answer if isinstance(answer, dict) else {}


@contextmanager
def frozen(path: Path, timeout_seconds: float) -> Iterator[list[str]]:
    """Have the guest hold its file systems still while the body runs, which it does in any case.

    Gives why that did not hold, if it did not; complete after the body.
    The guest is told to go on whatever happens: the body fails, this process is told to stop, or
    is killed. Where it does not answer to that, it is told again for as long as the time limit.
    Freezing takes at most half of that, so the body should take no longer than the other half.
    """
    failures: list[str] = []
    try:
        agent = Agent(path, timeout_seconds / 2)
    except SourceError as error:
        yield [error.message]
        return
    again = (sys.executable, "-P", "-m", __name__, str(path), str(timeout_seconds))
    program = Program(again, {}, b"", timeout_seconds + _START)
    with guarding([program]) as guard, closing(agent):
        try:
            agent.attempt("guest-fsfreeze-freeze", timeout_seconds / 2, failures)
            yield failures
        finally:
            # A second signal must not come between.
            with signals.shielded():
                if agent.attempt("guest-fsfreeze-thaw", timeout_seconds, failures):
                    guard.disarm()


def main(path: str, seconds: str) -> None:
    """Thaw a guest, when who froze it was killed. Raises SourceError where it does not hear."""
    with closing(Agent(Path(path), float(seconds))) as agent:
        agent.ask("guest-fsfreeze-thaw", float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
