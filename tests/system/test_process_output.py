"""What a program says on stdout comes apart and whole, or it is known that it did not."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backy.clients.program import output_of
from backy.errors import SourceError
from backy.system import process
from backy.system.process import Program, serving
from tests.cli.runner import environment, wait_for
from tests.lab.watchdog import ends
from tests.programs import MARK, alive, marked, wait_for_none


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    with marked(str(tmp_path)) as mark:
        yield mark


def shell(script: str, seconds: float = 60, stdin: bytes = b"") -> Program:
    return Program(("/bin/sh", "-c", script), {}, stdin, seconds)


def test_stdout_and_stderr_come_apart() -> None:
    outcome = process.run(shell("cat; echo no >&2; exit 3", stdin=b"yes\n"), limit=100)
    assert outcome == process.Outcome(3, "no\n", b"yes\n")


def test_much_output_is_taken_whole() -> None:
    outcome = process.run(shell("head -c 3000000 /dev/zero"), limit=3_000_000)
    assert (outcome.code, outcome.stdout) == (0, bytes(3_000_000))


def test_too_much_output_costs_no_more_memory_than_the_limit() -> None:
    outcome = process.run(shell("head -c 50000000 /dev/zero"), limit=1000)
    assert (outcome.code, len(outcome.stdout)) == (0, 1001)


@pytest.mark.parametrize("amount", [6, 60_000, 3_000_000])
def test_a_program_is_judged_at_its_end_though_somebody_in_the_background_holds_its_output(
    amount: int, mark: str
) -> None:
    script = f"head -c {amount} /dev/zero; (sleep 600; echo late) & exit 3"
    program = Program(("/bin/sh", "-c", script), {MARK: mark}, b"", 600)
    with ends(60):
        outcome = process.run(program, limit=5_000_000)
    assert (outcome.code, len(outcome.stdout), outcome.is_held) == (3, amount, True)
    assert alive(mark)


def test_a_flood_from_the_background_is_neither_waited_for_nor_kept(mark: str) -> None:
    program = Program(("/bin/sh", "-c", "yes & exit 0"), {MARK: mark}, b"", 600)
    with ends(60):
        outcome = process.run(program, limit=1000)
    assert (outcome.code, outcome.is_held) == (0, True)
    assert len(outcome.stdout) <= 1001


def test_who_closes_its_output_holds_nothing() -> None:
    outcome = process.run(shell("echo begun; exec >&-; exit 0"), limit=100)
    assert (outcome.code, outcome.stdout, outcome.is_held) == (0, b"begun\n", False)


@pytest.mark.parametrize(
    ("script", "seconds", "expected"),
    [
        pytest.param("echo a >&2; echo b >&2; exit 1", 60, "looking: /bin/sh: b", id="fails"),
        pytest.param("exit 4", 60, "looking: /bin/sh: it ended with code 4", id="fails-silently"),
        pytest.param("sleep 60", 0.2, "looking: /bin/sh took longer than 0.2 s", id="hangs"),
        pytest.param("echo 12345", 60, "looking: /bin/sh printed more than 3 bytes", id="too-much"),
    ],
)
def test_an_error_names_what_failed_and_what_was_said_last(
    script: str, seconds: float, expected: str
) -> None:
    with pytest.raises(SourceError) as caught:
        output_of(("/bin/sh", "-c", script), "looking", timeout_seconds=seconds, limit=3)
    assert caught.value.message == expected


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(SourceError, match="looking: no-such-program"):
        output_of(("no-such-program",), "looking", timeout_seconds=5)


def test_programs_are_asked_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    said = output_of(("/bin/sh", "-c", "echo $LC_ALL"), "looking", timeout_seconds=60)
    assert said == b"C\n"


def test_what_serves_us_runs_during_the_body_and_is_ended_with_it(mark: str) -> None:
    with serving(("env", f"{MARK}={mark}", "sleep", "600")) as child:
        assert not child.has_ended()
    wait_for_none(mark)


def test_one_that_ended_by_itself_says_why() -> None:
    with serving(("/bin/sh", "-c", "echo no disk >&2; exit 1")) as child:
        wait_for(child.has_ended, "it ended")
        wait_for(lambda: child.said() == "no disk\n", "it said why")


def test_one_that_cannot_be_started_is_one_that_ended() -> None:
    with serving(("no-such-program",)) as child:
        wait_for(child.has_ended, "it ended")
        wait_for(lambda: "no-such-program" in child.said(), "it said why")


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param('with serving(("sh", "-c", sleep)): input()', id="serving"),
        pytest.param('with serving(("sh", "-c", forgets)): input()', id="forgets-a-SIGTERM"),
        pytest.param('with serving(("sh", "-c", ignores)): input()', id="ignores-SIGTERM"),
        pytest.param(
            'process.run(process.Program(("sh", "-c", sleep), {}, b"", 600), limit=1)', id="asked"
        ),
    ],
)
def test_a_program_dies_when_we_are_killed(runs: str, tmp_path: Path, mark: str) -> None:
    code = f"""if True:
        from backy.system import process
        from backy.system.process import serving
        sleep = "echo $$ >{tmp_path}/pid; exec sleep 600"
        forgets = "trap 'trap - TERM' TERM; echo $$ >{tmp_path}/pid; while :; do sleep 1; done"
        ignores = "trap '' TERM; echo $$ >{tmp_path}/pid; exec sleep 600"
        print("ready", flush=True)
        {runs}
    """
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(**{MARK: str(tmp_path)}),
        text=True,
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        wait_for((tmp_path / "pid").exists, "the program runs")
        child.kill()
        child.communicate(timeout=60)
    wait_for_none(mark)
