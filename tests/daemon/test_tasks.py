"""A verb is a row of the table: how its tasks are planned, and which command does them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backy.config.loader import load
from backy.config.settings import Interval, Job, Schedule
from backy.daemon.planner import Observation, Planner
from backy.daemon.state import Setup, observe
from backy.daemon.tasks import BACKUP, FAST, SLOW, VERBS, Rank, Situation, Task, Verb
from backy.model.revision import Consistency, Revision, id_for
from backy.repository.status import Status
from backy.sources import open_source
from tests.daemon.machine import Server

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SOON = NOW + timedelta(hours=1)  # before any backup of these jobs is due again
TAGS: Schedule = {"daily": Interval(interval=86400, keep=3)}


def job(**settings: object) -> Job:
    source = {"type": "file", "path": "vm.img"}
    return Job(schedule="daily", source=source, **settings)  # type: ignore[arg-type]


def drill_due(situation: Situation) -> datetime | None:
    """A verb that does not exist: once a day, what was backed up is tried."""
    return situation.history[-1].time + DAY if situation.history else None


def drill_options(task: Task, settings: Job, _: Schedule) -> Sequence[str]:
    return ["--minimum", str(settings.minimum), "--due", f"{task.due:%H:%M}"]


DRILL = Verb("drill", due=drill_due, pool=SLOW, options=drill_options)


def planner(row: Verb = DRILL, slots: int = 1, jobs: Mapping[str, Job] | None = None) -> Planner:
    """With one row more in its table, and jobs that were backed up just now."""
    made = Planner({**VERBS, row.name: row})
    made.slots = slots
    jobs = jobs or {"vm1": job()}
    made.configure({name: (settings, TAGS) for name, settings in jobs.items()}, NOW)
    for name in jobs:
        made.update(name, observed({row.name: SOON}), NOW)
    return made


def observed(due: Mapping[str, datetime], **status: object) -> Observation:
    return Observation({"daily": NOW}, NOW, Status(**status), due)  # type: ignore[arg-type]


def test_a_row_more_in_the_table_is_a_task_more_that_is_planned() -> None:
    made = planner()
    assert made.wake() == SOON
    assert list(made.take(NOW)) == []
    (task,) = made.take(SOON)
    assert task == Task("vm1", "drill", SOON, SLOW)
    assert made.use(SLOW)["in_use"] == 1
    made.finish("vm1")
    assert made.use(SLOW)["in_use"] == 0


def test_its_command_has_the_options_of_its_row() -> None:
    (task,) = planner().take(SOON)
    command = DRILL.command(task, job(minimum=4), TAGS)
    assert command == ["drill", "vm1", "--minimum", "4", "--due", "13:00"]


def test_it_is_due_when_its_row_says_so(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.job("vm1")
    verbs = {**VERBS, "drill": DRILL}
    setup = Setup(load(server.path, open_source).config, server.base, NOW)
    before, _ = observe(setup, "vm1", NOW, verbs)
    assert dict(before.due) == {}
    server.ok("backup", "vm1")
    now = datetime.now(UTC)
    after, summary = observe(setup, "vm1", now, verbs)
    assert summary.newest
    assert after.due["drill"] == summary.newest.time + DAY


def test_it_may_be_asked_for_by_hand_and_goes_first_then() -> None:
    made = planner()
    made.update("vm1", observed({"drill": NOW}, paused=NOW), NOW)
    assert list(made.take(NOW + DAY)) == []
    assert made.request("vm1", "drill", NOW)
    (task,) = made.take(NOW)
    assert (task.verb, task.is_by_hand) == ("drill", True)


@pytest.mark.parametrize(("slots", "started"), [(1, 1), (2, 1), (4, 2), (5, 3)])
def test_background_work_leaves_half_of_the_slots_to_the_others(slots: int, started: int) -> None:
    jobs = {f"vm{number}": job() for number in range(9)}
    made = planner(slots=slots, jobs=jobs)
    assert len(list(made.take(SOON))) == started
    for name in jobs:
        made.finish(name)
    made = planner(replace(DRILL, rank=Rank.SCHEDULED), slots, jobs)
    assert len(list(made.take(SOON))) == slots


@pytest.mark.parametrize(("uses_limits", "started"), [(True, 1), (False, 2)])
def test_a_task_counts_for_the_limits_if_its_row_says_so(uses_limits: bool, started: int) -> None:
    jobs = {name: job(limits=["nas"]) for name in ("vm1", "vm2")}
    made = planner(replace(DRILL, uses_limits=uses_limits), 4, jobs)
    assert len(list(made.take(SOON))) == started


# The rows that exist.


def revision(age: timedelta) -> Revision:
    time = NOW - age
    return Revision(id_for(time, "aaaa"), time, None, 1, Consistency.CRASH, {}, ("daily",))


def situation(settings: Job, *ages: timedelta, removed: Sequence[datetime] = ()) -> Situation:
    """`removed`: when the batches in the trash were, oldest first."""
    history = [revision(age) for age in ages]
    ends = (removed[0], removed[-1]) if removed else None
    return Situation(settings, TAGS, history, Status(), ends, NOW)


def due(verb: str, given: Situation) -> datetime | None:
    row = VERBS[verb]
    assert row.due
    return row.due(given)


def test_expire_is_due_when_something_has_expired() -> None:
    ages = [9 * DAY, 8 * DAY, 7 * DAY, 6 * DAY]
    assert due("expire", situation(job(), *ages)) == NOW
    assert due("expire", situation(job(), *ages[1:])) is None
    assert due("expire", situation(job(expire=False), *ages)) is None


def test_expire_is_due_at_most_once_an_hour_because_each_removal_costs_a_purge() -> None:
    ages, hour = [9 * DAY, 8 * DAY, 7 * DAY, 6 * DAY], timedelta(hours=1)
    just_now = [NOW - 3 * DAY, NOW - hour / 3]
    assert due("expire", situation(job(), *ages, removed=just_now)) == NOW + hour * 2 / 3
    assert due("expire", situation(job(), *ages, removed=[NOW])) == NOW + hour
    assert due("expire", situation(job(), *ages, removed=[NOW - hour])) == NOW
    # A clock that was ahead must not put it off for years.
    assert due("expire", situation(job(), *ages, removed=[NOW + 300 * DAY])) == NOW
    # Nothing has expired, so nothing is started an hour after the last time.
    assert due("expire", situation(job(), *ages[1:], removed=just_now)) is None


def test_purge_is_due_when_the_trash_has_been_kept_for_long_enough() -> None:
    assert due("purge", situation(job(trash="2d"))) is None
    assert due("purge", situation(job(trash="2d"), removed=[NOW])) == NOW + 2 * DAY
    oldest = NOW - DAY
    assert due("purge", situation(job(trash="2d"), removed=[oldest, NOW])) == oldest + 2 * DAY


def test_scrub_is_due_where_something_is_stored_and_its_reading_is_promised() -> None:
    assert due("scrub", situation(job(), DAY)) == NOW
    assert due("scrub", situation(job())) is None
    assert due("scrub", situation(job(scrub=False), DAY)) is None


def task(verb: str, **more: object) -> Task:
    return Task("vm1", verb, NOW, FAST, **more)  # type: ignore[arg-type]


def test_the_commands_are_those_that_an_operator_would_type() -> None:
    settings = job(trash="7d", scrub={"within": "30d", "rate": "2MiB", "max-duration": "1d"})
    commands = [
        VERBS[each.verb].command(each, settings, TAGS)
        for each in (
            task(BACKUP, tags=frozenset({"weekly", "daily"})),
            task("expire"),
            task("purge"),
            task("scrub"),
        )
    ]
    limits = ["--within", "2592000s", "--max-duration", "21600s", "--rate", "2097152"]
    assert commands == [
        ["backup", "vm1", "--tag", "daily", "--tag", "weekly"],
        ["expire", "vm1"],
        ["purge", "vm1", "--older-than", "604800s"],
        ["scrub", "vm1", *limits],
    ]


@pytest.mark.parametrize(("seconds", "pool"), [(599, FAST), (600, SLOW)])
def test_only_a_backup_chooses_its_pool_by_how_long_the_last_one_took(
    seconds: float, pool: str
) -> None:
    pools = {name: row.pool_for(Status(seconds=seconds)) for name, row in VERBS.items()}
    assert pools == {"backup": pool, "expire": FAST, "purge": FAST, "scrub": SLOW}
