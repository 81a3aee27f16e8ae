"""Programs that outlive a command are found again, and ended."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from backy.system import detached, sockets

LISTEN = """
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else signal.SIG_DFL)
print(os.getpid(), os.getsid(0), os.readlink("/proc/self/fd/0"), flush=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
time.sleep(600)
"""


def listening(tmp_path: Path, *words: str) -> detached.Detached:
    """A program that was started and listens at a socket, as the next command finds it."""
    path, log = tmp_path / "socket", tmp_path / "log"
    detached.start([sys.executable, "-c", LISTEN, str(path), *words], log, path).close()
    found = detached.listening_at(path)
    assert found
    return found


@pytest.mark.parametrize("words", [(), ("stubborn",)], ids=["obeys", "ignores SIGTERM"])
def test_a_program_that_listens_is_found_and_stopped(tmp_path: Path, words: tuple[str]) -> None:
    with closing(listening(tmp_path, *words)) as program:
        assert not program.has_ended()
        program.stop(within_seconds=0.3)
        assert program.has_ended(60)
    assert detached.listening_at(tmp_path / "socket") is None


def test_it_has_a_session_of_its_own_and_nothing_of_our_standard_streams(tmp_path: Path) -> None:
    path, log = tmp_path / "socket", tmp_path / "log"
    with closing(detached.start([sys.executable, "-c", LISTEN, str(path)], log, path)) as program:
        pid, session, stdin = log.read_text().split()
        program.stop()
    assert (pid, stdin) == (session, "/dev/null")


def test_what_ends_at_once_is_an_error_and_what_it_said_is_added_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("one", "two"):
        with pytest.raises(TimeoutError, match="does not listen at"):
            detached.start(["sh", "-c", f"echo {word} >&2"], log, tmp_path / "socket")
    assert log.read_text() == "one\ntwo\n"


def test_no_link_is_followed_to_a_log(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "log")
    with pytest.raises(OSError, match="symbolic links"):
        detached.start(["echo", "three"], tmp_path / "link", tmp_path / "socket")
    assert not (tmp_path / "log").exists()


def test_nobody_listens_at_what_is_left_of_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert detached.listening_at(path) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert detached.listening_at(path) is None


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """A socket whose listener accepts nobody, and whose queue is full."""
    path = tmp_path / "socket"
    with ExitStack() as stack:
        listener, *clients = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3))
        listener.bind(str(path))
        listener.listen(0)
        for client in clients:
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(str(path))
        yield path


def test_a_program_that_hangs_is_an_error_and_does_not_hang_who_looks_for_it(
    hanging: Path,
) -> None:
    with pytest.raises(TimeoutError, match=f"nobody answers at {hanging}"):
        detached.listening_at(hanging)
    with pytest.raises(OSError, match="another server listens there"):
        sockets.refuse_living(hanging)


def test_a_program_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        detached.start(["no-such-program"], tmp_path / "log", tmp_path / "socket")


def test_root_starts_no_program_that_others_may_write(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root refuses")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    with pytest.raises(PermissionError):
        detached.start([str(program)], tmp_path / "log", tmp_path / "socket")
