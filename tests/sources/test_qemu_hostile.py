"""What answers at the sockets of QEMU and of the guest agent may be anything, and may hang."""

from __future__ import annotations

import errno
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from backy.clients.guest_agent import Agent, frozen, main
from backy.clients.qmp import Monitor, NotRunningError, connect
from backy.errors import SourceError
from tests.lab.watchdog import ends

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}\n'
Talk = Callable[[socket.socket], object]


@contextmanager
def listening(path: Path, talk: Talk) -> Iterator[Path]:
    """A server that talks to whoever connects, one after the other."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    open_ones: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_ones.append(connection)
                with suppress(OSError), connection:
                    talk(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        for each in [listener, *open_ones]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)


def silent(connection: socket.socket) -> None:
    while connection.recv(1024):
        pass


def says(*lines: bytes) -> Talk:
    """Says one line for each command that it hears, the first unasked; then it is silent."""

    def talk(connection: socket.socket) -> None:
        for line in lines:
            connection.sendall(line)
            connection.recv(65536)
        silent(connection)

    return talk


def endless(data: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        while True:
            connection.sendall(data)

    return talk


def trickling(connection: socket.socket) -> None:
    for _ in itertools.count():
        connection.sendall(b" ")
        time.sleep(0.05)


def hangs_up(connection: socket.socket) -> None:
    connection.recv(10)


def answer(what: object) -> bytes:
    return json.dumps({"return": what, "id": "__qmp#00000"}).encode() + b"\n"


OK = answer({}).replace(b', "id": "__qmp#00000"', b"")


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(silent, id="silent"),
        pytest.param(hangs_up, id="hangs-up"),
        pytest.param(trickling, id="trickles"),
        pytest.param(says(b"hello\n"), id="no-json"),
        pytest.param(says(b"[" * 100_000 + b"\n"), id="nested"),
        pytest.param(says(b'{"return": {}}\n'), id="no-greeting"),
        pytest.param(says(b'{"QMP": 3}\n'), id="wrong-greeting"),
        pytest.param(endless(b"x" * 65536), id="endless-line"),
        pytest.param(says(GREETING), id="silent-after-the-greeting"),
        pytest.param(says(GREETING, b'{"error": {"class": "x", "desc": "no"}}\n'), id="refuses"),
        pytest.param(says(GREETING, OK), id="silent-after-the-handshake"),
        pytest.param(says(GREETING, OK, b"hello\n"), id="answer-no-json"),
        pytest.param(says(GREETING, OK, b'{"id": "__qmp#00000"}\n'), id="answer-empty"),
        pytest.param(
            says(GREETING, OK, b'{"id": "__qmp#00000", "error": 3}\n'), id="strange-error"
        ),
        pytest.param(says(GREETING, OK, b'{"id": "other", "return": {}}\n'), id="other-answer"),
        pytest.param(says(GREETING, OK, b"x" * 11_000_000), id="answer-of-11-MB"),
    ],
)
def test_whatever_answers_for_qemu_is_an_error_that_names_its_socket(
    tmp_path: Path, talk: Talk
) -> None:
    with (
        listening(tmp_path / "qmp", talk) as path,
        ends(60),
        pytest.raises(SourceError, match=str(path)),
        connect(path, 0.3) as monitor,
    ):
        monitor.ask("query-status")


def test_events_are_not_kept(tmp_path: Path) -> None:
    event = json.dumps({"event": "X", "data": "x" * 1000, "timestamp": {}}).encode() + b"\n"
    with (
        listening(tmp_path / "qmp", says(GREETING, OK, event * 500 + answer("done"))) as path,
        connect(path, 20) as monitor,
    ):
        assert monitor.ask("one") == "done"
        assert monitor.client.events.empty()
        assert monitor.client.events.history == ()


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    late = answer("old") + answer("new").replace(b"00000", b"00001")
    with (
        listening(tmp_path / "qmp", says(GREETING, OK, b"", late)) as path,
        connect(path, 20) as monitor,
    ):
        with pytest.raises(SourceError, match="no answer within"):
            monitor.ask("one", 0.2)
        assert monitor.ask("two") == "new"


@pytest.mark.parametrize("is_there", [False, True], ids=["no-socket", "nobody-listens"])
def test_a_vm_that_is_off_is_told_apart(tmp_path: Path, is_there: bool) -> None:
    path = tmp_path / "qmp"
    if is_there:
        with socket.socket(socket.AF_UNIX) as unused:
            unused.bind(str(path))
    with pytest.raises(NotRunningError), connect(path, 1):
        pytest.fail("nobody is there")


@pytest.mark.parametrize(
    "path", [Path("/dev/null"), Path("/" + "x" * 200)], ids=["no-socket", "too-long"]
)
def test_what_can_be_no_socket_is_no_vm_that_is_off(path: Path) -> None:
    with pytest.raises(SourceError, match=str(path)) as caught, connect(path, 1):
        pytest.fail("nobody is there")
    assert path == Path("/dev/null") or not isinstance(caught.value, NotRunningError)


def test_waiting_for_what_never_comes_ends(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "qmp", says(GREETING, OK)) as path,
        ends(60),
        connect(path, 60) as monitor,
    ):
        monitor._timeout = 0.3
        with pytest.raises(SourceError, match="the jobs did not end"):
            Monitor.wait_until(monitor, lambda: False, "the jobs")


class Guest:
    """An agent as it should be, but for the commands that `odd` has another answer to."""

    def __init__(self, **odd: bytes | None) -> None:
        """None: it hangs, for good."""
        self.odd = {name.replace("_", "-"): data for name, data in odd.items()}
        self.heard: list[str] = []

    def __call__(self, connection: socket.socket) -> None:
        for line in connection.makefile("rb"):
            command = json.loads(line.lstrip(b"\xff"))
            name = command["execute"]
            if name == "guest-sync-delimited":
                number = command["arguments"]["id"]
                connection.sendall(b'\xff{"return": %d}\n' % number)
                continue
            self.heard.append(name.removeprefix("guest-").removeprefix("fsfreeze-"))
            reply = self.odd.get(name, b'{"return": 2}\n')
            if reply is None:
                silent(connection)
                return
            connection.sendall(reply)


def test_a_guest_is_frozen_during_the_body_and_thawed_after_it(tmp_path: Path) -> None:
    guest = Guest()
    with listening(tmp_path / "agent", guest) as path:
        with frozen(path, 20) as failures:
            assert guest.heard == ["ping", "freeze"]
        assert guest.heard == ["ping", "freeze", "thaw"]
    assert failures == []


def test_nothing_is_frozen_where_nobody_could_thaw_it_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    guest = Guest()
    monkeypatch.setattr("backy.system.process._spawn", refuse)
    with (
        listening(tmp_path / "agent", guest) as path,
        pytest.raises(SourceError, match=f"starting the guard .*{path}: no more processes"),
        frozen(path, 20),
    ):
        pytest.fail("nobody would thaw it")
    assert guest.heard == ["ping"]


def test_a_guest_is_thawed_after_a_body_that_fails(tmp_path: Path) -> None:
    guest = Guest()
    with listening(tmp_path / "agent", guest) as path:
        with pytest.raises(KeyboardInterrupt), frozen(path, 20):
            raise KeyboardInterrupt
        assert guest.heard == ["ping", "freeze", "thaw"]


@pytest.mark.parametrize(
    ("odd", "heard", "message"),
    [
        pytest.param(
            {"guest_fsfreeze_freeze": b'{"error": {"class": "GenericError", "desc": "busy"}}\n'},
            ["ping", "freeze", "thaw"],
            "guest-fsfreeze-freeze: .*busy",
            id="refuses",
        ),
        pytest.param(
            {"guest_fsfreeze_freeze": b'{"return": 0}\n'},
            ["ping", "freeze", "thaw"],
            "guest-fsfreeze-freeze had an effect on no file system",
            id="nothing-to-freeze",
        ),
        pytest.param(
            {"guest_fsfreeze_thaw": b'{"return": 0}\n'},
            ["ping", "freeze", "thaw"],
            "guest-fsfreeze-thaw had an effect on no file system",
            id="thawed-by-somebody-else",
        ),
        pytest.param(
            {"guest_fsfreeze_freeze": b"what\n"},
            ["ping", "freeze", "thaw"],
            "guest-fsfreeze-freeze",
            id="nonsense",
        ),
        pytest.param(
            {"guest_fsfreeze_freeze": b""},
            ["ping", "freeze", "thaw"],
            "guest-fsfreeze-freeze: no answer in time|timed out",
            id="no-answer",
        ),
        pytest.param(
            {"guest_fsfreeze_freeze": None},
            ["ping", "freeze", "ping", "thaw"],
            "guest-fsfreeze-freeze: no answer in time|timed out",
            id="hangs-until-it-is-called-anew",
        ),
        pytest.param({"guest_ping": None}, ["ping"], "guest-ping: .*time", id="dead"),
    ],
)
def test_a_freeze_that_does_not_hold_is_told_and_the_guest_is_thawed(
    tmp_path: Path, odd: dict[str, bytes | None], heard: list[str], message: str
) -> None:
    guest, ran = Guest(**odd), False
    with listening(tmp_path / "agent", guest) as path, ends(60):
        with frozen(path, 4) as failures:
            ran = True
        assert ran
        assert guest.heard == heard
    assert pytest.raises(AssertionError, match=message).matches(AssertionError(failures[0]))


def test_a_thaw_that_is_not_heard_is_said_again_by_another_connection(tmp_path: Path) -> None:
    guest = Guest(guest_fsfreeze_thaw=None)
    with listening(tmp_path / "agent", guest) as path, ends(60):
        with frozen(path, 4) as failures:
            threading.Timer(1, guest.odd.clear).start()
        assert guest.heard[:3] == ["ping", "freeze", "thaw"]
        assert guest.heard[3:] == ["ping", "thaw"]
    assert "guest-fsfreeze-thaw" in failures[0]


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(silent, id="silent"),
        pytest.param(hangs_up, id="hangs-up"),
        pytest.param(trickling, id="trickles"),
        pytest.param(endless(b"\xff" + b"[" * 65536), id="endless-line"),
        pytest.param(endless(b'{"return": 1}\n'), id="endless-answers"),
        pytest.param(endless(b"[" * 3000 + b"\n"), id="nested"),
        pytest.param(endless(b"\xff\xfe\n"), id="no-text"),
    ],
)
def test_whatever_answers_for_the_agent_the_body_runs_and_it_ends(
    tmp_path: Path, talk: Talk
) -> None:
    ran = False
    with listening(tmp_path / "agent", talk) as path, ends(60):
        with frozen(path, 1) as failures:
            ran = True
        assert ran
        assert str(path) in failures[0]


def test_an_answer_without_end_takes_no_memory(tmp_path: Path) -> None:
    guest = Guest(guest_fsfreeze_freeze=b"x" * 10_000_000)
    with listening(tmp_path / "agent", guest) as path, closing(Agent(path, 60)) as agent:
        with pytest.raises(SourceError, match="its answer is too long"):
            agent.ask("guest-fsfreeze-freeze", 60)
        assert len(agent._received) < 200_000


def test_without_an_agent_the_body_runs(tmp_path: Path) -> None:
    with frozen(tmp_path / "agent", 1) as failures:
        pass
    assert failures == [
        f"connecting to the guest agent at {tmp_path}/agent: No such file or directory"
    ]


def test_what_was_left_unread_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(b'{"return": {}}\n{"return": 7}\nhalf of a li')
        Guest()(connection)

    with listening(tmp_path / "agent", talk) as path, closing(Agent(path, 60)) as agent:
        assert agent.ask("guest-fsfreeze-freeze", 60) == 2


def test_the_program_that_thaws_after_a_kill_waits_its_time_for_an_answer(tmp_path: Path) -> None:
    guest = Guest()
    with listening(tmp_path / "agent", guest) as path, ends(60):
        main(str(path), "60")
        assert guest.heard == ["ping", "thaw"]
        guest.odd["guest-fsfreeze-thaw"] = None
        with pytest.raises(SourceError):
            main(str(path), "0.3")
