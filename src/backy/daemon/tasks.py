"""The tasks of the daemon: one command for one job, and a table with a row for each verb.

The table says when a task is due, what it waits for and how it is started. A new verb is a new row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final

from backy.config.settings import Job, Schedule, Scrub
from backy.model.answers import PoolName
from backy.model.revision import Revision, is_ahead
from backy.policy.retention import expiries
from backy.repository.status import Status

FAST: Final = "fast"
SLOW: Final = "slow"
SLOW_SECONDS = 600  # a job whose last backup took this long uses the slow pool
_SCRUBS = 15  # runs in the time in which each byte is to be read
_SOON, _LATER = timedelta(minutes=2), timedelta(hours=1)


class Rank(IntEnum):
    """Which tasks start first. Background tasks leave half of the slots of a pool to the others."""

    BY_HAND = 0
    SCHEDULED = 1
    BACKGROUND = 2


@dataclass(frozen=True, slots=True)
class Task:
    """One command for one job. `due` is when it should start."""

    job: str
    verb: str
    due: datetime
    pool: PoolName
    tags: frozenset[str] = frozenset()
    is_by_hand: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything from which the due times of a job follow.

    `history` is ascending. `removed` is when the oldest and the newest revision in the trash were
    removed; None if it is empty.
    """

    settings: Job
    schedule: Schedule
    history: Sequence[Revision]
    status: Status
    removed: tuple[datetime, datetime] | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Verb:
    """A row of the table: the tasks of one command.

    `due` gives the time at which a task is due, or None for no task; without it the schedule of
    the job decides. `pool` is missing if the duration of the job's last backup decides. `options`
    follow the name of the job in the command line. `uses_limits`: a task counts for the limits of
    its job. `retry` is how long a task that failed waits. `is_counted`: status.json has a count of
    the failures.
    """

    name: str
    rank: Rank = Rank.BACKGROUND
    due: Callable[[Situation], datetime | None] | None = None
    pool: PoolName | None = FAST
    options: Callable[[Task, Job, Schedule], Sequence[str]] = lambda *_: ()
    uses_limits: bool = False
    retry: timedelta = _LATER
    is_counted: bool = False

    def pool_for(self, status: Status) -> PoolName:
        """The pool for the next task of a job with this status."""
        return self.pool or (SLOW if status.seconds >= SLOW_SECONDS else FAST)

    def command(self, task: Task, settings: Job, schedule: Schedule) -> list[str]:
        """The command line that does a task, as an operator would type it."""
        return [self.name, task.job, *self.options(task, settings, schedule)]


def _expire_due(situation: Situation) -> datetime | None:
    """At most once an hour: each removal costs a purge, which reads all indexes of the history."""
    settings, now = situation.settings, situation.now
    if not settings.expire or not expiries(
        situation.history, situation.schedule, now, settings.minimum
    ):
        return None
    last = situation.removed[1] if situation.removed else now - _LATER
    return last + _LATER if now - _LATER < last <= now else now


def _purge_due(situation: Situation) -> datetime | None:
    if not situation.removed:
        return None
    oldest, now = situation.removed[0], situation.now
    if is_ahead(oldest, now):
        return now  # a purge dates it right, and keeps it
    return oldest + timedelta(seconds=situation.settings.trash)


def _scrub_due(situation: Situation) -> datetime | None:
    """When to scrub next: soon if the last run left something that is due by then."""
    scrub, last, now = situation.settings.scrub, situation.status.scrubbed, situation.now
    if not scrub or not situation.history:
        return None
    if not last:
        return now
    within = timedelta(seconds=scrub.within)
    has_more = last.oldest is not None and last.oldest <= last.time - within / 2
    soon = timedelta(seconds=_scrub_seconds(scrub, situation.schedule))
    return min(last.time, now) + (soon if has_more else within / _SCRUBS)


def _scrub_seconds(scrub: Scrub, schedule: Schedule) -> int:
    """How long one scrub may take: its job's backups wait for it, so it must be short."""
    shortest = min(rule.interval for rule in schedule.values())
    return max(1, min(scrub.max_duration, shortest // 4))


def _scrub_options(_task: Task, settings: Job, schedule: Schedule) -> Sequence[str]:
    if not (scrub := settings.scrub):
        return ()
    rate = ["--rate", str(scrub.rate)] if scrub.rate else []
    duration = ["--max-duration", f"{_scrub_seconds(scrub, schedule)}s"]
    return ["--within", f"{scrub.within}s", *duration, *rate]


BACKUP = "backup"
VERBS: Mapping[str, Verb] = {
    row.name: row
    for row in (
        # A failed backup waits by itself, longer each time: see schedule.backoff_seconds.
        Verb(
            BACKUP,
            Rank.SCHEDULED,
            pool=None,
            options=lambda task, *_: [part for tag in sorted(task.tags) for part in ("--tag", tag)],
            uses_limits=True,
            retry=_SOON,
            is_counted=True,
        ),
        Verb("expire", due=_expire_due),
        Verb(
            "purge",
            due=_purge_due,
            options=lambda _, settings, *__: ["--older-than", f"{settings.trash}s"],
        ),
        Verb("scrub", due=_scrub_due, pool=SLOW, options=_scrub_options),
    )
}
