"""What may start now. It decides and does nothing: `now` is an argument, the daemon does the rest.

A job waits in a heap until something of it is due, and then among the tasks that wait for a slot.
The order is: tasks asked for by hand, backups (the most overdue first, measured by their interval),
background work. A task that waits for a limit does not hold up those behind it.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from backy.config.settings import Job, Schedule
from backy.daemon.tasks import FAST, SLOW, VERBS, Rank, Task, Verb
from backy.model.answers import PoolUse
from backy.policy import schedule
from backy.repository.status import Status

# Compact the heap beyond this many entries for each job: stale ones stay until they are due.
_LARGEST_HEAP = 16
_Entry = tuple[datetime, int, str, str]  # due, serial of the plan, job, verb
Around = Callable[[str, str], AbstractContextManager[None]]  # the job, the step


@dataclass(frozen=True, slots=True)
class Observation:
    """What the repository of a job says. `due` has the due times of its background tasks.

    `slowest` is how long the longest of the kept backups took, in seconds.
    """

    last_by_tag: Mapping[str, datetime] = field(default_factory=dict)
    newest: datetime | None = None
    status: Status = field(default_factory=Status)
    due: Mapping[str, datetime] = field(default_factory=dict)
    slowest: float = 0


@dataclass(slots=True)
class _Plan:
    """A job as it is configured and was observed."""

    settings: Job
    tags: Schedule
    spread: int
    since: datetime
    serial: int = 0  # entries of the heap with a lower one are stale
    observation: Observation = field(default_factory=Observation)
    next: schedule.Run | None = None
    not_before: dict[str, datetime] = field(default_factory=dict)
    interval: int = 1  # seconds, the shortest
    expected: float = 0  # when there should have been a newer revision, in seconds since 1970


class Planner:
    """All jobs of one daemon, the tasks that wait and those that run; one at a time for each job.

    Each of the two pools has `slots` slots. `limits` are those of the configuration.
    """

    def __init__(self, verbs: Mapping[str, Verb] = VERBS) -> None:
        self.verbs = verbs
        self.slots = 1
        self.limits: Mapping[str, int] = {}
        self.running: dict[str, Task] = {}
        self.waiting: dict[tuple[str, str], Task] = {}
        self._plans: dict[str, _Plan] = {}
        self._heap: list[_Entry] = []
        self._serial = itertools.count()

    def configure(self, jobs: Mapping[str, tuple[Job, Schedule]], now: datetime) -> list[str]:
        """Plan these jobs and no others; give those that are new or changed: `update` them.

        What runs goes on. What waits for a job that is gone does not start.
        """
        for job in self._plans.keys() - jobs.keys():
            self._forget(job)
        changed = []
        for job, (settings, tags) in jobs.items():
            old = self._plans.get(job)
            if old and (old.settings, old.tags) == (settings, tags):
                continue
            since = old.since if old else now
            self._forget(job)
            self._plans[job] = _Plan(settings, tags, schedule.spread(job, tags), since)
            changed.append(job)
        return changed

    def _forget(self, job: str) -> None:
        self._plans.pop(job, None)
        for verb in self.verbs:
            self.waiting.pop((job, verb), None)

    def update(self, job: str, observation: Observation | None, now: datetime) -> None:
        """Plan a job by what its repository says now; tasks asked for by hand stay.

        None means that nobody can tell: then it is backed up at its due times, unless it was
        paused. While a job is paused, so is its background work.
        """
        plan = self._plans.get(job)
        if not plan:
            return
        observation = observation or Observation(status=plan.observation.status)
        plan.observation, plan.serial = observation, next(self._serial)
        plan.interval = min(rule.interval for rule in plan.tags.values())
        newest = observation.newest
        plan.expected = newest.timestamp() + plan.interval if newest else plan.since.timestamp()
        run = plan.next = None if observation.status.paused else self._next_run(plan, now)
        for verb in self.verbs:
            task = self.waiting.get((job, verb))
            if task and not task.is_by_hand:
                del self.waiting[job, verb]
        for verb, row in self.verbs.items():
            due = observation.due.get(verb) if row.due else run and run.time
            if run and due:
                time = max(due, plan.not_before.get(verb, due))
                heapq.heappush(self._heap, (time, plan.serial, job, verb))
        if len(self._heap) > _LARGEST_HEAP * len(self._plans):
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)

    def _is_current(self, entry: _Entry) -> bool:
        plan = self._plans.get(entry[2])
        return plan is not None and plan.serial == entry[1]

    def _next_run(self, plan: _Plan, now: datetime) -> schedule.Run:
        observation, status = plan.observation, plan.observation.status
        has_history = observation.newest is not None
        last = observation.last_by_tag
        run = schedule.next_run(plan.tags, plan.spread, last, has_history, now)
        if not status.errors or not status.failed:
            return run
        # If the clock was set back since, a wait of hours must not become one of years.
        wait = timedelta(seconds=schedule.backoff_seconds(status.errors))
        return schedule.Run(min(status.failed, now) + wait, run.tags)

    def postpone(self, job: str, verb: str, until: datetime) -> None:
        """From the next `update` on, do not start this task before `until`."""
        if plan := self._plans.get(job):
            plan.not_before[verb] = until

    def request(self, job: str, verb: str, now: datetime) -> bool:
        """Have a task start before all others, even if the job is paused; False without the job."""
        if job in self._plans:
            self.waiting[job, verb] = self._task(job, verb, now, is_by_hand=True)
        return job in self._plans

    def replan(self, now: datetime, around: Around) -> None:
        """Plan all jobs again, because the clock was set; the work for each is `around` it."""
        self._heap.clear()
        for job, plan in self._plans.items():
            plan.not_before.clear()
            with around(job, "plan"):
                self.update(job, plan.observation, now)

    def wake(self) -> datetime | None:
        """When the next task is due, unless one is requested or finished before."""
        return self._heap[0][0] if self._heap else None

    def take(self, now: datetime) -> Iterator[Task]:
        """The tasks that may start now; they count as running until they are `finish`ed."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._is_current(entry):
                due, _, job, verb = entry
                self.waiting.setdefault((job, verb), self._task(job, verb, due))
        free = {pool: self.slots - self.use(pool)["in_use"] for pool in (FAST, SLOW)}
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

    def _task(self, job: str, verb: str, due: datetime, *, is_by_hand: bool = False) -> Task:
        plan, row = self._plans[job], self.verbs[verb]
        tags = frozenset[str]()
        if not row.due:
            tags = plan.next.tags if plan.next else self._next_run(plan, due).tags
        return Task(job, verb, due, row.pool_for(plan.observation.status), tags, is_by_hand)

    def _limits(self, task: Task) -> Iterable[str]:
        """The limits for which a task counts."""
        plan = self._plans.get(task.job)
        return set(plan.settings.limits) if plan and self.verbs[task.verb].uses_limits else ()

    def _may_start(self, task: Task, free: Mapping[str, int], used: Mapping[str, int]) -> bool:
        if task.job in self.running or not free[task.pool]:
            return False
        is_background = self.verbs[task.verb].rank is Rank.BACKGROUND and not task.is_by_hand
        if is_background and free[task.pool] <= self.slots // 2 and self.slots > 1:
            return False
        return all(used[limit] < self.limits.get(limit, 1) for limit in self._limits(task))

    def _rank(self, task: Task, now: float) -> tuple[Rank, float]:
        """The order in which tasks start; backups by how overdue they are, in intervals."""
        rank = Rank.BY_HAND if task.is_by_hand else self.verbs[task.verb].rank
        if rank is not Rank.SCHEDULED:
            return rank, task.due.timestamp()
        plan = self._plans[task.job]
        return rank, (plan.expected - now) / plan.interval

    def finish(self, job: str) -> None:
        """The task of a job has ended and gives its slot back; `update` the job before."""
        self.running.pop(job, None)

    def slowest(self, job: str) -> float:
        """How long the longest of the kept backups of a job took, in seconds."""
        return plan.observation.slowest if (plan := self._plans.get(job)) else 0

    def use(self, pool: str) -> PoolUse:
        """How full a pool is."""
        running, waiting = (
            sum(task.pool == pool for task in list(tasks.values()))
            for tasks in (self.running, self.waiting)
        )
        return PoolUse(slots=self.slots, in_use=running, queued=waiting)

    def next_run(self, job: str) -> schedule.Run | None:
        """When a job is backed up next, with which tags; None if it is paused or unknown."""
        return plan.next if (plan := self._plans.get(job)) else None
