"""A job's next run: backy 2's numbers, evenly spread, and right for every moment until it comes.

golden/schedule.json has what backy 2 itself answers. The functions of its 2.6.0.dev0 (commit
15d1e953) were called with these names, schedules and times: Job.spread, next_in_interval,
Schedule.next and Schedule.expire. A row of next_run says when backy 2 starts the job, if it is
asked again at every moment until it does. Where its first answer was another one, that follows.
"""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.config.settings import Interval
from backy.model.revision import Consistency, Revision, id_for
from backy.policy.schedule import (
    Run,
    backoff_seconds,
    last_by_tag,
    next_in_interval,
    next_run,
    sla_seconds,
    spread,
)
from tests.golden.compare import FOLDER

MINUTE, HOUR, DAY = 60, 3600, 86400
NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
GOLDEN = json.loads((FOLDER / "schedule.json").read_bytes())
SCHEDULES = {
    name: {tag: Interval(interval=interval, keep=keep) for tag, (interval, keep) in tags.items()}
    for name, tags in GOLDEN["schedules"].items()
}

moments = st.integers(0, 7_258_118_400_000_000).map(
    lambda microseconds: datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
)
seconds = st.one_of(st.integers(1, 600), st.integers(1, 400 * DAY))
spreads = st.integers(0, 400 * DAY)
ages = st.one_of(st.integers(-DAY, 7 * DAY), st.integers(-2 * 366 * DAY, 2 * 366 * DAY))


def schedule_of(*intervals: int) -> dict[str, Interval]:
    return {f"every-{each}": Interval(interval=each, keep=3) for each in intervals}


def revision(time: datetime, *tags: str) -> Revision:
    return Revision(id_for(time, "aaaa"), time, None, 1.0, Consistency.CRASH, {}, tags)


def after(base: datetime, seconds: float) -> datetime:
    return base + timedelta(seconds=seconds)


schedules = st.lists(seconds, min_size=1, max_size=4, unique=True).map(lambda x: schedule_of(*x))


@st.composite
def jobs(draw: st.DrawFn) -> tuple[dict[str, Interval], int, dict[str, datetime], datetime]:
    """A schedule, a spread, a history of some of its tags, and a moment."""
    schedule, now = draw(schedules), draw(moments)
    whole = now.replace(microsecond=0)
    last = {
        tag: after(whole, -draw(ages)) for tag in draw(st.sets(st.sampled_from(sorted(schedule))))
    }
    return schedule, draw(spreads), last, now


@pytest.mark.parametrize(("job", "name", "expected"), GOLDEN["spread"])
def test_a_job_is_moved_by_as_much_as_in_backy_2(job: str, name: str, expected: int) -> None:
    assert spread(job, SCHEDULES[name]) == expected


@pytest.mark.parametrize(("now", "interval", "moved", "expected"), GOLDEN["next_in_interval"])
def test_the_next_slot_is_that_of_backy_2(
    now: str, interval: int, moved: int, expected: str
) -> None:
    found = next_in_interval(datetime.fromisoformat(now), interval, moved)
    assert found == datetime.fromisoformat(expected)


