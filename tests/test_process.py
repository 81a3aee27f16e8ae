"""Signals stop a command in order, and a command that was told to ignore them goes on."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from backy import process
from backy.errors import CancelledError

STOPPING = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)


@pytest.fixture(autouse=True)
def _nothing_is_ignored() -> Iterator[None]:
    """Who started the tests may have ignored signals, as nohup does."""
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ignored = [each for each in stopping if signal.getsignal(each) is signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, signal.SIG_DFL)
    yield
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)


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


@pytest.fixture
def limit_of_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("limit_of_files")
def test_more_files_may_be_open_up_to_the_hard_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    process.allow_open_files(100)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100, hard)
    process.allow_open_files(50)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100, hard)
    process.allow_open_files(2**60)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_an_idle_process_lets_all_others_go_first_and_so_do_its_threads() -> None:
    program = """if True:
        import ctypes, os, platform, threading
        from backy import process
        ioprio_get = {"x86_64": 252, "aarch64": 31}[platform.machine()]
        def priority():
            return ctypes.CDLL(None).syscall(ioprio_get, 1, 0) >> 13
        before = priority()
        process.be_idle()
        found = []
        thread = threading.Thread(target=lambda: found.append(priority()))
        thread.start()
        thread.join()
        print(before, priority(), *found, os.nice(0))
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    before, *after = map(int, done.stdout.split())
    assert before != 3
    assert after == [3, 3, 19]


def test_a_sleep_ends_when_the_process_is_stopped() -> None:
    with pytest.raises(CancelledError), process.cancellable():
        os.kill(os.getpid(), signal.SIGTERM)
    process.sleep(3600)
    with process.cancellable():
        pass
    assert not process._stopped.is_set()
