"""Run a program of a storage, such as rbd, virsh or qemu-img, and give its output."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from backy.errors import SourceError
from backy.system import process
from backy.system.process import Program
from backy.units import MiB

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_MOST_OUTPUT = 64 * MiB
_LONGEST_REASON = 500  # characters of the last line on stderr
_MOST_CALLS = 8  # at once


class TooMuchOutputError(SourceError):
    """The program printed more than the caller accepts."""


def output_of(
    command: Sequence[str],
    title: str,
    *,
    timeout_seconds: float,
    stdin: bytes = b"",
    limit: int = _MOST_OUTPUT,
    warnings: list[str] | None = None,
) -> bytes:
    """Run a program and give its stdout, at most `limit` bytes; its messages are in English.

    What it left in the background is not waited for. `warnings` gets a sentence if such a process
    has stdout open, so that its output, which is dropped, could have been meant for us.

    Raises SourceError where it fails, cannot be started, or takes too long; the message begins
    with `title` and ends with the last line on stderr. Raises TooMuchOutputError where stdout is
    longer than `limit`.
    """
    program = Program(command, {"LC_ALL": "C"}, stdin, timeout_seconds)
    outcome = process.run(program, limit=limit)
    if outcome.code is None:
        hint = "Check that the storage answers, or allow more time with `timeout`."
        raise SourceError(f"{title}: {command[0]} took longer than {timeout_seconds:g} s", hint)
    if outcome.code:
        line = outcome.output.strip().rpartition("\n")[2][-_LONGEST_REASON:]
        reason = line or f"it ended with code {outcome.code}"
        raise SourceError(f"{title}: {command[0]}: {reason}", "Nothing was published.")
    if len(outcome.stdout) > limit:
        raise TooMuchOutputError(f"{title}: {command[0]} printed more than {limit} bytes")
    if outcome.is_held and warnings is not None:
        why = "left a process in the background that has its output open"
        warnings.append(f"{title}: {command[0]} {why}; only what came before its end was used")
    return outcome.stdout


def call_at_once(call: Callable[[Argument], Result], arguments: Iterable[Argument]) -> list[Result]:
    """Make several calls at once, each in a thread of its own; give their results in order.

    Raises the first error when all calls that had begun have ended; the others are not made.
    """
    with ThreadPoolExecutor(_MOST_CALLS) as pool:
        return list(pool.map(call, arguments))
