"""Look into the repository of a job: what is due there, and its summary for monitoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from backy.config.settings import Job, Schedule
from backy.daemon.planner import Observation
from backy.daemon.tasks import VERBS, Situation, Verb
from backy.errors import BackyError, NotFoundError
from backy.model.revision import Revision
from backy.policy.retention import dated_by
from backy.policy.schedule import last_by_tag
from backy.repository import trash
from backy.repository.repository import Repository
from backy.repository.summary import Summary, summarize


def observe(
    base: Path,
    job: str,
    settings: Job,
    schedule: Schedule,
    now: datetime,
    *,
    verbs: Mapping[str, Verb] = VERBS,
) -> tuple[Observation, Summary]:
    """Read the history and the status of a job, which need not have a repository.

    Never raises BackyError: if something cannot be read, `Summary.problem` says so, and nothing
    is due because of it.
    """
    summary = summarize(base, job, now)
    history: Sequence[Revision] = ()
    due: dict[str, datetime] = {}
    try:
        repository = Repository(base / job)
        history = repository.history().revisions
        removed = trash.oldest(repository)
        situation = Situation(settings, schedule, history, summary.status, removed, now)
        times = {name: verb.due(situation) for name, verb in verbs.items() if verb.due}
        due = {name: time for name, time in times.items() if time}
    except NotFoundError:
        pass  # never backed up
    except BackyError as error:
        summary = replace(summary, problem=error.message)
    history = dated_by(history, now)
    newest = history[-1].time if history else None
    slowest = max((revision.seconds for revision in history), default=0)
    return Observation(last_by_tag(history), newest, summary.status, due, slowest), summary
