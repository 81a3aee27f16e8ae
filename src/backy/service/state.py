"""What the daemon has in memory, and how it looks to those who ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backy import __version__
from backy.config import Config
from backy.errors import StoreError
from backy.facts import Facts
from backy.service.children import Child
from backy.service.metrics import JobView, Pool, View
from backy.service.planner import FAST, SLOW, Planner, Task
from backy.service.row import Row, iso, overdue_seconds, row
from backy.space import space


@dataclass(frozen=True, slots=True)
class Setup:
    """The configuration that is in force. `problem` says why the files now are not."""

    config: Config
    base: Path
    loaded: datetime
    problem: str = ""


@dataclass(slots=True)
class State:
    """All of it. A job is in `facts`, and in `seen` its `times`, once it was looked at."""

    setup: Setup
    planner: Planner = field(default_factory=Planner)
    children: dict[str, Child] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    seen: dict[str, tuple[int, ...]] = field(default_factory=dict)


def rows(state: State, now: datetime) -> Iterator[Row]:
    """The same of all jobs, and what the daemon does and plans."""
    waiting = {task.job: task for task in state.planner.waiting.values()}
    for job in state.setup.config.jobs:
        schedule = state.setup.config.intervals(job)
        said = row(state.facts.get(job, Facts(job)), schedule, now)
        if plan := state.planner.next_run(job):
            said |= {"next": iso(plan.time), "tags": sorted(plan.tags)}
        if task := state.planner.running.get(job):
            child = state.children.get(job)
            said |= _task_said("running", task) | (child.said() if child else {})
        elif task := waiting.get(job):
            said |= _task_said("waiting", task)
        yield said


def _task_said(state: str, task: Task) -> Row:
    return {"state": state, "verb": task.verb, "pool": task.pool, "due": iso(task.due)}


def pools(state: State) -> dict[str, Pool]:
    """How full the pools are."""
    planner = state.planner
    queued = [task.pool for task in list(planner.waiting.values())]
    return {
        pool: Pool(planner.slots, planner.in_use(pool), queued.count(pool)) for pool in (FAST, SLOW)
    }


def view(state: State) -> View:
    """What the metrics show."""
    config, now = state.setup.config, datetime.now(UTC)
    left = None
    with suppress(StoreError):
        left = space(state.setup.base)
    return View(
        now=now,
        jobs=[
            _job_view(config, facts, now)
            for facts in list(state.facts.values())
            if facts.job in config.jobs
        ],
        pools=pools(state),
        free=left.free if left else None,
        capacity=left.capacity if left else None,
        configuration_ok=not state.setup.problem,
        loaded=state.setup.loaded,
        version=__version__,
    )


def _job_view(config: Config, facts: Facts, now: datetime) -> JobView:
    scrub, since = config.jobs[facts.job].scrub, facts.unread_since
    late = None
    if scrub and since:
        late = max(0.0, (now - since - timedelta(seconds=scrub.within)).total_seconds())
    overdue = overdue_seconds(facts, config.intervals(facts.job), now)
    return JobView(facts, overdue, late, facts.status.paused is not None)
