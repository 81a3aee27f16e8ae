"""A command that runs as a child: nothing of what it says is lost, and no bug of the listener."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from backy.config.settings import Global
from backy.daemon import child
from backy.daemon.child import ChildCommand
from tests.cli.runner import environment
from tests.daemon.machine import Server


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


class Listener:
    """Keeps what it hears, unless it has a bug."""

    def __init__(self, bug: Exception | None = None) -> None:
        self.heard: list[dict[str, Any]] = []
        self._bug = bug

    def hear(self, event: Any) -> None:  # noqa: ANN401 - JSON
        self.heard.append(dict(event))
        if self._bug:
            raise self._bug


def run(command: ChildCommand, listener: Listener) -> int:
    return asyncio.run(command.run(Global(), listener.hear))


def backup(server: Server) -> ChildCommand:
    arguments = ["--config", str(server.path), "backup", "vm1"]
    return ChildCommand(arguments, environment())


def test_every_event_is_passed_on_and_the_exit_code_given(server: Server) -> None:
    server.job("vm1", hooks={"after-backup": {"command": ["seq", "3"]}})
    listener = Listener()
    assert run(backup(server), listener) == 0
    assert [event["event"] for event in listener.heard] == ["note"] * 3 + ["finished"]


def test_the_error_of_a_command_is_kept_and_passed_to_nobody(server: Server) -> None:
    server.job("vm1").unlink()
    listener, command = Listener(), backup(server)
    assert run(command, listener) == 4
    assert "vm1.img" in command.error
    assert not [event for event in listener.heard if event["event"] == "error"]


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
def test_a_bug_of_the_listener_is_raised_once_the_command_has_ended(
    server: Server, kind: type[Exception]
) -> None:
    server.job("vm1")
    listener = Listener(kind("ours"))
    with pytest.raises(kind, match="ours"):
        run(backup(server), listener)
    assert len(server.revisions("vm1")) == 1
    assert len(listener.heard) == 1


def test_a_bug_of_the_listener_does_not_keep_a_command_that_says_much_from_ending(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_LONGEST_EVENT", 2000)  # so little is read ahead
    server.job("vm1", hooks={"after-backup": {"command": ["seq", "100000"]}})
    with pytest.raises(ValueError, match="ours"):
        run(backup(server), Listener(ValueError("ours")))
    assert len(server.revisions("vm1")) == 1
