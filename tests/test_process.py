"""Signals stop a command in order, and a command that was told to ignore them goes on."""

import os
import signal
import subprocess
import sys

import pytest

from backy import process
from backy.errors import CancelledError

STOPPING = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
# Reports each step on a line, and waits for a signal where it says "ready".
CHILD = """if True:
    import os, signal, sys
    from backy.errors import CancelledError
    from backy.process import cancellable
    def say(*words):
        print(*words, flush=True)
    STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(each) for each in STOPPING]
    try:
        with cancellable():
            try:
                say("ready")
                sys.stdin.readline()
                say("undisturbed")
            finally:
                for each in STOPPING:
                    os.kill(os.getpid(), each)
                say("cleaned up")
    except CancelledError as error:
        say("cancelled:", error.message)
        say(error.hint)
    except BaseException as error:
        say("bug:", repr(error))
    say("restored" if before == [signal.getsignal(each) for each in STOPPING] else "changed")
"""


def started(program: str, ignoring: signal.Signals | None = None) -> subprocess.Popen[str]:
    """A child that has said that it is ready."""

    def ignore() -> None:
        if ignoring:
            signal.signal(ignoring, signal.SIG_IGN)

    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=ignore,  # noqa: PLW1509 - we have no other thread here
    )
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


@STOPPING
def test_a_signal_cancels_once_and_clean_up_is_not_disturbed(number: signal.Signals) -> None:
    child = started(CHILD)
    child.send_signal(number)
    said, _ = child.communicate()
    assert said.splitlines() == [
        "cleaned up",
        f"cancelled: stopped by {number.name}",
        "Nothing was published; run it again.",
        "restored",
    ]
    assert child.returncode == 0


@STOPPING
def test_a_signal_that_our_parent_ignores_stops_nothing(number: signal.Signals) -> None:
    """As after `nohup backy ...`, and Ctrl-C for what a script started with `&`."""
    quiet = CHILD.replace("os.kill(os.getpid(), each)", "pass")
    child = started(quiet, ignoring=number)
    child.send_signal(number)
    said, _ = child.communicate("go on\n")
    assert said.splitlines() == ["undisturbed", "cleaned up", "restored"]


@STOPPING
def test_the_handlers_of_before_are_back_after_the_body(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with process.cancellable():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before
    with pytest.raises(ZeroDivisionError), process.cancellable():
        raise ZeroDivisionError
    assert signal.getsignal(number) is before


@STOPPING
def test_a_signal_of_our_own_is_obeyed_too(number: signal.Signals) -> None:
    with pytest.raises(CancelledError, match=number.name) as caught, process.cancellable():
        signal.raise_signal(number)
    assert caught.value.exit_code == 130


def test_the_identity_is_the_program_and_the_number_of_its_process() -> None:
    command = [sys.executable, "-c", "from backy.process import identity; print(identity())"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said, _ = child.communicate()
    assert said == f"backy[{child.pid}]\n"


def test_only_the_processors_that_we_may_use_are_counted() -> None:
    first = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, {{{first}}});"
        "from backy.process import processors; print(processors())"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"
    assert process.processors() == len(os.sched_getaffinity(0))
