"""What a job's repository says, for planning its next tasks, and the command that does a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from backy.config.settings import Job, Schedule, Scrub
from backy.daemon.planner import BACKUP, EXPIRE, PURGE, SCRUB, Known, Task
from backy.errors import BackyError, NotFoundError
from backy.model.revision import Revision
from backy.policy import schedule
from backy.policy.retention import expiries
from backy.repository import trash
from backy.repository.repository import Repository
from backy.repository.status import Status
from backy.repository.summary import Summary, summarize

_SCRUBS = 15  # runs in the time within which each byte is to be read


def look(
    base: Path, job: str, settings: Job, tags: Schedule, now: datetime
) -> tuple[Known, Summary]:
    """Read the history and the status of a job, which may have no repository yet.

    Never raises BackyError: what cannot be read is not known, and `Summary.problem` says so.
    """
    summary = summarize(base, job)
    history: Sequence[Revision] = ()
    background: dict[str, datetime] = {}
    try:
        repository = Repository(base / job)
        history = repository.history().revisions
        removed = trash.oldest(repository)
        if settings.expire and expiries(history, tags, now, settings.minimum):
            background[EXPIRE] = now
        if removed:
            background[PURGE] = removed + timedelta(seconds=settings.trash)
        if settings.scrub and history:
            background[SCRUB] = scrub_due(settings.scrub, tags, summary.status, now)
    except NotFoundError:
        pass  # never backed up
    except BackyError as error:
        summary = replace(summary, problem=error.message)
    newest = history[-1].time if history else None
    return Known(schedule.last_by_tag(history), newest, summary.status, background), summary


def scrub_due(promise: Scrub, tags: Schedule, status: Status, now: datetime) -> datetime:
    """When to scrub again: soon where the last run left something that is due by then."""
    last = status.scrubbed
    if not last:
        return now
    within = timedelta(seconds=promise.within)
    has_more = last.oldest is not None and last.oldest <= last.time - within / 2
    pause = timedelta(seconds=_box(promise, tags)) if has_more else within / _SCRUBS
    return min(last.time, now) + pause


def _box(promise: Scrub, tags: Schedule) -> int:
    """How long a scrub may take, in seconds: its job's backups wait for it, so not for long."""
    shortest = min(each.interval for each in tags.values())
    return max(1, min(promise.max_duration, shortest // 4))


def arguments(task: Task, settings: Job, tags: Schedule) -> list[str]:
    """The command line that does a task, as an operator would type it."""
    if task.verb == BACKUP:
        options = (part for tag in sorted(task.tags) for part in ("--tag", tag))
        return [BACKUP, task.job, *options]
    if task.verb == PURGE:
        return [PURGE, task.job, "--older-than", f"{settings.trash}s"]
    if task.verb == SCRUB and settings.scrub:
        promise = settings.scrub
        rate = ["--rate", str(promise.rate)] if promise.rate else []
        box = ["--max-duration", f"{_box(promise, tags)}s"]
        return [SCRUB, task.job, "--within", f"{promise.within}s", *box, *rate]
    return [task.verb, task.job]
