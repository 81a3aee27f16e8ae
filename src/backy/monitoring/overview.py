"""What is shown of a job by `backy status`, as far as its repository alone tells it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from backy.config.settings import Config, Schedule
from backy.policy.schedule import sla_seconds
from backy.repository.summary import Facts

Row = dict[str, Any]


def row(facts: Facts, schedule: Schedule | None, now: datetime) -> Row:
    """What can be told of a job by its repository alone; times as in JSON, spans in seconds."""
    status, newest = facts.status, facts.newest
    state = "paused" if status.paused else "failed" if status.errors else "idle"
    return {
        "job": facts.job,
        "state": state if newest or status.errors or status.paused else "new",
        "last": iso(newest.time) if newest else None,
        "next": None,
        "overdue_seconds": overdue_seconds(facts, schedule, now) if schedule else 0.0,
        "revisions": len(facts.revisions),
        "seconds": status.seconds,
        "errors": status.errors,
        "error": facts.problem or status.error,
    }


def iso(time: datetime) -> str:
    """A time as JSON has it here, in whole seconds."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def overdue_seconds(facts: Facts, schedule: Schedule, now: datetime) -> float:
    """How much older the newest revision is than it may be; of none, since the last failure."""
    if not facts.newest:
        return (now - facts.status.failed).total_seconds() if facts.status.failed else 0.0
    return max(0.0, (now - facts.newest.time).total_seconds() - sla_seconds(schedule))


def promised(config: Config) -> dict[str, list[int | None]]:
    """What check.Promise is made of, for each job: its smallest interval, and that of its scrub."""
    return {
        job: [
            min(each.interval for each in config.intervals(job).values()),
            settings.scrub.within if settings.scrub else None,
        ]
        for job, settings in config.jobs.items()
    }
