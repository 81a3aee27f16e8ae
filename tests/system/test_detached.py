"""Programs that outlive a command are found again, and ended."""

import os
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from backy.system import detached

LISTEN = """
import signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else signal.SIG_DFL)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
time.sleep(600)
"""


def listening(tmp_path: Path, *words: str) -> detached.Detached:
    """A program that was started and listens at a socket, as the next command finds it."""
    path, log = tmp_path / "socket", tmp_path / "log"
    with closing(detached.start([sys.executable, "-c", LISTEN, str(path), *words], log)) as program:
        while not log.read_text():
            assert not program.has_ended(0.01)
    found = detached.listening_at(path)
    assert found
    return found


@pytest.mark.parametrize("words", [(), ("stubborn",)], ids=["obeys", "ignores SIGTERM"])
def test_a_program_that_listens_is_found_and_stopped(tmp_path: Path, words: tuple[str]) -> None:
    with closing(listening(tmp_path, *words)) as program:
        assert not program.has_ended()
        program.stop(within_seconds=0.3)
        assert program.has_ended(5)
    assert detached.listening_at(tmp_path / "socket") is None


def test_it_has_a_session_of_its_own_and_nothing_of_our_standard_streams(tmp_path: Path) -> None:
    script = 'echo "$$ $(ps -o sid= -p $$)"; readlink /proc/$$/fd/0; echo trouble >&2'
    with closing(detached.start(["sh", "-c", script], tmp_path / "log")) as program:
        assert program.has_ended(20)
    ids, stdin, error = (tmp_path / "log").read_text().splitlines()
    assert len(set(ids.split())) == 1
    assert (stdin, error) == ("/dev/null", "trouble")


def test_the_log_is_added_to_and_no_link_is_followed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("one", "two"):
        with closing(detached.start(["echo", word], log)) as program:
            assert program.has_ended(20)
    assert log.read_text() == "one\ntwo\n"
    (tmp_path / "link").symlink_to(log)
    with pytest.raises(OSError, match="symbolic links"):
        detached.start(["echo", "three"], tmp_path / "link")


def test_nobody_listens_at_what_is_left_of_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert detached.listening_at(path) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert detached.listening_at(path) is None


def test_a_program_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        detached.start(["no-such-program"], tmp_path / "log")


def test_root_starts_no_program_that_others_may_write(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root refuses")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    with pytest.raises(PermissionError):
        detached.start([str(program)], tmp_path / "log")


def test_a_killed_program_has_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with closing(detached.start(["sh", "-c", "echo $$; exec sleep 600"], log)) as program:
        while not log.read_text().endswith("\n"):
            assert not program.has_ended(0.01)
        os.kill(int(log.read_text()), signal.SIGKILL)
        assert program.has_ended(20)