@pytest.mark.parametrize("row", GOLDEN["next_run"], ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
def test_a_job_starts_when_and_with_the_tags_that_it_did_in_backy_2(row: list[Any]) -> None:
    name, job, now, last, has_history, time, tags, *_ = row
    run = next_run(
        SCHEDULES[name],
        spread(job, SCHEDULES[name]),
        {tag: datetime.fromisoformat(each) for tag, each in last.items()},
        has_history=has_history,
        now=datetime.fromisoformat(now),
    )
    assert run == Run(datetime.fromisoformat(time), frozenset(tags))


@given(moments, seconds, spreads)
def test_the_next_slot_is_after_now_and_within_one_interval(
    now: datetime, interval: int, moved: int
) -> None:
    slot = next_in_interval(now, interval, moved)
    assert now < slot <= after(now, interval)
    assert slot.microsecond == 0


@given(moments, seconds, spreads)
def test_slots_follow_each_other_in_intervals_and_each_is_seen_until_it_comes(
    now: datetime, interval: int, moved: int
) -> None:
    slot = next_in_interval(now, interval, moved)
    assert next_in_interval(slot, interval, moved) == after(slot, interval)
    assert next_in_interval(slot - timedelta(microseconds=1), interval, moved) == slot


def test_a_microsecond_before_a_slot_is_still_before_it() -> None:
    # A float of the seconds since the year 1 does not know these moments apart.
    slot = next_in_interval(NOW, DAY, 47)
    assert next_in_interval(slot - timedelta(microseconds=1), DAY, 47) == slot
    assert next_in_interval(slot, DAY, 47) == after(slot, DAY)


@given(moments, spreads)
def test_a_day_that_divides_a_week_has_the_week_s_slot_among_its_own(
    now: datetime, moved: int
) -> None:
    weekly = next_in_interval(now, 7 * DAY, moved)
    assert next_in_interval(after(weekly, -1), DAY, moved) == weekly


@given(moments, seconds, spreads, st.integers(-23, 23))
def test_the_offset_of_a_clock_s_zone_changes_nothing(
    now: datetime, interval: int, moved: int, hours: int
) -> None:
    local = now.astimezone(timezone(timedelta(hours=hours)))
    assert next_in_interval(local, interval, moved) == next_in_interval(now, interval, moved)


@given(jobs())
def test_a_run_is_never_in_the_past_nor_later_than_the_smallest_interval(
    job: tuple[dict[str, Interval], int, dict[str, datetime], datetime],
) -> None:
    schedule, moved, last, now = job
    run = next_run(schedule, moved, last, has_history=bool(last), now=now)
    smallest = min(each.interval for each in schedule.values())
    assert now <= run.time <= after(now, smallest)
    assert run.tags
    assert run.tags <= schedule.keys()


@given(jobs(), st.floats(0, 1))
def test_an_answer_stays_right_until_its_time(
    job: tuple[dict[str, Interval], int, dict[str, datetime], datetime], part: float
) -> None:
    schedule, moved, last, now = job
    run = next_run(schedule, moved, last, has_history=bool(last), now=now)
    later = now + part * (run.time - now)
    if later < run.time:
        assert next_run(schedule, moved, last, has_history=bool(last), now=later) == run


@given(jobs())
def test_a_run_has_every_tag_that_is_missed_when_it_starts(
    job: tuple[dict[str, Interval], int, dict[str, datetime], datetime],
) -> None:
    schedule, moved, last, now = job
    run = next_run(schedule, moved, last, has_history=True, now=now)
    missed = {
        tag
        for tag, each in schedule.items()
        if tag not in last or (run.time - last[tag]).total_seconds() >= each.interval
    }
    assert missed <= run.tags


HOURLY = {"hourly": Interval(interval=HOUR, keep=24), "daily": Interval(interval=DAY, keep=7)}
# With this spread, slots of both tags are ten minutes past the hour; the daily one after midnight.
TEN_PAST = 10 * MINUTE


def hourly_run(now: datetime, hourly: datetime | None, daily: datetime | None) -> Run:
    last = {"hourly": hourly, "daily": daily, "manual:x": NOW}
    known = {tag: each for tag, each in last.items() if each}
    return next_run(HOURLY, TEN_PAST, known, has_history=True, now=now)


def test_a_job_that_missed_nothing_waits_for_its_slot_with_the_tags_of_that() -> None:
    assert hourly_run(NOW, after(NOW, -50 * MINUTE), after(NOW, -9 * HOUR)) == Run(
        after(NOW, 10 * MINUTE), frozenset({"hourly"})
    )
    midnight = NOW.replace(hour=0) + timedelta(days=1)
    assert hourly_run(midnight, after(midnight, -50 * MINUTE), after(midnight, -23 * HOUR)) == Run(
        after(midnight, 10 * MINUTE), frozenset({"hourly", "daily"})
    )


def test_a_missed_tag_runs_at_once_and_alone() -> None:
    assert hourly_run(NOW, after(NOW, -30 * MINUTE), after(NOW, -DAY)) == Run(
        NOW, frozenset({"daily"})
    )


@pytest.mark.parametrize("days", [1, 2, 30, 2000])
def test_what_was_missed_however_often_is_caught_up_by_one_run(days: int) -> None:
    long_ago = after(NOW, -days * DAY)
    assert hourly_run(NOW, long_ago, long_ago) == Run(NOW, frozenset(HOURLY))


def test_a_tag_that_was_never_made_is_missed_where_there_are_other_revisions() -> None:
    assert hourly_run(NOW, None, None) == Run(NOW, frozenset(HOURLY))


@pytest.mark.parametrize(
    ("before", "is_awaited"), [(301, False), (300, True), (299, True), (1, True)]
)
def test_a_slot_within_five_minutes_is_awaited_and_takes_what_was_missed_along(
    before: int, is_awaited: bool
) -> None:
    slot = after(NOW, 10 * MINUTE)
    now = after(slot, -before)
    run = hourly_run(now, after(now, -30 * MINUTE), after(now, -3 * DAY))
    expected = Run(slot, frozenset(HOURLY)) if is_awaited else Run(now, frozenset({"daily"}))
    assert run == expected


def test_a_new_job_waits_for_its_first_slot_and_gets_every_tag_there() -> None:
    run = next_run(HOURLY, TEN_PAST, {}, has_history=False, now=NOW)
    assert run == Run(after(NOW, 10 * MINUTE), frozenset(HOURLY))


def test_a_slot_that_a_restart_lost_is_made_up_for_as_soon_as_its_tag_is_missed() -> None:
    # The daily slot was at 0:10 while the daemon restarted, and the last daily began at 5:00.
    daily = after(NOW, -28 * HOUR)
    now = NOW.replace(hour=0, minute=10, second=1)
    assert now < after(daily, DAY)
    schedule = {"daily": Interval(interval=DAY, keep=7)}
    run = next_run(schedule, TEN_PAST, {"daily": daily}, has_history=True, now=now)
    assert run == Run(after(daily, DAY), frozenset({"daily"}))


@pytest.mark.parametrize("ahead", [HOUR, 400 * DAY, 7900 * 365 * DAY], ids=str)
def test_a_revision_from_the_future_neither_stops_the_slots_nor_starts_a_storm(ahead: int) -> None:
    future = after(NOW, ahead)
    slot = after(NOW, 10 * MINUTE)
    assert hourly_run(NOW, future, future) == Run(slot, frozenset({"hourly"}))
    assert hourly_run(slot, future, future) == Run(after(slot, HOUR), frozenset({"hourly"}))


EVEN = {
    # name: intervals, seconds of a window, most starts in one window against the mean
    "every 5 minutes": ((5 * MINUTE,), MINUTE, 1.1),
    "every hour": ((HOUR,), 5 * MINUTE, 1.1),
    "every day and week": ((DAY, 7 * DAY), 5 * MINUTE, 1.75),
    "every day, week and month": ((DAY, 7 * DAY, 30 * DAY), 5 * MINUTE, 1.75),
}


@pytest.mark.parametrize(("intervals", "window", "peak"), EVEN.values(), ids=EVEN.keys())
def test_ten_thousand_jobs_start_evenly(
    intervals: tuple[int, ...], window: int, peak: float
) -> None:
    schedule = schedule_of(*intervals)
    names = [f"vm{number:04}" for number in range(1, 10_001)]
    first = [next_in_interval(NOW, intervals[0], spread(name, schedule)) for name in names]
    windows = Counter(int((each - after(NOW, 1)).total_seconds()) // window for each in first)
    assert sorted(windows) == list(range(intervals[0] // window))
    mean = len(names) / len(windows)
    assert max(windows.values()) < peak * mean
    # Chi-square within three standard deviations of what chance gives: neither clumps nor a grid.
    free = len(windows) - 1
    chi_square = sum((count - mean) ** 2 / mean for count in windows.values())
    assert abs(chi_square - free) < 3 * (2 * free) ** 0.5


def test_jobs_are_spread_over_the_longest_interval_and_not_only_the_smallest() -> None:
    schedule = schedule_of(DAY, 30 * DAY)
    moved = [spread(f"vm{number:04}", schedule) for number in range(1000)]
    days = Counter(each // DAY for each in moved)
    assert 0 <= min(moved) <= max(moved) <= 30 * DAY
    assert set(range(30)) <= days.keys()


def test_the_newest_revision_with_a_tag_counts() -> None:
    history = [
        revision(NOW, "daily", "weekly"),
        revision(after(NOW, DAY), "daily"),
        revision(after(NOW, DAY + 1), "manual:x"),
        revision(after(NOW, DAY + 2)),
    ]
    assert last_by_tag(history) == {
        "weekly": NOW,
        "daily": after(NOW, DAY),
        "manual:x": after(NOW, DAY + 1),
    }
    nothing: list[Revision] = []
    assert last_by_tag(nothing) == {}


@pytest.mark.parametrize(
    ("errors", "minutes"),
    [
        (0, 0), (1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (6, 64), (7, 128), (8, 256), (9, 360),
        (10, 360), (10**12, 360),
    ],
)  # fmt: skip
def test_each_failure_doubles_the_wait_up_to_six_hours(errors: int, minutes: int) -> None:
    assert backoff_seconds(errors) == minutes * MINUTE


@pytest.mark.parametrize(
    ("intervals", "expected"), [((300,), 450), ((DAY, HOUR), 1.5 * HOUR), ((1,), 1.5)]
)
def test_a_revision_may_be_one_and_a_half_of_the_smallest_interval_old(
    intervals: tuple[int, ...], expected: float
) -> None:
    schedule: dict[str, Interval] = schedule_of(*intervals)
    assert sla_seconds(schedule) == expected
