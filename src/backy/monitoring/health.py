"""What monitoring says of the jobs and of the server: pure judgement, printed as Nagios wants it.

Nothing is OK without proof: what was not read is UNKNOWN, and comparisons are written so that one
with NaN ends badly. docs/monitoring.md tells operators what each text means and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from statistics import linear_regression

from nagiosplugin import Critical, Ok, Performance, Unknown, Warn

from backy.model.revision import time_of
from backy.monitoring.space import Space
from backy.operations.tracking_check import PERIOD
from backy.repository.summary import Facts
from backy.units import format_duration, format_size

_LONGEST_TREND = 3650  # days; stands for all that is not filling up
# Characters after "BACKY CRITICAL - ", for pagers and chats; of it for one job, so that three have
# their place; of a line of the long output.
_LONGEST_LINE, _LONGEST_REASON, _LONGEST_DETAIL = 180, 60, 1000
_UNSEEN = "was not looked at"
_UNCERTAIN = ("Permission denied", "Operation not permitted", _UNSEEN)  # how such a problem ends


class State(IntEnum):
    """How bad it is, worst last.

    UNKNOWN comes before CRITICAL, as in Checkmk and unlike the exit codes: a folder that cannot
    be read must not hide a machine that is known to have no backup.
    """

    OK = 0
    WARNING = 1
    UNKNOWN = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a job, or with the server where `job` is empty.

    `overdue` is the age of the newest revision, in what is allowed: at 2 it is twice as old.
    """

    state: State
    job: str
    what: str
    overdue: float = 0


@dataclass(frozen=True, slots=True)
class Promise:
    """What is configured for a job: its smallest interval, and within what all is read; seconds.

    `scrub_within` is None where no reading is promised.
    """

    interval: int
    scrub_within: int | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """What is no job's; `space` and `is_running` are None where nobody could tell.

    `configuration_problem` says what is wrong with a file, so that an older configuration runs or
    jobs are left out. `unknown_jobs` have a repository, but are not configured.
    """

    is_running: bool | None
    space: Space | None
    configuration_problem: str = ""
    unknown_jobs: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges by these thresholds what there is `now`.

    `failed` backups in a row are too many; free space is in percent, `days` are until it is full.
    """

    now: datetime
    sla_factor: float = 1.5
    failed: int = 3
    free_warning: float = 10
    free_critical: float = 3
    days_warning: float = 14
    days_critical: float = 3
    skew_seconds: float = 60

    def job(self, facts: Facts, promise: Promise) -> list[Finding]:
        """What is wrong with a job, worst first; nothing where all is proven to be good."""
        if facts.problem:
            state = State.UNKNOWN if facts.problem.endswith(_UNCERTAIN) else State.CRITICAL
            return [Finding(state, facts.job, facts.problem)]
        allowed = promise.interval * self.sla_factor
        age = self._age(facts.newest.time) if facts.newest else float("inf")
        failed = self.failed if age <= allowed else 1  # it says why there is nothing newer
        found = [self._recency(facts, age, allowed), *_troubles(facts, failed, self.now)]
        if facts.revisions and promise.scrub_within is not None:
            found += self._unread(facts, promise.scrub_within)
        bad = [Finding(state, facts.job, what, age / allowed) for state, what in found if state]
        return sorted(bad, key=_urgency)

    def _age(self, time: datetime) -> float:
        return (self.now - time).total_seconds()

    def _recency(self, facts: Facts, age: float, allowed: float) -> tuple[State, str]:
        if not facts.newest:
            unseen = (State.UNKNOWN, f"newest revision {_UNSEEN}")
            return unseen if facts.revisions else (State.CRITICAL, "never backed up")
        if not age >= -self.skew_seconds:
            return State.CRITICAL, f"newest revision is {format_duration(-age)} in the future"
        ago = f"last backup {format_duration(max(age, 0))} ago"
        if paused := facts.status.paused:
            return State.WARNING, f"paused since {paused:%Y-%m-%d %H:%M %Z}, {ago}"
        state = State.OK if age <= allowed else State.CRITICAL
        return state, f"{ago}, {format_duration(allowed)} allowed"

    def _unread(self, facts: Facts, within: int) -> Iterator[tuple[State, str]]:
        """Whether all was read as promised: only scrub tells that of all that is stored.

        A verify of one revision is no proof. Where scrub said nothing yet, or in the future only,
        nothing was read since the oldest revision was made.
        """
        made = time_of(facts.revisions[0])
        age = self._age(facts.unread_since or made)
        if not age >= -self.skew_seconds:
            age = self._age(made)
        if not age <= within:
            text = f"not read for {format_duration(age)}, {format_duration(within)} promised"
            yield State.WARNING, text

    def server(self, server: Server) -> Iterator[Finding]:
        """How the daemon, the configuration and the space are; some of it may be OK."""
        if server.is_running is None:
            yield Finding(State.UNKNOWN, "", f"daemon {_UNSEEN}")
        elif not server.is_running:
            yield Finding(State.CRITICAL, "", "daemon is not running")
        if server.configuration_problem:
            yield Finding(State.WARNING, "", f"configuration: {server.configuration_problem}")
        if not (space := server.space):
            yield Finding(State.UNKNOWN, "", f"free space {_UNSEEN}")
            return
        percent = 100 * space.free / max(space.capacity, 1)
        state = _below(percent, self.free_warning, self.free_critical)
        yield Finding(state, "", f"{format_size(space.free)} free ({percent:.1f} %)")
        if (days := days_until_full(space, self.now)) is not None:
            state = _below(days, self.days_warning, self.days_critical)
            yield Finding(state, "", f"full in {days:.1f} days if it goes on like this")

    def report(
        self, facts: Iterable[Facts], promises: Mapping[str, Promise], server: Server
    ) -> tuple[int, str]:
        """The exit code, and what is printed: status line, perfdata, a line for all that is bad.

        Each job of `promises` is judged, also where it has no facts; facts of others are left out.
        """
        given = {each.job: each for each in facts}
        known = [given.get(job) or Facts(job, problem=_UNSEEN) for job in promises]
        jobs = [self.job(each, promises[each.job]) for each in known]
        others = [[each] for each in self.server(server) if each.state]
        if not jobs:
            others.append([Finding(State.UNKNOWN, "", "no job is configured, or none matches")])
        ranked = sorted((*filter(None, jobs), *others), key=lambda found: _urgency(found[0]))
        states = [found[0].state if found else State.OK for found in jobs]
        lines = [f"{found[0].state.name} {_text(found)}" for found in ranked]
        if names := server.unknown_jobs:
            lines.append(f"repositories without a job: {len(names)}: {', '.join(names)}")
        data = self._data(known, states, server.space)
        worst = ranked[0][0].state if ranked else State.OK
        return _output(worst, _status(ranked, states), lines, data)

    def _data(self, facts: Sequence[Facts], states: Sequence[State], space: Space | None) -> str:
        """The same names always, since what draws them wants that; U is an unknown value."""
        ages = [self._age(each.newest.time) for each in facts if each.newest]
        days = days_until_full(space, self.now) if space else None
        values = {
            "jobs": len(states),
            **{each.name.lower(): states.count(each) for each in State if each},
            "failing": sum(each.status.errors > 0 for each in facts),
            "distrusted": sum(len(each.distrusted) for each in facts),
            "reports": sum(each.reports for each in facts),
            "oldest": f"{max(0, *ages):.0f}s" if ages else "U",
            "free": f"{space.free}B" if space else "U",
            "days_until_full": "U" if days is None else f"{days:.1f}",
        }
        return " ".join(str(Performance(name, value, min=0)) for name, value in values.items())


def unknown(why: str) -> tuple[int, str]:
    """The same as a report, where something was raised and nothing could be judged."""
    return _output(State.UNKNOWN, why, [])


def days_until_full(space: Space, now: datetime) -> float | None:
    """When no space is left if it goes on like this: least squares over the samples.

    None where they reach back less than a day: that would take one night's backups for the rule.
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


