"""What may start now. Decides, and does nothing: `now` is an argument, the daemon is the edge.

A job waits for its time in a heap, then among the tasks that wait for a slot. First come runs
asked for by hand, then backups, those first that are most overdue against their interval, then
background work. A task that waits for its storage's limit does not hold up those behind it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from backy.config.settings import Job, Schedule
from backy.policy import schedule
from backy.repository.status import Status

FAST, SLOW = "fast", "slow"
SLOW_SECONDS = 600  # a job whose last backup took that long goes to the slow pool
BACKUP, EXPIRE, PURGE, SCRUB = "backup", "expire", "purge", "scrub"

_MOST_VOID = 16  # entries of the heap for each job; what was planned anew stays until it is due
_Entry = tuple[datetime, int, str, str]  # due, serial of the plan, job, verb


@dataclass(frozen=True, slots=True)
class Known:
    """What a job's repository says. `background` has when each of its background tasks is due."""

    last_by_tag: Mapping[str, datetime] = field(default_factory=dict)
    newest: datetime | None = None
    status: Status = field(default_factory=Status)
    background: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """One command to start. `due` is when it should have been started."""

    job: str
    verb: str
    due: datetime
    pool: str
    tags: frozenset[str] = frozenset()
    is_by_hand: bool = False


@dataclass(slots=True)
class _Plan:
    """A job as it is configured, and what is known of it."""

    settings: Job
    tags: Schedule
    spread: int
    since: datetime
    serial: int = 0  # of what is in the heap; older entries are void
    known: Known = field(default_factory=Known)
    next: schedule.Run | None = None
    not_before: dict[str, datetime] = field(default_factory=dict)
    interval: int = 1  # seconds, the smallest
    expected: float = 0  # when there should have been a newer revision, in seconds since 1970


