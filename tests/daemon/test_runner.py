"""A task whose command cannot be run, and a request that meets a bug, stop nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from backy.config.settings import Config, Global
from backy.daemon.child import ChildCommand, Event
from backy.daemon.control import Requests
from backy.daemon.log import open_log
from backy.daemon.planner import Observation
from backy.daemon.runner import TaskRunner
from backy.daemon.state import DaemonState, Setup
from backy.daemon.tasks import FAST, Task
from backy.errors import BackyError
from backy.monitoring.health import Judge, Promise, Server
from backy.monitoring.space import Space

CONFIG = Config.model_validate(
    {
        "schedules": {"often": {"tick": {"interval": "1m", "keep": 3}}},
        "jobs": {"vm1": {"schedule": "often", "source": {"type": "file", "filename": "/vm1"}}},
    }
)


@pytest.fixture
def state(tmp_path: Path) -> DaemonState:
    """A job that was backed up an hour ago, so it is due."""
    now = datetime.now(UTC)
    made = DaemonState(Setup(CONFIG, tmp_path, now))
    made.planner.configure({"vm1": (CONFIG.jobs["vm1"], CONFIG.intervals("vm1"))}, now)
    return made


class Broken(ChildCommand):
    """A command that cannot be seen through to its end."""

    def __init__(self, error: Exception) -> None:
        super().__init__([], {})
        self._error = error

    async def run(self, common: Global, hear: Callable[[Event], None]) -> int:
        raise self._error


@dataclass(frozen=True)
class BrokenRunner(TaskRunner):
    error: Exception

    def start(self, task: Task) -> ChildCommand:
        self.state.children[task.job] = child = Broken(self.error)
        return child


@pytest.mark.parametrize("error", [OSError("no memory"), ValueError("ours"), RuntimeError("ours")])
def test_what_cannot_be_run_is_tried_again_later_and_a_bug_is_raised(
    state: DaemonState, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    runner = BrokenRunner(state, open_log(as_json=True), error)
    now = datetime.now(UTC)
    run = runner.run(Task("vm1", "backup", now, FAST))
    if isinstance(error, OSError):
        asyncio.run(run)
        assert json.loads(capsys.readouterr().err.splitlines()[-1])["error"] == "no memory"
    else:
        with pytest.raises(type(error), match="ours"):
            asyncio.run(run)
    assert state.children == {}
    hour = timedelta(hours=1)
    state.planner.update("vm1", Observation({"tick": now - hour}, now - hour), now)
    wake = state.planner.wake()
    assert wake
    assert wake >= now + timedelta(minutes=2)


def test_what_has_taken_half_of_its_time_is_told_to_the_check(state: DaemonState) -> None:
    """With what a backup has dealt with, its time grows."""
    child = state.children["vm1"] = ChildCommand([], {})
    state.planner.running["vm1"] = Task("vm1", "backup", datetime.now(UTC), FAST)
    requests = Requests(state, open_log(as_json=True), no_reload)

    def told() -> Mapping[str, str]:
        reply = asyncio.run(requests.answer({"do": "promises"}))
        return cast("Mapping[str, str]", reply["slow"])

    assert told() == {}
    child._began -= 3000
    assert told() == {"vm1": "backup has been running for 50 min 0 s, 1 h 0 min allowed"}
    server = Server(is_running=True, space=Space(100, 50), slow=told())
    _, text = Judge(datetime.now(UTC)).report([], {"vm1": Promise(60)}, server)
    assert "vm1: " in text
    assert "backup has been running for 50 min 0 s" in text
    child._progress = {"done": 3 * 3600 * 128 * 1024}  # type: ignore[assignment]
    assert told() == {}
    state.planner.running["vm1"] = Task("vm1", "purge", datetime.now(UTC), FAST)
    assert told() == {}
    child._began -= 50_000
    assert list(told()) == ["vm1"]


async def no_reload() -> str:
    raise ZeroDivisionError


class Blind(DaemonState):
    """Cannot look at a job."""

    async def look_at(self, jobs: Iterable[str]) -> None:
        raise KeyError


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param({"do": "reload"}, id="reload"),
        pytest.param({"do": "look", "job": "vm1"}, id="look"),
    ],
)
def test_a_bug_in_an_answer_is_logged_with_its_traceback_and_told(
    state: DaemonState, capsys: pytest.CaptureFixture[str], request_: Mapping[str, Any]
) -> None:
    log = open_log(as_json=True)
    requests = Requests(Blind(state.setup, state.planner), log, no_reload)
    with pytest.raises(BackyError, match="the daemon has a bug") as caught:
        asyncio.run(requests.answer(request_))
    assert "journalctl" in caught.value.hint
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"]) == ("a bug", "error")
    assert "Traceback" in line["exception"]