def _troubles(facts: Facts, failed: int, now: datetime) -> Iterator[tuple[State, str]]:
    """What its status and its quarantine say; `failed` backups in a row are too many."""
    status = facts.status
    if bad := facts.distrusted:
        state = State.WARNING if len(bad) < len(facts.revisions) else State.CRITICAL
        yield state, f"{len(bad)} of {len(facts.revisions)} revisions distrusted"
    if status.errors >= failed:
        yield State.WARNING, f"{status.errors} x failed in a row: {status.error}"
    if facts.reports:
        yield State.WARNING, f"{facts.reports} x damage in quarantine"
    if status.hooks_failed:
        yield State.WARNING, f"{status.hooks_failed} x hooks failed in a row: {status.hook_error}"
    if status.lied and now - status.lied < timedelta(seconds=PERIOD):
        yield State.WARNING, f"source called changed blocks unchanged at {status.lied:%Y-%m-%d}"
    if status.suspicious:
        yield State.WARNING, f"newest revision is suspicious: {status.suspicious}"


def _urgency(finding: Finding) -> tuple[int, bool, float, str]:
    """What comes first: the worse state, then the server, then the job that waits longest."""
    return -finding.state, bool(finding.job), -finding.overdue, finding.job


def _text(found: Sequence[Finding]) -> str:
    return ": ".join(filter(None, (found[0].job, "; ".join(each.what for each in found))))


def _status(ranked: Sequence[Sequence[Finding]], states: Sequence[State]) -> str:
    """Counts, then what is worst."""
    kinds = [each for each in reversed(State) if each and each in states]
    counts = [f"{states.count(each)} {each.name.lower()}" for each in kinds]
    reasons = [_printable(_text(found[:1]), _LONGEST_REASON) for found in ranked[:3]]
    return f"{', '.join([f'{len(states)} jobs', *counts])}: {'; '.join(reasons) or 'all good'}"


def _printable(text: str, most: int) -> str:
    """One line of up to `most` characters that steers neither a terminal nor Nagios."""
    line = " ".join(text[: 2 * most].replace("|", "/").split())
    line = "".join(each if each.isprintable() else "?" for each in line)
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _output(state: State, line: str, lines: Iterable[str], data: str = "") -> tuple[int, str]:
    first = f"BACKY {state.name} - {_printable(line, _LONGEST_LINE)}{data and f' | {data}'}"
    details = (_printable(each, _LONGEST_DETAIL) for each in lines)
    return int((Ok, Warn, Unknown, Critical)[state]), "\n".join([first, *details, ""])
