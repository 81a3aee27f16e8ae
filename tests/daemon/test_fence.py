"""A bug that shows with one job, or one poisoned repository, stops that job's part and no other."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backy.config.settings import Interval, Job, Schedule
from backy.daemon.daemon import Daemon
from backy.daemon.log import open_log
from backy.daemon.planner import Observation, Planner
from backy.daemon.state import Fence
from backy.daemon.tasks import VERBS, Situation, Task, Verb
from tests.daemon.machine import Server
from tests.daemon.test_daemon import OFTEN, runs_on
from tests.programs import marked


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with marked(str(tmp_path)):
        made = Server(tmp_path)
        made.configure(OFTEN)
        for job in ("good", "poor"):
            made.job(job, schedule="often", scrub=True)
        yield made


def test_no_poison_in_a_repository_stops_planning_or_keeps_a_slot(server: Server) -> None:
    """The server has one slot in each pool."""
    server.ok("backup", "poor")
    (server.base / "poor" / "trash" / "99991231T235959Z-zzzz").mkdir(parents=True)
    (server.base / "poor" / "trash" / "00010101T000000Z-zzzz").mkdir()
    (server.base / "poor" / "status.json").write_text(
        '{"format": 1, "scrubbed": {"time": "0001-01-01T00:00:00Z", "total": 1, "read": 1,'
        ' "oldest": "0001-01-01T00:00:00Z"}}'
    )
    with server.daemon() as daemon:
        runs_on(daemon, "good", 1)
        runs_on(daemon, "poor", 1)
        assert server.row("poor")["error"] == ""


def sick(situation: Situation) -> datetime | None:
    """A bug, where anything of job "poor" is looked at."""
    if "poor" in str(situation.settings.source):
        raise ZeroDivisionError
    return None


def sick_options(task: Task, _settings: Job, _schedule: Schedule) -> list[str]:
    if task.job == "poor":
        raise ZeroDivisionError
    return []


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        await asyncio.sleep(0.1)
    pytest.fail("it never came to be")


def with_sick(server: Server, verb: Verb, then: Callable[[Daemon], Any]) -> Any:  # noqa: ANN401
    """What `then` says of a daemon with this task, once both jobs had their chances."""

    async def run() -> Any:  # noqa: ANN401
        daemon = Daemon(server.path, None, open_log(as_json=True))
        daemon._state.planner.verbs = {**VERBS, verb.name: verb}
        running = asyncio.create_task(daemon.run())
        try:
            await until(lambda: len(server.revisions("good")) > 1)
            await until(lambda: bool(daemon._state.fence.bug("poor")))
            return await asyncio.to_thread(then, daemon)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await running

    return asyncio.run(run())


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param(Verb("expire", due=sick), id="look"),
        pytest.param(Verb("backup", pool=None, options=sick_options), id="start"),
    ],
)
def test_a_bug_with_one_job_is_logged_and_told_and_the_others_run(
    server: Server, capfd: pytest.CaptureFixture[str], verb: Verb
) -> None:
    def said(daemon: Daemon) -> tuple[dict[str, Any], str]:
        assert not daemon._state.planner.running.get("poor")
        text = daemon._metrics.text().decode()
        assert 'backy_job_unreadable{name="poor"} 1\n' in text
        assert 'backy_job_unreadable{name="good"} 0\n' in text
        return server.row("poor"), server.run_program("check", "--sla", "9999").out

    row, checked = with_sick(server, verb, said)
    assert row["state"] == "broken"
    assert "ZeroDivisionError" in row["error"]
    critical = [line for line in checked.splitlines() if line.startswith("CRITICAL")]
    assert [line.split(":")[0] for line in critical] == ["CRITICAL poor"]
    assert "a bug in backy: ZeroDivisionError" in critical[0]
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    bugs = [line for line in lines if line["event"] == "a bug"]
    assert {line["job"] for line in bugs} == {"poor"}
    assert "Traceback" in bugs[0]["exception"]
    assert len({line["step"] for line in bugs}) == len(bugs)  # told once, not at each look
    if verb.due:  # what cannot be looked at is still backed up
        assert server.revisions("poor")


def test_a_bug_is_forgotten_when_its_step_works_again() -> None:
    fence = Fence(open_log(as_json=True))
    for step in ("look", "plan"):
        with fence.around("vm1", step):
            raise KeyError(step)
    with fence.around("vm1", "look"):
        pass
    assert (fence.bug("vm1"), fence.bug("vm2")) == ("a bug in backy: KeyError('plan')", "")
    fence.forget("vm1")
    assert fence.bug("vm1") == ""


def test_all_jobs_are_planned_again_when_the_clock_was_set_though_one_has_a_bug() -> None:
    now = datetime.now(UTC)
    rules = {"tick": Interval(interval=60, keep=3)}
    settings = Job(schedule="often", source={"type": "file"})
    planner, fence = Planner(), Fence(open_log(as_json=True))
    jobs = ["first", "poor", "last"]
    for job in planner.configure(dict.fromkeys(jobs, (settings, rules)), now):
        planner.update(job, Observation(), now)
    planner._plans["poor"].observation = Observation({"tick": now.replace(tzinfo=None)}, now)
    planner.replan(now, fence.around)
    due = {task.job for minutes in (1, 2) for task in take(planner, now, minutes)}
    assert due >= {"first", "last"}
    assert "TypeError" in fence.bug("poor")
    planner.update("poor", None, now)  # nobody can tell
    assert {task.job for task in take(planner, now, 3)} >= {"poor"}


def take(planner: Planner, now: datetime, minutes: int) -> list[Task]:
    taken = list(planner.take(now + timedelta(minutes=minutes)))
    for task in taken:
        planner.finish(task.job)
    return taken
