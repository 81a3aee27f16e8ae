"""What is shown of a job by `backy status`, as far as its repository alone tells it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from backy.config.settings import Config, Schedule
from backy.policy.schedule import sla_seconds
from backy.repository.summary import Summary

Row = dict[str, Any]


def row(summary: Summary, schedule: Schedule | None, now: datetime) -> Row:
    """What can be told of a job by its repository alone; times as in JSON, spans in seconds."""
    status, newest = summary.status, summary.newest
    state = "paused" if status.paused else "failed" if status.errors else "idle"
    return {
        "job": summary.job,
        "state": state if newest or status.errors or status.paused else "new",
        "last": iso(newest.time) if newest else None,
        "next": None,
        "overdue_seconds": overdue_seconds(summary, schedule, now) if schedule else 0.0,
        "revisions": len(summary.revisions),
        "seconds": status.seconds,
        "errors": status.errors,
        "error": summary.problem or status.error,
    }


def iso(time: datetime) -> str:
    """A time as JSON has it here, in whole seconds."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def overdue_seconds(summary: Summary, schedule: Schedule, now: datetime) -> float:
    """How much older the newest revision is than it may be; of none, since the last failure."""
    if not summary.newest:
        return (now - summary.status.failed).total_seconds() if summary.status.failed else 0.0
    return max(0.0, (now - summary.newest.time).total_seconds() - sla_seconds(schedule))


def promised(config: Config) -> dict[str, list[int | None]]:
    """What check.Promise is made of, for each job: its smallest interval, and that of its scrub."""
    return {
        job: [
            min(each.interval for each in config.intervals(job).values()),
            settings.scrub.within if settings.scrub else None,
        ]
        for job, settings in config.jobs.items()
    }
