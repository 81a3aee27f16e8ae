"""A signal that stops us at the worst moment is not lost, and leaves nothing open behind it."""

import ast
import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from qemu.qmp import QMPClient

import backy as package
from backy.cli.app import each_job
from backy.clients.guest_agent import Agent
from backy.clients.qmp import connect
from backy.errors import CancelledError, DamagedError
from backy.repository.records import read_record
from backy.repository.status import Status
from backy.system import process
from backy.system.signals import cancellable
from tests.sources.test_qemu_hostile import GREETING, OK, listening, says, silent

Made = list[Any]


def stop_us() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stopping(call: Callable[..., Any], made: Made) -> Callable[..., Any]:
    """The same call, during which a signal comes; what it gives is kept in `made`."""

    def called(*arguments: Any) -> Any:  # noqa: ANN401 - whatever it takes and gives
        made.append(call(*arguments))
        stop_us()
        return made[-1]

    return called


def test_a_signal_while_the_agent_says_nothing_closes_the_connection(tmp_path: Path) -> None:
    closed = []

    class Noted(Agent):
        def close(self) -> None:
            closed.append(True)
            super().close()

    def talk(connection: socket.socket) -> None:
        stop_us()
        silent(connection)

    with (
        listening(tmp_path / "agent", talk) as path,
        pytest.raises(CancelledError),
        cancellable(),
    ):
        Noted(path, 60)
    assert closed


def test_a_signal_while_an_event_loop_is_made_leaves_it_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: Made = []
    monkeypatch.setattr("asyncio.events.new_event_loop", stopping(asyncio.new_event_loop, loops))
    with (
        listening(tmp_path / "qmp", says(GREETING, OK)) as path,
        pytest.raises(CancelledError),
        cancellable(),
        connect(path, 60),
    ):
        pytest.fail("the signal was lost")
    assert [loop.is_closed() for loop in loops] == [True]


def test_a_signal_while_we_hang_up_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang_up = QMPClient.disconnect

    async def disconnect(client: QMPClient) -> None:
        stop_us()
        await hang_up(client)

    monkeypatch.setattr(QMPClient, "disconnect", disconnect)
    with (
        listening(tmp_path / "qmp", says(GREETING, OK)) as path,
        pytest.raises(CancelledError),
        cancellable(),
        connect(path, 60),
    ):
        pass


def test_a_signal_while_the_guard_is_started_ends_the_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guards: list[Popen[bytes]] = []
    monkeypatch.setattr(process, "_spawn", stopping(process._spawn, guards))
    with pytest.raises(CancelledError), cancellable(), process.guarding([]):
        pytest.fail("the signal was lost")
    [guard] = guards
    assert guard.returncode is not None  # it was waited for, and its pipes are closed


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def live() -> None:
        Dying()  # and dies at once
        threading.Event().wait(60)

    with pytest.raises(CancelledError), cancellable():
        live()


def test_a_signal_while_a_record_is_checked_does_not_make_it_a_bad_one(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"format": 1}')
    with pytest.raises(CancelledError), cancellable():
        read_record(tmp_path / "status.json", Status, DamagedError, "", lambda _: stop_us())


def test_a_signal_while_one_job_is_done_ends_the_work_for_all() -> None:
    with pytest.raises(CancelledError), cancellable():
        each_job(["vm1", "vm2"], lambda _: stop_us())


# A signal raises CancelledError in the main thread, which only `run` may end there. In these it
# does not come: the event loop or the library has the signals, or it is another thread.
ELSEWHERE = {
    "cli/execute.py: run",
    "clients/qmp.py: _greeted",
    "daemon",
    "nbd/negotiation.py",
    "nbd/server.py",
    "operations/mount.py: call",
}
WIDE = {"BackyError", "Exception"}


def names(node: ast.AST | None) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} if node else set()


def swallowing(function: ast.AST) -> Iterator[int]:
    """The lines that catch whatever there is, a signal too."""
    for node in ast.walk(function):
        if isinstance(node, ast.Try):
            caught: set[str] = set()
            for handler in node.handlers:
                caught |= names(handler.type)
                if names(handler.type) & WIDE and "CancelledError" not in caught:
                    yield handler.lineno
        elif isinstance(node, ast.Call) and names(node.func) == {"suppress"}:
            yield from (node.lineno for each in node.args if names(each) & WIDE)


def test_no_part_of_a_command_takes_a_signal_for_an_error_of_what_it_does() -> None:
    source, found = Path(package.__file__).parent, set()
    for path in source.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = {
                    each
                    for each in ast.walk(function)
                    if isinstance(each, ast.FunctionDef) and each is not function
                }
                lines = set(swallowing(function)) - {n for each in inner for n in swallowing(each)}
                place = str(path.relative_to(source))
                known = {place, place.split("/", maxsplit=1)[0], f"{place}: {function.name}"}
                if known.isdisjoint(ELSEWHERE):
                    found |= {f"{place}:{line}" for line in lines}
    assert found == set()
