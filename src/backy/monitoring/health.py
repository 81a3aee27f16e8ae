"""The health of the jobs and of the server, as a plug-in of Nagios prints it.

Pure: it judges summaries and reads nothing. OK needs proof: what could not be read is UNKNOWN, and
comparisons are written so that NaN fails them. docs/monitoring.md explains each text to operators.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from statistics import linear_regression

from backy.errors import CancelledError
from backy.model.revision import is_ahead
from backy.monitoring.space import Space
from backy.repository.summary import Summary
from backy.units import counted, format_duration, format_size

_LONGEST_TREND = 3650  # days; stands for everything that is not filling up
_TRACKING_ERROR_SHOWN = timedelta(days=30)  # in which the backups have compared every block once
# Characters after "BACKY CRITICAL - ", for pagers and chats; of one job in that line, so that three
# jobs fit in; of a line below it.
_LONGEST_LINE, _LONGEST_REASON, _LONGEST_DETAIL = 180, 60, 1000
_UNCHECKED = "could not be checked"
_UNCERTAIN = ("Permission denied", "Operation not permitted", _UNCHECKED)  # ends of such problems


class State(IntEnum):
    """How bad something is, in ascending order.

    CRITICAL is worse than UNKNOWN, as in Checkmk and unlike in the exit codes: a folder that cannot
    be read must not hide a machine that is known to have no backup.
    """

    OK = 0
    WARNING = 1
    UNKNOWN = 2
    CRITICAL = 3

    @property
    def exit_code(self) -> int:
        """The exit code for it, by the guidelines for plug-ins of Nagios."""
        return (0, 1, 3, 2)[self]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked, of a job, or of the server if `job` is empty.

    `overdue` is the age of the newest revision divided by the age that is allowed.
    """

    state: State
    job: str
    text: str
    overdue: float = 0