class Planner:
    """All jobs of one daemon, what waits and what runs; one task of a job at a time."""

    def __init__(self) -> None:
        self.slots = 1
        self.limits: Mapping[str, int] = {}
        self.running: dict[str, Task] = {}
        self.waiting: dict[tuple[str, str], Task] = {}
        self._plans: dict[str, _Plan] = {}
        self._heap: list[_Entry] = []
        self._serial = itertools.count()

    def configure(self, jobs: Mapping[str, tuple[Job, Schedule]], now: datetime) -> list[str]:
        """Plan these jobs and no others; give those that are new or changed: `learn` them.

        What runs goes on; what waits of a job that is gone does not start.
        """
        for job in self._plans.keys() - jobs.keys():
            self._forget(job)
        news = []
        for job, (settings, tags) in jobs.items():
            old = self._plans.get(job)
            if old and (old.settings, old.tags) == (settings, tags):
                continue
            since = old.since if old else now
            self._forget(job)
            self._plans[job] = _Plan(settings, tags, schedule.spread(job, tags), since)
            news.append(job)
        return news

    def _forget(self, job: str) -> None:
        self._plans.pop(job, None)
        self._drop(job)
        self.waiting.pop((job, BACKUP), None)

    def _drop(self, job: str) -> None:
        """Forget what waits, but for a run that was asked for by hand."""
        for verb in (BACKUP, EXPIRE, PURGE, SCRUB):
            task = self.waiting.get((job, verb))
            if task and not task.is_by_hand:
                del self.waiting[job, verb]

    def learn(self, job: str, known: Known, now: datetime) -> None:
        """Plan a job anew from what its repository says now; a run asked for by hand stays.

        Background work of a paused job pauses, too.
        """
        plan = self._plans.get(job)
        if not plan:
            return
        plan.known, plan.serial = known, next(self._serial)
        plan.interval = min(each.interval for each in plan.tags.values())
        last = known.newest.timestamp() + plan.interval if known.newest else None
        plan.expected = plan.since.timestamp() if last is None else last
        self._drop(job)
        plan.next = None if known.status.paused else self._next_run(plan, now)
        times = {BACKUP: plan.next.time, **known.background} if plan.next else {}
        for verb, due in times.items():
            time = max(due, plan.not_before.get(verb, due))
            heapq.heappush(self._heap, (time, plan.serial, job, verb))
        if len(self._heap) > _MOST_VOID * len(self._plans):
            live = [each for each in self._heap if self._is_live(each)]
            heapq.heapify(live)
            self._heap = live

    def _is_live(self, entry: _Entry) -> bool:
        plan = self._plans.get(entry[2])
        return plan is not None and plan.serial == entry[1]

    def _next_run(self, plan: _Plan, now: datetime) -> schedule.Run:
        known, status = plan.known, plan.known.status
        has_history = known.newest is not None
        run = schedule.next_run(plan.tags, plan.spread, known.last_by_tag, has_history, now)
        if not status.errors or not status.failed:
            return run
        # A clock that went back must not make a backoff of hours one of years.
        wait = timedelta(seconds=schedule.backoff_seconds(status.errors))
        return schedule.Run(min(status.failed, now) + wait, run.tags)

    def postpone(self, job: str, verb: str, until: datetime) -> None:
        """From the next `learn` on, do not try again what failed, or what somebody else does."""
        if plan := self._plans.get(job):
            plan.not_before[verb] = until

    def request(self, job: str, now: datetime) -> bool:
        """Have a backup go first, paused or not; False where there is no such job."""
        plan = self._plans.get(job)
        if plan:
            self.waiting[job, BACKUP] = self._task(plan, job, BACKUP, now, is_by_hand=True)
        return plan is not None

    def replan(self, now: datetime) -> None:
        """Plan all jobs anew from what is known: the clock was set."""
        self._heap.clear()
        for job, plan in self._plans.items():
            plan.not_before.clear()
            self.learn(job, plan.known, now)

    def wake(self) -> datetime | None:
        """When the next task will be due, if none is taken or finished before."""
        return self._heap[0][0] if self._heap else None

    def take(self, now: datetime) -> Iterator[Task]:
        """The tasks that may start now; they count as running until they are `finish`ed."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_live(entry):
                due, _, job, verb = entry
                task = self._task(self._plans[job], job, verb, due)
                self.waiting.setdefault((job, verb), task)
        free = {pool: self.slots - self.in_use(pool) for pool in (FAST, SLOW)}
        if not self.waiting or not any(free.values()):
            return
        used = Counter(limit for task in self.running.values() for limit in self._limits(task))
        time = now.timestamp()
        for task in sorted(self.waiting.values(), key=lambda task: self._rank(task, time)):
            if self._may_start(task, free, used):
                del self.waiting[task.job, task.verb]
                self.running[task.job] = task
                free[task.pool] -= 1
                used.update(self._limits(task))
                yield task

    def _task(
        self, plan: _Plan, job: str, verb: str, due: datetime, *, is_by_hand: bool = False
    ) -> Task:
        if verb != BACKUP:
            return Task(job, verb, due, SLOW if verb == SCRUB else FAST)
        tags = plan.next.tags if plan.next else self._next_run(plan, due).tags
        pool = SLOW if plan.known.status.seconds >= SLOW_SECONDS else FAST
        return Task(job, verb, due, pool, tags, is_by_hand)

    def _limits(self, task: Task) -> Iterable[str]:
        """What it counts against: only what reads the source does."""
        plan = self._plans.get(task.job)
        return set(plan.settings.limits) if plan and task.verb == BACKUP else ()

    def _may_start(self, task: Task, free: Mapping[str, int], used: Mapping[str, int]) -> bool:
        if task.job in self.running or not free[task.pool]:
            return False
        if task.verb != BACKUP and free[task.pool] <= self.slots // 2 and self.slots > 1:
            return False  # half of the slots are left to backups that will come
        return all(used[limit] < self.limits.get(limit, 1) for limit in self._limits(task))

    def _rank(self, task: Task, now: float) -> tuple[int, float]:
        if task.is_by_hand:
            return 0, task.due.timestamp()
        if task.verb != BACKUP:
            return 2, task.due.timestamp()
        plan = self._plans[task.job]
        return 1, (plan.expected - now) / plan.interval

    def finish(self, job: str) -> None:
        """A task has ended, and gave its slot back; `learn` what came of it."""
        self.running.pop(job, None)

    def in_use(self, pool: str) -> int:
        """How many slots of a pool are taken."""
        return sum(task.pool == pool for task in list(self.running.values()))

    def next_run(self, job: str) -> schedule.Run | None:
        """When a job is backed up next, with which tags; None where it is paused or unknown."""
        return plan.next if (plan := self._plans.get(job)) else None
