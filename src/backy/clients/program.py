"""Ask a program of the storage's: rbd, virsh, qemu-img, or one of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from backy.errors import SourceError
from backy.system import process
from backy.system.process import Program
from backy.units import MiB

_MOST_OUTPUT = 64 * MiB
_LONGEST = 500  # characters of what a program says last
_MOST_CALLS = 8  # at once


class TooMuchOutputError(SourceError):
    """The program printed more than the caller takes."""


def ask(
    command: Sequence[str],
    what: str,
    *,
    timeout_seconds: float,
    stdin: bytes = b"",
    limit: int = _MOST_OUTPUT,
) -> bytes:
    """Give what a program says on stdout, at most `limit` bytes; messages are in English.

    Raises SourceError that begins with `what`, and has what the program said last on stderr, where
    it fails, cannot be started, or takes longer than its time; TooMuchOutputError where it says
    more.
    """
    program = Program(command, {"LC_ALL": "C"}, stdin, timeout_seconds)
    outcome = process.run(program, limit=limit)
    if outcome.code is None:
        hint = "Look whether the storage answers, or allow more with `timeout`."
        raise SourceError(f"{what}: {command[0]} took longer than {timeout_seconds:g} s", hint)
    if outcome.code:
        said = outcome.output.strip().rpartition("\n")[2][-_LONGEST:] or f"code {outcome.code}"
        raise SourceError(f"{what}: {command[0]}: {said}", "Nothing was published.")
    if len(outcome.stdout) > limit:
        raise TooMuchOutputError(f"{what}: {command[0]} printed more than {limit} bytes")
    return outcome.stdout


def call_at_once(call: Callable[[str], object], arguments: Iterable[str]) -> None:
    """Make several calls at once, each in a thread of its own, and wait until all have ended.

    Raises the first error; calls that had not begun by then are not made.
    """
    with ThreadPoolExecutor(_MOST_CALLS) as pool:
        for _ in pool.map(call, arguments):
            pass
