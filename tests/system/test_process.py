"""Signals stop a command in order, and no program that it starts outlasts its time."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from traceback import walk_stack
from types import FrameType

import pytest

from backy.errors import CancelledError
from backy.system import process, signals
from backy.system.process import Outcome, Program, serving
from tests.cli.runner import wait_for
from tests.lab import dispositions
from tests.programs import alive, gate, sh, wait_for_none

STOPPING = pytest.mark.parametrize("number", dispositions.STOPPING, ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def _default_signals() -> Iterator[None]:
    with dispositions.defaults():
        yield


# Reports each step on a line, and waits for a signal where it says "ready".
CHILD = """if True:
    import os, signal, sys
    from backy.errors import CancelledError
    from backy.system.signals import cancellable
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
    ignore = ["env", f"--ignore-signal={ignoring.name}"] if ignoring else []
    child = subprocess.Popen(
        [*ignore, sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
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
        "What it did before that stays. Run it again.",
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
    with signals.cancellable():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before
    with pytest.raises(ZeroDivisionError), signals.cancellable():
        raise ZeroDivisionError
    assert signal.getsignal(number) is before


@STOPPING
def test_a_signal_of_our_own_is_obeyed_too(number: signal.Signals) -> None:
    with pytest.raises(CancelledError, match=number.name) as caught, signals.cancellable():
        signal.raise_signal(number)
    assert caught.value.exit_code == 130


def test_the_identity_is_the_program_and_the_number_of_its_process() -> None:
    command = [sys.executable, "-c", "from backy.system.process import identity; print(identity())"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said, _ = child.communicate()
    assert said == f"backy[{child.pid}]\n"


def test_only_the_processors_that_we_may_use_are_counted() -> None:
    first = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, {{{first}}});"
        "from backy.system.process import processors; print(processors())"
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
        from backy.system.process import prioritize
        ioprio_get = {"x86_64": 252, "aarch64": 31}[platform.machine()]
        def priority():
            return ctypes.CDLL(None).syscall(ioprio_get, 1, 0) >> 13
        prioritize(os.nice(0), "best-effort")  # whoever runs the tests may be idle
        before = priority()
        prioritize(19, "idle")
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
    assert [before, *after] == [2, 3, 3, 19]


def test_a_sleep_ends_when_the_process_is_stopped() -> None:
    with signals.cancellable():
        with pytest.raises(CancelledError):
            os.kill(os.getpid(), signal.SIGTERM)
        signals.sleep(3600)
    assert not signals.is_stopping()


def test_a_program_hears_its_input_and_all_that_it_says_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OURS", "ours")
    said = 'cat; echo "$OURS $ADDED $1" >&2; echo end'
    outcome = process.run(sh(said, "a b", stdin=b"hear this\n", ADDED="added"))
    assert outcome == Outcome(0, "hear this\nours added a b\nend\n")


def test_what_we_have_in_our_environment_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "ours")
    assert process.run(sh('echo "$OURS"', OURS="theirs")).output == "theirs\n"
    assert os.environ["OURS"] == "ours"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        pytest.param(["true"], 0, "", id="found-in-PATH"),
        pytest.param(["/bin/sh", "-c", "exit 3"], 3, "", id="code"),
        pytest.param(["/bin/sh", "-c", "kill -KILL $$"], -9, "", id="killed"),
        pytest.param(["/bin/sh", "-c", "printf '\\377\\n'"], 0, "\ufffd\n", id="not-utf-8"),
        pytest.param(["/not/there"], 127, "/not/there", id="missing"),
        pytest.param(["backy-has-no-such-program"], 127, "not found", id="not-in-PATH"),
        pytest.param(["/etc/passwd"], 126, "/etc/passwd", id="not-executable"),
        pytest.param(["/"], 126, "/", id="folder"),
        pytest.param(["echo", "a\0b"], 127, "null byte", id="nul"),
        pytest.param(["echo", "x" * 200_000], 127, "too long", id="too-long"),
    ],
)
def test_how_a_program_ends_is_its_code(command: list[str], code: int, said: str) -> None:
    outcome = process.run(Program(command, {}, b"", 600))
    assert outcome.code == code
    assert said in outcome.output


def test_a_program_without_a_first_line_that_names_a_shell_runs_in_one(tmp_path: Path) -> None:
    program = tmp_path / "hook"
    program.write_text("echo ran\n")
    program.chmod(0o755)
    assert process.run(Program([str(program)], {}, b"", 600)) == Outcome(0, "ran\n")


def test_of_a_megabyte_of_output_the_end_is_kept() -> None:
    outcome = process.run(sh("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo the reason"))
    assert outcome.code == 0
    assert len(outcome.output) == 64 * 1024
    assert outcome.output.endswith("xx\nthe reason\n")


@pytest.mark.parametrize(
    ("script", "said"),
    [("wc -c", "1000000\n"), ("true", ""), ("exec <&-; echo closed", "closed\n")],
    ids=["read", "ignored", "closed"],
)
def test_a_megabyte_of_input_need_not_be_read(script: str, said: str) -> None:
    assert process.run(sh(script, stdin=b"x" * 1_000_000)) == Outcome(0, said)


