"""A guard does what is to be done when backy is gone, even by SIGKILL, and nothing otherwise."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backy.system import process
from backy.system.process import Outcome, guarding
from tests.cli.runner import environment, wait_for
from tests.lab.dispositions import WITH_DEFAULTS
from tests.programs import MARK, alive, gate, sh, wait_for_none

STOPPING = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)


PYTHON = [*WITH_DEFAULTS, sys.executable, "-c"]
# Is given the folder and two lines of shell: `first` is run with a guard that runs `last`.
GUARDED = """if True:
    import os, signal, sys
    from backy.system import process
    from backy.system.process import guarding
    from backy.system.signals import cancellable
    def sh(script):
        command = ("/bin/sh", "-c", script, "sh", sys.argv[1])
        return process.Program(command, {"NAME": "a b"}, b"hear 'this'", 600)
    first, last = sys.argv[2:4]
    with cancellable(), guarding([sh(last)]) as guard:
        if first:
            process.run(sh(first), guard)
        print("ready", flush=True)
        sys.stdin.readline()
        guard.disarm()
"""


def guarded(folder: Path, first: str, last: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PYTHON, GUARDED, str(folder), first, last],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(**{MARK: str(folder)}),
        text=True,
    )


def killed(child: subprocess.Popen[str]) -> None:
    """It has ended, and nobody has its stdout and stderr open any more."""
    child.kill()
    said, _ = child.communicate(timeout=60)
    assert said == ""


def test_a_guard_runs_its_program_once_when_we_are_killed(tmp_path: Path, mark: str) -> None:
    with guarded(tmp_path, "", 'echo "$NAME $(cat)" >>$1/fired') as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        assert not (tmp_path / "fired").exists()
        killed(child)
    wait_for_none(mark)
    assert (tmp_path / "fired").read_text() == "a b hear 'this'\n"


def test_nobody_who_listens_to_us_has_to_wait_for_a_guard(tmp_path: Path, mark: str) -> None:
    passage = gate(tmp_path)
    with guarded(tmp_path, "", "read _ <$1/gate; touch $1/fired") as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        killed(child)
    passage.write_text("go on\n")
    wait_for_none(mark)
    assert (tmp_path / "fired").exists()


def test_a_disarmed_guard_runs_nothing_and_is_gone_with_its_body(tmp_path: Path, mark: str) -> None:
    with guarded(tmp_path, "", "touch $1/fired") as child:
        said, _ = child.communicate("\n")
        assert said == "ready\n"
    assert child.returncode == 0
    assert alive(mark) == []
    assert not (tmp_path / "fired").exists()


def test_a_guard_that_was_not_disarmed_fires_at_the_end_of_its_body(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), guarding([sh("touch $1", tmp_path / "fired")]):
        raise ZeroDivisionError
    assert (tmp_path / "fired").exists()


@pytest.mark.usefixtures("_no_grace")
def test_a_guard_runs_all_of_its_programs_whatever_becomes_of_each(
    tmp_path: Path, mark: str
) -> None:
    programs = [
        sh(script, tmp_path / "fired", seconds=seconds, mark=mark)
        for script, seconds in (
            ("echo 1 >>$1; exit 3", 60),
            ("trap '' TERM; while :; do sleep 1; done", 0.5),
            ("echo 3 >>$1", 60),
        )
    ]
    with guarding(programs):
        pass
    assert (tmp_path / "fired").read_text() == "1\n3\n"
    wait_for_none(mark)


def test_a_guard_kills_the_program_that_ran_first(tmp_path: Path, mark: str) -> None:
    first = "trap '' TERM; sleep 1000 & echo $$ >$1/begun.new; mv $1/begun.new $1/begun; wait"
    last = "kill -0 $(cat $1/begun) 2>$1/error; echo $? >$1/fired"
    with guarded(tmp_path, first, last) as child:
        wait_for((tmp_path / "begun").exists, "the program runs")
        killed(child)
    wait_for_none(mark)
    assert (tmp_path / "fired").exists()


def test_a_guard_leaves_alone_what_a_program_left_in_the_background(
    tmp_path: Path, mark: str
) -> None:
    first = "{ read _ <$1/gate; touch $1/passed; } & true"
    passage = gate(tmp_path)
    with guarded(tmp_path, first, "touch $1/fired") as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        killed(child)
    wait_for((tmp_path / "fired").exists, "the guard fired")
    passage.write_text("go on\n")
    wait_for((tmp_path / "passed").exists, "it goes on")
    wait_for_none(mark)


@STOPPING
def test_a_guard_does_not_mind_the_signals_that_stop_us(
    tmp_path: Path, mark: str, number: signal.Signals
) -> None:
    """A service manager may send them to all processes of a service."""
    last = "grep SigIgn /proc/self/status >$1/new; mv $1/new $1/fired"
    with guarded(tmp_path, "", last) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        for each in set(alive(mark)) - {child.pid}:
            os.kill(each, number)
        assert not (tmp_path / "fired").exists()
        killed(child)
    wait_for((tmp_path / "fired").exists, "the guard fired")
    ignored = int((tmp_path / "fired").read_text().split()[1], 16)
    assert not ignored >> number - 1 & 1


def test_a_guard_that_somebody_killed_hinders_nobody(tmp_path: Path, mark: str) -> None:
    with guarding([sh("touch $1", tmp_path / "fired", mark=mark)]) as guard:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        wait_for(lambda: guard_is_gone(guard), "the guard is gone")
        assert process.run(sh("echo ran"), guard) == Outcome(0, "ran\n")
        guard.disarm()
    assert not (tmp_path / "fired").exists()


def guard_is_gone(guard: process.Guard) -> bool:
    poll = select.poll()
    poll.register(guard.pipe, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
