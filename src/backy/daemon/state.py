"""What the daemon has in memory, and how it looks to those who ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from backy.config.settings import Config, Scrub
from backy.daemon.child import Child
from backy.daemon.planner import FAST, SLOW, Planner, Task
from backy.errors import StoreError
from backy.monitoring.metrics import Sample, of_job, of_pool, of_server
from backy.monitoring.overview import Row, iso, overdue_seconds, row
from backy.monitoring.space import space
from backy.repository.summary import Summary


@dataclass(frozen=True, slots=True)
class Setup:
    """The configuration that is in force. `problem` says why the files now are not."""

    config: Config
    base: Path
    loaded: datetime
    problem: str = ""


@dataclass(slots=True)
class State:
    """Everything. `summaries` and `fingerprints` have the jobs that were looked at."""

    setup: Setup
    planner: Planner = field(default_factory=Planner)
    children: dict[str, Child] = field(default_factory=dict)
    summaries: dict[str, Summary] = field(default_factory=dict)
    fingerprints: dict[str, tuple[int, ...]] = field(default_factory=dict)


def rows(state: State, now: datetime) -> Iterator[Row]:
    """The same of all jobs, and what the daemon does and plans."""
    waiting = {task.job: task for task in state.planner.waiting.values()}
    for job in state.setup.config.jobs:
        schedule = state.setup.config.intervals(job)
        said = row(state.summaries.get(job, Summary(job)), schedule, now)
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


def pools(state: State) -> dict[str, dict[str, int]]:
    """How many tasks of each pool may run at once, how many do, and how many wait."""
    planner = state.planner
    queued = [task.pool for task in list(planner.waiting.values())]
    return {
        pool: {"slots": planner.slots, "in_use": planner.in_use(pool), "queued": queued.count(pool)}
        for pool in (FAST, SLOW)
    }


def samples(state: State) -> Iterator[Sample]:
    """What the metrics show."""
    setup, now = state.setup, datetime.now(UTC)
    for summary in list(state.summaries.values()):
        if job := setup.config.jobs.get(summary.job):
            overdue = overdue_seconds(summary, setup.config.intervals(summary.job), now)
            yield of_job(summary, overdue, _scrub_overdue_seconds(summary, job.scrub, now), now)
    for name, pool in pools(state).items():
        yield of_pool(name, pool)
    left = None
    with suppress(StoreError):
        left = space(setup.base)
    yield from of_server(left, setup.problem, setup.loaded)


def _scrub_overdue_seconds(summary: Summary, scrub: Scrub | None, now: datetime) -> float | None:
    if not scrub or not summary.unread_since:
        return None
    return max(0.0, (now - summary.unread_since).total_seconds() - scrub.within)