@dataclass(frozen=True, slots=True)
class Promise:
    """What is configured for a job, in seconds: its shortest interval, and `scrub: within`.

    `scrub_within` is None if the job is not scrubbed.
    """

    interval: int
    scrub_within: int | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """The state of the server; `space` and `is_running` are None if they could not be found out.

    `is_running` is also True if the server is meant to have no daemon.

    `configuration_problem` says what is wrong with the files, so that an older configuration runs
    or jobs are left out. `unknown_jobs` have a repository, but are not configured. `broken` has, by
    job, a bug that the daemon met, `slow` that a task takes unusually long.
    """

    is_running: bool | None
    space: Space | None
    configuration_problem: str = ""
    unknown_jobs: Sequence[str] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    slow: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges summaries by these thresholds, at the time `now`.

    `failed` is how many failures in a row are too many. Free space is in percent; `days` are the
    days until the file system is full.
    """

    now: datetime
    sla_factor: float = 1.5
    failed: int = 3
    free_warning: float = 10
    free_critical: float = 3
    days_warning: float = 14
    days_critical: float = 3

    def job(self, summary: Summary, promise: Promise) -> list[Finding]:
        """All problems of a job, worst first; empty if everything is known to be good."""
        if summary.problem:
            state = State.UNKNOWN if summary.problem.endswith(_UNCERTAIN) else State.CRITICAL
            return [Finding(state, summary.job, summary.problem)]
        allowed = promise.interval * self.sla_factor
        age = self._age(summary.newest.time) if summary.newest else float("inf")
        failed = self.failed if age <= allowed else 1  # one failure explains why a job is late
        results = [self._recency(summary, age, allowed), *_troubles(summary, failed, self.now)]
        if summary.revisions and promise.scrub_within is not None:
            results += self._unread(summary, promise.scrub_within)
        problems = [
            Finding(state, summary.job, text, age / allowed) for state, text in results if state
        ]
        return sorted(problems, key=_urgency)

    def _with_told(self, summary: Summary, promise: Promise, server: Server) -> list[Finding]:
        """All problems of a job, with those that the daemon told; a bug here is one of them."""
        job = summary.job
        told = ((State.CRITICAL, server.broken), (State.WARNING, server.slow))
        findings = [Finding(state, job, texts[job]) for state, texts in told if job in texts]
        try:
            return sorted([*findings, *self.job(summary, promise)], key=_urgency)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the other jobs must be judged
            return [Finding(State.CRITICAL, job, f"a bug in backy: {error!r:.200}"), *findings]

    def _age(self, time: datetime) -> float:
        return (self.now - time).total_seconds()

    def _recency(self, summary: Summary, age: float, allowed: float) -> tuple[State, str]:
        if not summary.newest:
            if len(summary.revisions) > summary.ahead:
                return State.UNKNOWN, f"newest revision {_UNCHECKED}"
            never = "never backed up" if not summary.ahead else "no revision has a credible time"
            return State.CRITICAL, never
        ago = f"last backup {format_duration(max(age, 0))} ago"
        if paused := summary.status.paused:
            return State.WARNING, f"paused since {paused:%Y-%m-%d %H:%M %Z}, {ago}"
        state = State.OK if age <= allowed else State.CRITICAL
        return state, f"{ago}, {format_duration(allowed)} allowed"

    def _unread(self, summary: Summary, within: int) -> Iterator[tuple[State, str]]:
        """A warning if some stored byte was not read within the promised time.

        Only a scrub can tell: a verify may have read one revision only. Before the first scrub,
        and if the last one is in the future, the age of the oldest revision counts.
        """
        since = summary.unread_since
        if not since or is_ahead(since, self.now):
            since = summary.oldest or self.now
        age = self._age(since)
        if not age <= within:
            text = f"not read for {format_duration(age)}, {format_duration(within)} promised"
            yield State.WARNING, text

    def server(self, server: Server) -> Iterator[Finding]:
        """The findings about daemon, configuration and space; some may be OK."""
        if server.is_running is None:
            yield Finding(State.UNKNOWN, "", f"daemon {_UNCHECKED}")
        elif not server.is_running:
            yield Finding(State.CRITICAL, "", "daemon is not running")
        if server.configuration_problem:
            yield Finding(State.WARNING, "", f"configuration: {server.configuration_problem}")
        if not (space := server.space):
            yield Finding(State.UNKNOWN, "", f"free space {_UNCHECKED}")
            return
        yield from self._left(space, f"{format_size(space.free)} free", "full")
        if inodes := space.inodes:
            yield from self._left(inodes, f"{inodes.free} inodes free", "no inodes left")

    def _left(self, space: Space, free: str, end: str) -> Iterator[Finding]:
        percent = 100 * space.free / max(space.capacity, 1)
        state = _below(percent, self.free_warning, self.free_critical)
        yield Finding(state, "", f"{free} ({percent:.1f} %)")
        if (days := days_until_full(space, self.now)) is not None:
            state = _below(days, self.days_warning, self.days_critical)
            yield Finding(state, "", f"{end} in {days:.1f} days at this rate")

    def report(
        self, summaries: Iterable[Summary], promises: Mapping[str, Promise], server: Server
    ) -> tuple[int, str]:
        """The exit code, and the output: status line, performance data, a line for each problem.

        Judges each job of `promises`, even without a summary, and ignores all other summaries.
        """
        by_job = {summary.job: summary for summary in summaries}
        judged = [by_job.get(job) or Summary(job, problem=_UNCHECKED) for job in promises]
        jobs = [self._with_told(summary, promises[summary.job], server) for summary in judged]
        others = [[finding] for finding in self.server(server) if finding.state]
        if not jobs:
            text = "no job is configured, or no job matches"
            others.append([Finding(State.UNKNOWN, "", text)])
        ranked = sorted((*filter(None, jobs), *others), key=lambda findings: _urgency(findings[0]))
        states = [findings[0].state if findings else State.OK for findings in jobs]
        lines = [f"{findings[0].state.name} {_text(findings)}" for findings in ranked]
        if names := server.unknown_jobs:
            lines.append(f"repositories without a job: {len(names)}: {', '.join(names)}")
        data = self._performance_data(judged, states, server.space)
        worst = ranked[0][0].state if ranked else State.OK
        status = _printable(_status_line(ranked, states), _LONGEST_LINE)
        details = (_printable(line, _LONGEST_DETAIL) for line in lines)
        text = "\n".join([f"BACKY {worst.name} - {status} | {data}", *details, ""])
        return worst.exit_code, text

    def _performance_data(
        self, summaries: Sequence[Summary], states: Sequence[State], space: Space | None
    ) -> str:
        """Always the same names, as programs that draw them want it; U is an unknown value."""
        ages = [self._age(summary.newest.time) for summary in summaries if summary.newest]
        days = days_until_full(space, self.now) if space else None
        values = {
            "jobs": len(states),
            **{state.name.lower(): states.count(state) for state in State if state},
            "failing": sum(summary.status.errors > 0 for summary in summaries),
            "distrusted": sum(len(summary.distrusted) for summary in summaries),
            "reports": sum(summary.reports for summary in summaries),
            "oldest": f"{max(0, *ages):.0f}s" if ages else "U",
            "free": f"{space.free}B" if space else "U",
            "free_inodes": space.inodes.free if space and space.inodes else "U",
            "days_until_full": "U" if days is None else f"{days:.1f}",
        }
        return " ".join(f"{name}={value};;;0" for name, value in values.items())


def days_until_full(space: Space, now: datetime) -> float | None:
    """In how many days the space is used up at this rate: least squares over the samples.

    None if they cover less than a day: one night of backups is no trend.
    """
    past = {time: free for time, free in space.samples if time < now} | {now: space.free}
    days = [(time - now) / timedelta(days=1) for time in past]
    if min(days) > -1:
        return None
    slope = linear_regression(days, list(past.values())).slope
    return min(space.free / -slope, _LONGEST_TREND) if slope < 0 else _LONGEST_TREND


def _below(value: float, warning: float, critical: float) -> State:
    if not value >= critical:
        return State.CRITICAL
    return State.OK if value >= warning else State.WARNING


def _troubles(summary: Summary, failed: int, now: datetime) -> Iterator[tuple[State, str]]:
    """The problems in its status and quarantine; `failed` failures in a row are too many."""
    status = summary.status
    if summary.ahead and summary.newest:
        yield State.WARNING, f"newest revisions are from the future: {summary.ahead}"
    if bad := summary.distrusted:
        state = State.WARNING if len(bad) < len(summary.revisions) else State.CRITICAL
        yield state, f"distrusted revisions: {len(bad)} of {len(summary.revisions)}"
    if status.errors >= failed:
        last = f"last {status.errors} backups" if status.errors > 1 else "last backup"
        yield State.WARNING, f"{last} failed: {status.error}"
    if summary.reports:
        yield State.WARNING, f"reports of damage in quarantine: {summary.reports}"
    if count := status.hooks_failed:
        last = f"each of the last {count} backups" if count > 1 else "the last backup"
        yield State.WARNING, f"a hook failed in {last}: {status.hook_error}"
    time = status.tracking_error_at
    if time and now - time < _TRACKING_ERROR_SHOWN:
        yield State.WARNING, f"source reported changed blocks as unchanged on {time:%Y-%m-%d}"
    if status.suspicious:
        yield State.WARNING, f"newest revision is suspicious: {status.suspicious}"


def _urgency(finding: Finding) -> tuple[int, bool, float, str]:
    """The order of findings: worst state, then the server, then the most overdue job."""
    return -finding.state, bool(finding.job), -finding.overdue, finding.job


def _text(findings: Sequence[Finding]) -> str:
    texts = "; ".join(finding.text for finding in findings)
    return ": ".join(filter(None, (findings[0].job, texts)))


def _status_line(ranked: Sequence[Sequence[Finding]], states: Sequence[State]) -> str:
    """How many jobs are in which state, then the three worst findings."""
    jobs = counted(len(states), "job")
    bad = [state for state in reversed(State) if state and state in states]
    counts = [f"{states.count(state)} {state.name.lower()}" for state in bad]
    reasons = [_printable(_text(findings[:1]), _LONGEST_REASON) for findings in ranked[:3]]
    return f"{', '.join([jobs, *counts])}: {'; '.join(reasons) or 'all good'}"


def _printable(text: str, longest: int) -> str:
    """One line of at most `longest` characters that steers neither a terminal nor Nagios."""
    line = " ".join(text[: 2 * longest].replace("|", "/").split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
