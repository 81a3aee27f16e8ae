"""The overview of a job that `backy status` shows, as far as its repository tells it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from backy.config.settings import Config, Schedule
from backy.model.answers import JobOverview, JobState
from backy.model.messages import time_text
from backy.policy.schedule import sla_seconds
from backy.repository.summary import Summary
from backy.units import counted


def overview(summary: Summary, schedule: Schedule | None, now: datetime) -> JobOverview:
    """The overview of a job; `schedule` is None if it is not configured."""
    status, newest = summary.status, summary.newest
    return JobOverview(
        job=summary.job,
        state=_state(summary),
        last=time_text(newest.time) if newest else None,
        next=None,
        overdue_seconds=overdue_seconds(summary, schedule, now) if schedule else 0.0,
        revisions=len(summary.revisions),
        seconds=status.seconds,
        errors=status.errors,
        error=summary.problem or status.error,
        damage="; ".join(_damage(summary)),
    )


def urgency(job: JobOverview) -> tuple[int, float]:
    """Sorts the worst job first: unreadable, late, failed, damaged, others."""
    is_late = job["overdue_seconds"] > 0 and job["state"] != "paused"
    is_unreadable = job["state"] in {"unreadable", "broken"}
    signs = (is_unreadable, is_late, job["errors"] > 0, bool(job["damage"]), True)
    return signs.index(True), -job["overdue_seconds"]


def is_bad(job: JobOverview) -> bool:
    """Whether somebody has to look after a job: it is more urgent than those that are fine."""
    return urgency(job)[0] < 4  # noqa: PLR2004 - the signs above


def tally(jobs: Sequence[JobOverview]) -> str:
    """How many jobs there are, in each state, and overdue; in one line."""
    states = Counter(job["state"] for job in jobs)
    late = sum(job["overdue_seconds"] > 0 for job in jobs)
    counts = [f"{count} {state}" for state, count in states.most_common()]
    return ", ".join([counted(len(jobs), "job"), *counts, f"{late} overdue"])


def _damage(summary: Summary) -> Iterator[str]:
    if bad := summary.distrusted:
        yield f"distrusted revisions: {len(bad)} of {len(summary.revisions)}"
    if summary.reports:
        yield f"reports of damage: {summary.reports}"


def _state(summary: Summary) -> JobState:
    if summary.problem:
        return "unreadable"
    if summary.status.paused:
        return "paused"
    if summary.status.errors:
        return "failed"
    if any(_damage(summary)):
        return "damaged"
    return "idle" if summary.newest else "new"


def overdue_seconds(summary: Summary, schedule: Schedule, now: datetime) -> float:
    """How much older the newest revision is than allowed; without one, since the last failure."""
    if not summary.newest:
        failed = summary.status.failed
        return (now - failed).total_seconds() if failed else 0.0
    return max(0.0, (now - summary.newest.time).total_seconds() - sla_seconds(schedule))


def promised(config: Config) -> dict[str, tuple[int, int | None]]:
    """The promises of each job, as health.Promise has them: in seconds, None if not scrubbed."""
    return {
        job: (
            min(rule.interval for rule in config.intervals(job).values()),
            settings.scrub.within if settings.scrub else None,
        )
        for job, settings in config.jobs.items()
    }
