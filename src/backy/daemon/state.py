"""What the daemon knows of its jobs, by their repositories and by bugs, and how it shows that."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog
from structlog.typing import FilteringBoundLogger

from backy.config.settings import Config, Scrub
from backy.daemon.child import ChildCommand
from backy.daemon.planner import Observation, Planner
from backy.daemon.tasks import BACKUP, FAST, SLOW, VERBS, Situation, Task, Verb
from backy.errors import BackyError, NotFoundError, StoreError
from backy.model.answers import JobOverview
from backy.model.messages import time_text
from backy.model.revision import Revision
from backy.monitoring.metrics import Sample, of_job, of_pool, of_server
from backy.monitoring.overview import overdue_seconds, overview
from backy.monitoring.space import space
from backy.policy.deadline import allowed_seconds
from backy.policy.retention import dated_by
from backy.policy.schedule import last_by_tag
from backy.repository import trash
from backy.repository.known_revisions import KnownRevisions
from backy.repository.repository import Repository
from backy.repository.summary import Summary, fingerprint, summarize
from backy.units import format_duration

_DAY = 86400  # seconds
_known = KnownRevisions()  # read in an earlier look at a job with a long history


@dataclass(frozen=True, slots=True)
class Setup:
    """The configuration in force. `problem` says why the files, as they are now, are not."""

    config: Config
    base: Path
    loaded: datetime
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Fence:
    """Keeps a bug in the work for one job from the work for all others. For all threads.

    It has the bugs that were met: by job and step, until that step works again.
    """

    log: FilteringBoundLogger = field(default_factory=structlog.get_logger)
    _bugs: dict[str, dict[str, str]] = field(default_factory=dict)

    @contextmanager
    def around(self, job: str, step: str) -> Iterator[None]:
        """The body is one step of the work for one job; a bug in it ends only the body.

        It is logged with its traceback, but not again while it stays the same.
        """
        try:
            yield
        except Exception as error:
            text = f"a bug in backy: {error!r:.200}"
            if self.has(job, step) != text:
                self.log.exception("a bug", job=job, step=step)
            self._bugs.setdefault(job, {})[step] = text
        else:
            if job in self._bugs:
                self._bugs[job].pop(step, None)

    def has(self, job: str, step: str) -> str:
        """The bug in a step; empty if it worked the last time."""
        return self._bugs.get(job, {}).get(step, "")

    def bug(self, job: str) -> str:
        """A bug in any step of a job; empty if all of them worked the last time."""
        return next(iter([*self._bugs.get(job, {}).values()]), "")

    def forget(self, job: str) -> None:
        """The job is gone."""
        self._bugs.pop(job, None)


@dataclass(slots=True)
class DaemonState:
    """Everything. `summaries` and `fingerprints` have the jobs that were looked at.

    `news` is set when there may be something to do.
    """

    setup: Setup
    planner: Planner = field(default_factory=Planner)
    children: dict[str, ChildCommand] = field(default_factory=dict)
    summaries: dict[str, Summary] = field(default_factory=dict)
    fingerprints: dict[str, tuple[int, ...]] = field(default_factory=dict)
    is_stopping: bool = False
    fence: Fence = field(default_factory=Fence)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def configure(self) -> list[str]:
        """Plan the configured jobs; give those that must be looked at."""
        config = self.setup.config
        self.planner.slots, self.planner.limits = config.global_.worker_limit, config.limits
        for job in self.summaries.keys() - config.jobs.keys():
            del self.summaries[job]
            self.fingerprints.pop(job, None)
            self.fence.forget(job)
        jobs = {job: (settings, config.intervals(job)) for job, settings in config.jobs.items()}
        return self.planner.configure(jobs, datetime.now(UTC))

    def changed(self) -> list[str]:
        """The jobs whose repositories changed since they were looked at, or could not be."""
        return [
            job
            for job in list(self.setup.config.jobs)
            if self.fingerprints.get(job) != fingerprint(self.setup.base, job)
            or self.fence.has(job, "look")
        ]

    async def look_at(self, jobs: Iterable[str]) -> None:
        """Look into repositories, and plan their jobs again; a bug stops only that job's part.

        What cannot be looked at is planned as if it had no history, so that it is backed up.
        """
        for job in jobs:
            if job in self.setup.config.jobs:
                with self.fence.around(job, "look"):
                    await self._look_at(job)
                with self.fence.around(job, "plan"):
                    if self.fence.has(job, "look"):
                        self.summaries.setdefault(job, Summary(job))
                        self.planner.update(job, None, datetime.now(UTC))
                self.news.set()

    async def _look_at(self, job: str) -> None:
        before, now = fingerprint(self.setup.base, job), datetime.now(UTC)
        observation, summary = await asyncio.to_thread(
            observe, self.setup, job, now, self.planner.verbs
        )
        if job in self.setup.config.jobs:  # still
            self.summaries[job] = summary
            self.fingerprints[job] = before
        self.planner.update(job, observation, datetime.now(UTC))

    def summary(self, job: str) -> Summary:
        """The summary of a job; a bug that was met in the work for the job is its problem."""
        summary = self.summaries.get(job) or Summary(job)
        bug = self.fence.bug(job)
        return replace(summary, problem=bug) if bug else summary

    def allowed_seconds(self, task: Task, child: ChildCommand) -> float:
        """How long a task may take: a backup by policy.deadline, others a day and a scrub."""
        config, slowest = self.setup.config, self.planner.slowest(task.job)
        settings = config.jobs.get(task.job)
        if task.verb != BACKUP or not settings:
            return _DAY + (settings.scrub.max_duration if settings and settings.scrub else 0)
        return allowed_seconds(config, task.job, slowest, child.done)

    def slow(self) -> Iterator[tuple[str, str]]:
        """The jobs whose task has taken more than half of its time, and for how long it runs.

        If somebody configured that time, the task may well need most of it.
        """
        for job, task in list(self.planner.running.items()):
            settings, child = self.setup.config.jobs.get(job), self.children.get(job)
            if child and settings and not settings.max_duration:
                allowed = self.allowed_seconds(task, child)
                if child.seconds > allowed / 2:
                    since, limit = format_duration(child.seconds), format_duration(allowed)
                    yield job, f"{task.verb} has been running for {since}, {limit} allowed"


def observe(
    setup: Setup, job: str, now: datetime, verbs: Mapping[str, Verb] = VERBS
) -> tuple[Observation, Summary]:
    """Read the history and the status of a configured job, which need not have a repository.

    Never raises BackyError: if something cannot be read, `Summary.problem` says so, and nothing
    is due because of it.
    """
    settings, schedule = setup.config.jobs[job], setup.config.intervals(job)
    summary = summarize(setup.base, job, now)
    history: Sequence[Revision] = ()
    due: dict[str, datetime] = {}
    try:
        repository = Repository(setup.base / job)
        history = repository.history(_known).revisions
        removed = trash.removed(repository)
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


def overviews(state: DaemonState, now: datetime) -> Iterator[JobOverview]:
    """All jobs, with what the daemon does for each and plans next."""
    waiting = {task.job: task for task in state.planner.waiting.values()}
    for job in state.setup.config.jobs:
        shown = overview(Summary(job), None, now)
        with state.fence.around(job, "status"):
            shown = overview(state.summary(job), state.setup.config.intervals(job), now)
            _add_plan(shown, state, waiting.get(job))
        if bug := state.fence.bug(job):
            shown |= {"state": "broken", "error": bug}
        yield shown


def _add_plan(shown: JobOverview, state: DaemonState, waiting: Task | None) -> None:
    """Add what the daemon does for a job, and plans next."""
    job = shown["job"]
    if run := state.planner.next_run(job):
        shown |= {"next": time_text(run.time), "tags": sorted(run.tags)}
    running = state.planner.running.get(job)
    if task := running or waiting:
        shown |= {"verb": task.verb, "pool": task.pool, "due": time_text(task.due)}
        shown["state"] = "running" if running else "waiting"
    if running and (child := state.children.get(job)):
        child.describe(shown)


def samples(state: DaemonState) -> Iterator[Sample]:
    """What the metrics show."""
    setup, now = state.setup, datetime.now(UTC)
    for name in list(state.summaries):
        if job := setup.config.jobs.get(name):
            with state.fence.around(name, "metrics"):
                summary = state.summary(name)
                overdue = overdue_seconds(summary, setup.config.intervals(name), now)
                yield of_job(summary, overdue, _scrub_overdue_seconds(summary, job.scrub, now), now)
    yield of_pool(FAST, state.planner.use(FAST))
    yield of_pool(SLOW, state.planner.use(SLOW))
    left = None
    with suppress(StoreError):
        left = space(setup.base)
    yield from of_server(left, setup.problem, setup.loaded)


def _scrub_overdue_seconds(summary: Summary, scrub: Scrub | None, now: datetime) -> float | None:
    if not scrub or not summary.unread_since:
        return None
    return max(0.0, (now - summary.unread_since).total_seconds() - scrub.within)
