"""Years of a daemon in seconds: what is planned is done in time, whatever happens to the machine.

A fake machine with a true time and a clock that may be wrong runs the real planner, schedule and
retention. What happens in it depends on nothing but the seed.
"""

import heapq
import itertools
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from backy.config.settings import Interval, Job
from backy.daemon.planner import Observation, Planner
from backy.daemon.tasks import BACKUP, FAST, SLOW, SLOW_SECONDS, Task
from backy.model.new_time import time_for
from backy.model.revision import Consistency, Revision, id_for
from backy.policy import schedule
from backy.policy.retention import expiries
from backy.repository.status import Status

MINUTE, HOUR, DAY = 60, 3600, 86400
WEEK, YEAR = 7 * DAY, 365 * DAY
GRACE = 300  # seconds for which a missed tag waits for a slot
LONGEST_WAIT = 2 * HOUR + 30 * MINUTE  # in a pool, by the clock, which may have jumped
NOTICED = 30  # seconds after which the daemon sees that the clock was set
START = datetime(2026, 3, 28, 23, 30, tzinfo=UTC)  # where people set their clocks in this night
SETTINGS = Job(schedule="its own", source={"type": "file", "path": "vm.img"})

Schedule = dict[str, Interval]


def tags(**rules: tuple[int, int]) -> Schedule:
    return {tag: Interval(interval=interval, keep=keep) for tag, (interval, keep) in rules.items()}