def test_a_program_has_none_of_our_files_open(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        outcome = process.run(sh("ls -l /proc/self/fd"))
        assert "pipe:" in outcome.output
        assert "lock" not in outcome.output


def test_what_a_program_leaves_in_the_background_goes_on_and_is_not_waited_for(
    tmp_path: Path, mark: str
) -> None:
    """Such as a connection to a database that holds a lock until after the snapshot."""
    script = "{ read _ <$1; head -c 1000000 /dev/zero; touch $1.passed; } & echo started"
    assert process.run(sh(script, gate(tmp_path), mark=mark)) == Outcome(0, "started\n")
    assert alive(mark)
    # It may say as much as it wants to: nobody ends it, and nobody has it wait.
    (tmp_path / "gate").write_text("go on\n")
    wait_for((tmp_path / "gate.passed").exists, "it went on")
    wait_for_none(mark)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError])
def test_an_error_of_ours_while_a_program_runs_is_no_ending_of_the_program(
    kind: type[Exception], mark: str
) -> None:
    failed: list[type[Exception]] = []

    def fail(_: int, frame: FrameType | None) -> None:
        is_waiting = any(each.f_code is Popen.wait.__code__ for each, _ in walk_stack(frame))
        if is_waiting and not failed:  # it was started, and we were not told yet
            failed.append(kind)
            raise kind("ours")

    before = signal.signal(signal.SIGUSR1, fail)
    try:
        with pytest.raises(kind, match="ours"):
            process.run(sh("while kill -USR1 $PPID; do sleep 0.02; done", mark=mark))
    finally:
        signal.signal(signal.SIGUSR1, before)
    wait_for_none(mark)


def test_a_command_that_no_kernel_takes_is_an_error_where_it_was_to_be_started() -> None:
    with pytest.raises(ValueError, match="null byte"), serving(["echo", "a\0b"]):
        pass


HANGS = pytest.mark.parametrize(
    "script",
    [
        "exec sleep 1000",
        "sleep 1000 & sleep 1000",
        "trap '' TERM; sleep 1000 & wait; sleep 1000",
        "(trap '' TERM; sleep 1000) & sleep 1000",
    ],
    ids=["hangs", "forks", "ignores-TERM", "child-ignores-TERM"],
)


@HANGS
@pytest.mark.usefixtures("_no_grace")
def test_a_time_limit_ends_a_program_and_all_of_its_group(script: str, mark: str) -> None:
    outcome = process.run(sh(f"echo begun; {script}", seconds=0.5, mark=mark))
    assert outcome.code is None
    wait_for_none(mark)


@HANGS
@pytest.mark.usefixtures("_no_grace")
def test_a_program_ends_with_us_when_we_are_stopped(script: str, mark: str) -> None:
    stop_us = "kill -TERM $PPID; "
    with pytest.raises(CancelledError), signals.cancellable():
        process.run(sh(stop_us + script, mark=mark))
    wait_for_none(mark)


def test_a_program_is_asked_to_end_before_it_is_killed(tmp_path: Path) -> None:
    script = "trap 'echo cleaned up >$1; exit' TERM; kill -TERM $PPID; while :; do sleep 0.1; done"
    with pytest.raises(CancelledError), signals.cancellable():
        process.run(sh(script, tmp_path / "said"))
    assert (tmp_path / "said").read_text() == "cleaned up\n"


def ignored_by_a_program() -> set[signal.Signals]:
    """Which of the signals that stop us a program that we start now ignores."""
    said = process.run(sh("grep -E '^Sig(Ign|Blk)' /proc/self/status")).output
    ignored = 0
    for line in said.splitlines():
        ignored |= int(line.split()[1], 16)
    return {each for each in dispositions.STOPPING if ignored >> each - 1 & 1}


def test_a_program_that_cleans_up_after_a_signal_ignores_none_itself() -> None:
    with signals.cancellable():
        assert ignored_by_a_program() == set()
        with pytest.raises(CancelledError):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert ignored_by_a_program() == set()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_what_our_parent_ignores_a_program_ignores_too() -> None:
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.cancellable():
        assert ignored_by_a_program() == {signal.SIGHUP}


@STOPPING
def test_a_signal_waits_for_the_end_of_a_shielded_body(number: signal.Signals) -> None:
    reached = []

    def body() -> None:
        with signals.shielded():
            with signals.shielded():
                os.kill(os.getpid(), number)
                reached.append("inner")
            reached.append("outer")
        reached.append("beyond")

    with pytest.raises(CancelledError, match=number.name), signals.cancellable():
        body()
    assert reached == ["inner", "outer"]


def test_a_shielded_body_may_fail_by_itself() -> None:
    with signals.cancellable():
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(ZeroDivisionError), signals.shielded():
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is before


def test_programs_can_be_run_from_other_threads() -> None:
    found = []
    with signals.cancellable():
        thread = threading.Thread(target=lambda: found.append(process.run(sh("echo ran"))))
        thread.start()
        thread.join()
    assert found == [Outcome(0, "ran\n")]
