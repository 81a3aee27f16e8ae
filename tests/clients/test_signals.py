"""A signal that stops us at the worst moment is not lost, and leaves nothing open behind it."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from qemu.qmp import QMPClient

from backy.clients.guest_agent import Agent
from backy.clients.qmp import connect
from backy.errors import CancelledError
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