@dataclass
class Machine:
    """Its jobs take `seconds` each. True times are seconds since START."""

    jobs: Mapping[str, Schedule]
    seconds: Mapping[str, int]
    slots: int = 2
    scrub: int = 0  # seconds that reading what is stored takes, every other day; 0: never
    expires: bool = True
    true: int = 0
    wrong_by: int = 0  # seconds that the clock is ahead
    boots: list[int] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)  # jobs whose source cannot be read
    made: dict[str, list[tuple[int, frozenset[str]]]] = field(default_factory=dict)
    tried: Counter[str] = field(default_factory=Counter)
    waited: dict[str, int] = field(default_factory=dict)  # the longest for a slot, by pool

    def __post_init__(self) -> None:
        self._history: dict[str, list[Revision]] = {job: [] for job in self.jobs}
        self._last: dict[str, dict[str, datetime]] = {job: {} for job in self.jobs}
        self._errors: dict[str, tuple[int, datetime]] = {}
        self._serial = itertools.count()
        self._scrubbed: dict[str, datetime] = {}
        self.made = {job: [] for job in self.jobs}
        self._boot()

    @property
    def clock(self) -> datetime:
        return START + timedelta(seconds=self.true + self.wrong_by)

    def _boot(self) -> None:
        self.boots.append(self.true)
        self.planner = Planner()
        self.planner.slots = self.slots
        self._running: list[tuple[int, int, Task, datetime]] = []
        for job in self.planner.configure(
            {job: (SETTINGS, each) for job, each in self.jobs.items()}, self.clock
        ):
            self._observe(job)

    def is_down_for(self, seconds: int) -> None:
        """A power cut: nothing that runs comes to its end."""
        self.true += seconds
        self._boot()

    def is_set_by(self, seconds: int) -> None:
        """Somebody sets the clock, and the daemon notices after a while."""
        self.wrong_by += seconds
        self.runs_until(self.true + NOTICED)
        self.planner.replan(self.clock, lambda *_: nullcontext())

    def runs_for(self, seconds: int) -> None:
        self.runs_until(self.true + seconds)

    def runs_until(self, end: int) -> None:
        """Do what the daemon does, from one event to the next."""
        while True:
            for task in self.planner.take(self.clock):
                self._start(task)
            wake = self.planner.wake()
            # Rounded up: nothing is taken before its time.
            due = -((START - wake) // timedelta(seconds=1)) - self.wrong_by if wake else end
            then = min(end, due, self._running[0][0] if self._running else end)
            self.true = max(self.true, then)
            if then >= end:
                return
            while self._running and self._running[0][0] <= self.true:
                self._finish(*heapq.heappop(self._running))

    def _start(self, task: Task) -> None:
        wait = int((self.clock - task.due).total_seconds())
        if task.verb == BACKUP:
            self.waited[task.pool] = max(self.waited.get(task.pool, 0), wait)
            self.tried[task.job] += 1
        seconds = self.seconds[task.job] if task.verb == BACKUP else self.scrub
        end = self.true + seconds
        heapq.heappush(self._running, (end, next(self._serial), task, self.clock))

    def _finish(self, end: int, _: int, task: Task, started: datetime) -> None:
        job = task.job
        if task.verb == "scrub":
            self._scrubbed[job] = self.clock
        elif job in self.broken:
            self._errors[job] = self._errors.get(job, (0, self.clock))[0] + 1, self.clock
        else:
            self._errors.pop(job, None)
            self._publish(job, started, task.tags)
            self.made[job].append((end - self.seconds[job], task.tags))
        self._observe(job)
        self.planner.finish(job)

    def _publish(self, job: str, started: datetime, tags: frozenset[str]) -> None:
        history = self._history[job]
        time = time_for(started, history[-1].time if history else None)
        history.append(
            Revision(id_for(time, "aaaa"), time, None, 1, Consistency.CRASH, {}, tuple(tags))
        )
        if not self.expires:
            del history[:-1]
            self._last[job].update(dict.fromkeys(tags, time))
            return
        for each in expiries(history, self.jobs[job], self.clock):
            at = history.index(each.revision)
            new = [] if each.is_removed else [replace(each.revision, tags=each.keep)]
            history[at : at + 1] = new
        self._last[job] = schedule.last_by_tag(history)

    def _observe(self, job: str) -> None:
        errors, failed = self._errors.get(job, (0, None))
        history = self._history[job]
        scrub = self._scrubbed.get(job, START) + timedelta(days=2)
        observation = Observation(
            last_by_tag=self._last[job],
            newest=history[-1].time if history else None,
            status=Status(errors=errors, failed=failed, seconds=self.seconds[job]),
            due={"scrub": scrub} if self.scrub else {},
        )
        self.planner.update(job, observation, self.clock)

    def history(self, job: str, tag: str) -> list[Revision]:
        return [each for each in self._history[job] if tag in each.tags]

    def missed(self, *, intervals: int = 1) -> Iterator[str]:
        """Each time that a tag was late although the machine was up.

        In time is: so many intervals after the one before, or at once after a boot; the grace; as
        long as anything has waited for a slot of the job's pool; and what the job itself does then.
        """
        for job, rules in self.jobs.items():
            pool = SLOW if self.seconds[job] >= SLOW_SECONDS else FAST
            wait = GRACE + min(self.waited.get(pool, 0), LONGEST_WAIT) + self.scrub
            for tag, rule in rules.items():
                starts = [start for start, given in self.made[job] if tag in given]
                for before, after in itertools.pairwise([0, *starts, self.true]):
                    boot = self.boots[bisect_right(self.boots, after) - 1]
                    if after > max(before + intervals * rule.interval, boot) + wait:
                        yield f"{job} {tag}: {before} to {after}, up since {boot}"


SERVER = tags(daily=(DAY, 9), weekly=(WEEK, 5), monthly=(30 * DAY, 4))
HOURLY = tags(hourly=(HOUR, 24), daily=(DAY, 7))
HANDFUL = {"hourly": HOURLY, "server": SERVER, "archive": tags(monthly=(30 * DAY, 12))}
QUICK = {"quick": tags(quick=(5 * MINUTE, 12)), "hourly": HOURLY}
JUMPY = {
    "often": tags(often=(6 * HOUR, 12), daily=(DAY, 7)),
    "server": SERVER,
    "archive": tags(monthly=(30 * DAY, 2)),
}
SECONDS = {"quick": 20, "hourly": 200, "often": 200, "server": 1500, "archive": 2 * HOUR}


def slots(machine: Machine, job: str) -> float:
    """How often a job would have run if nothing had happened."""
    return machine.true / min(each.interval for each in machine.jobs[job].values())


def check_retention(machine: Machine) -> None:
    """Each tag has as many revisions as it should, and few more for being caught up."""
    for job, rules in machine.jobs.items():
        for tag, rule in rules.items():
            assert rule.keep <= len(machine.history(job, tag)) <= rule.keep + 3, (job, tag)


@pytest.mark.parametrize(
    ("jobs", "scrub", "length", "outages"),
    [
        pytest.param(HANDFUL, 15 * MINUTE, 5 * YEAR, (90, 15, 4), id="five-years"),
        pytest.param(QUICK, 0, YEAR // 4, (40, 4, 1), id="every-five-minutes"),
    ],
)
def test_no_interval_is_missed_and_every_outage_is_made_up_for_at_once(
    jobs: Mapping[str, Schedule], scrub: int, length: int, outages: tuple[int, int, int]
) -> None:
    chance = random.Random(20261123)
    machine = Machine(jobs, SECONDS, scrub=scrub)
    machine.runs_for(31 * DAY)
    rests = [
        chance.randint(1, longest)
        for longest, number in zip((30 * MINUTE, 3 * DAY, 4 * WEEK), outages, strict=True)
        for _ in range(number)
    ]
    chance.shuffle(rests)
    between = 2 * (length - 31 * DAY - sum(rests)) // len(rests)
    for rest in rests:
        machine.runs_for(chance.randint(1, between))
        machine.is_down_for(rest)
    machine.runs_until(max(length, machine.true + 2 * DAY))
    assert not list(machine.missed())
    assert machine.waited[FAST] <= 4 * MINUTE
    assert machine.waited.get(SLOW, 0) <= LONGEST_WAIT
    for job in jobs:
        assert machine.tried[job] <= slots(machine, job) + 2 * len(rests)
    check_retention(machine)


def test_a_slot_that_passes_during_a_restart_is_made_up_for_within_its_interval() -> None:
    machine = Machine({"server": SERVER}, SECONDS)
    machine.runs_for(40 * DAY)
    slot = machine.made["server"][-1][0] + DAY
    machine.runs_until(slot - MINUTE)
    machine.is_down_for(5 * HOUR)  # so the last revision is young at the next slot
    machine.runs_until(slot + DAY - MINUTE)
    machine.is_down_for(2 * MINUTE)
    machine.runs_for(3 * DAY)
    assert not list(machine.missed())


@pytest.mark.parametrize("seed", range(3))
def test_a_clock_that_jumps_and_is_set_right_costs_no_more_than_one_interval(seed: int) -> None:
    chance = random.Random(seed)
    machine = Machine(JUMPY, SECONDS)
    machine.runs_for(150 * DAY)
    for jump in (10 * MINUTE, -10 * MINUTE, HOUR, -HOUR, 5 * DAY, -5 * DAY, 40 * DAY, -40 * DAY):
        machine.runs_for(chance.randint(70 * DAY, 90 * DAY))
        machine.is_set_by(jump)
        machine.runs_for(chance.randint(1, DAY))
        machine.is_set_by(-jump)
    machine.runs_for(90 * DAY)
    assert machine.wrong_by == 0
    assert not list(machine.missed(intervals=2))
    for job, rules in machine.jobs.items():
        assert machine.tried[job] <= slots(machine, job) + 2 * 16
        for tag, rule in rules.items():
            assert rule.keep <= len(machine.history(job, tag))


def test_a_clock_that_stays_wrong_changes_nothing_after_the_next_slots() -> None:
    machine = Machine(JUMPY, SECONDS)
    machine.runs_for(130 * DAY)
    for jump in (-3 * DAY, 4 * DAY, 9 * HOUR):
        machine.is_set_by(jump)
        machine.runs_for(100 * DAY)
    assert not list(machine.missed(intervals=2))
    check_retention(machine)


def test_a_source_that_fails_for_days_is_tried_rarely_and_is_backed_up_once_it_is_well() -> None:
    machine = Machine(HANDFUL, SECONDS)
    machine.runs_for(40 * DAY)
    before = machine.tried["hourly"]
    machine.broken = {"hourly"}
    machine.runs_for(10 * DAY)
    # After 2, 4, 8 … 256 minutes, then every 6 hours; each try takes its time as well.
    assert 44 <= machine.tried["hourly"] - before <= 48
    machine.broken = set()
    well = machine.true
    machine.runs_for(2 * DAY)
    first, *later = [start for start, _ in machine.made["hourly"] if start >= well]
    assert first <= well + 6 * HOUR
    assert machine.made["hourly"][-len(later) - 1][1] == {"hourly", "daily"}
    assert len(later) >= 40
    assert not [each for each in machine.missed() if not each.startswith("hourly")]


def many(number: int) -> dict[str, Schedule]:
    """One job in a hundred every five minutes, ten every hour, five monthly, the others daily."""
    kinds = [QUICK["quick"], *[HOURLY] * 10, *[HANDFUL["archive"]] * 5, *[SERVER] * 84]
    return {f"vm{each:05}": kinds[each % 100] for each in range(number)}


def test_ten_thousand_jobs_from_five_minutes_to_a_month_start_in_time() -> None:
    jobs = many(10_000)
    seconds = {job: 10 + at % 21 for at, job in enumerate(jobs)}
    machine = Machine(jobs, seconds, slots=30, expires=False)
    machine.runs_for(DAY)
    assert not list(machine.missed())
    assert machine.waited[FAST] <= MINUTE
    for job, rules in jobs.items():
        shortest = min(each.interval for each in rules.values())
        assert DAY // shortest - 1 <= len(machine.made[job]) <= DAY // shortest + 1


def test_after_half_a_day_without_power_no_slot_idles_and_the_most_overdue_go_first() -> None:
    jobs = {job: each for job, each in many(600).items() if each is not HANDFUL["archive"]}
    machine = Machine(jobs, dict.fromkeys(jobs, 10), slots=4, expires=False)
    machine.runs_for(26 * HOUR)
    machine.is_down_for(12 * HOUR)
    boot, before = machine.true, machine.tried.total()
    late = [job for job in jobs if is_due(machine, job)]
    assert len(late) > len(jobs) // 3
    machine.runs_for(len(late) * 10 // 4)
    assert machine.tried.total() - before >= len(late)
    machine.runs_for(HOUR)
    assert not list(machine.missed())
    first = {job: next(at for at, _ in machine.made[job] if at >= boot) for job in late}
    hourly, daily = (
        [at for job, at in first.items() if jobs[job] is kind] for kind in (HOURLY, SERVER)
    )
    assert max(hourly) <= min(daily)


def is_due(machine: Machine, job: str) -> bool:
    run = machine.planner.next_run(job)
    return run is not None and run.time <= machine.clock
