"""What expires is what backy 2 expires, and never the newest revision, whatever the clock says."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.config.settings import Interval
from backy.model.revision import Consistency, Revision, Trust, id_for
from backy.policy.retention import Expiry, expiries
from tests.golden.compare import FOLDER

DAY = 86400
NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
GOLDEN = json.loads((FOLDER / "schedule.json").read_bytes())  # see test_schedule.py
SCHEDULES = {
    name: {tag: Interval(interval=interval, keep=keep) for tag, (interval, keep) in tags.items()}
    for name, tags in GOLDEN["schedules"].items()
}
DAILY = {"daily": Interval(interval=DAY, keep=3)}
TAGS = ["daily", "weekly", "monthly", "former", "manual:x"]

Schedule = dict[str, Interval]


def revision(time: datetime, *tags: str, trust: Trust = Trust.TRUSTED) -> Revision:
    return Revision(id_for(time, "aaaa"), time, None, 1, Consistency.CRASH, {}, tags, trust)


def days_ago(*days: float, tag: str = "daily") -> list[Revision]:
    """A history with one revision at each of these ages."""
    return [revision(NOW - timedelta(days=each), tag) for each in sorted(days, reverse=True)]


def done(history: Sequence[Revision], found: Sequence[Expiry]) -> list[Revision]:
    """The history after that was done."""
    new = {each.revision.id: each for each in found}
    kept = [each for each in history if each.id not in new or not new[each.id].is_removed]
    return [replace(each, tags=new[each.id].keep) if each.id in new else each for each in kept]


def ages(history: Sequence[Revision]) -> list[float]:
    return [(NOW - each.time) / timedelta(days=1) for each in history]


def dropped(found: Sequence[Expiry]) -> set[tuple[str, str]]:
    return {(each.revision.id, tag) for each in found for tag in each.drop}


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Interval]:
    tags = draw(st.sets(st.sampled_from(["daily", "weekly", "monthly"]), min_size=1))
    rules = st.builds(
        Interval, interval=st.sampled_from([300, 3600, DAY, 7 * DAY]), keep=st.integers(1, 5)
    )
    return {tag: draw(rules) for tag in sorted(tags)}


@st.composite
def histories(draw: st.DrawFn) -> list[Revision]:
    """Up to 25 revisions, hours or weeks apart, some of them from the future."""
    gaps = draw(st.lists(st.sampled_from([1, 299, 300, 3600, DAY, 9 * DAY]), max_size=25))
    time = NOW + timedelta(seconds=draw(st.integers(-5 * DAY, 90 * DAY)))
    history = []
    for gap in gaps:
        time -= timedelta(seconds=gap)
        tags = draw(st.lists(st.sampled_from(TAGS), unique=True, max_size=3))
        trust = draw(st.sampled_from([Trust.TRUSTED, Trust.VERIFIED, Trust.DISTRUSTED]))
        history.append(revision(time, *tags, trust=trust))
    return history[::-1]


minimums = st.integers(1, 6)
jumps = st.integers(-20 * 366 * DAY, 20 * 366 * DAY).map(lambda each: NOW + timedelta(seconds=each))


# backy 2 counts what is from the future.
PAST = [row for row in GOLDEN["expire"] if all(age <= 0 for age, *_ in row[2])]


@pytest.mark.parametrize("row", PAST, ids=lambda row: f"{row[0]}-{row[1]}")
def test_what_expires_is_what_backy_2_expires_but_for_the_newest(row: list[Any]) -> None:
    name, text, revisions, expected = row
    now = datetime.fromisoformat(text)
    history = [revision(now + timedelta(seconds=age), *tags) for age, *tags in revisions]
    if history:
        expected[-1] = sorted(history[-1].tags)
    found = done(history, expiries(history, SCHEDULES[name], now))
    after = {each.id: sorted(each.tags) for each in found}
    assert [after.get(each.id) for each in history] == expected


def test_a_revision_goes_when_it_is_beyond_the_newest_and_older_than_their_time() -> None:
    history = days_ago(0, 1, 2, 3, 4, 5)
    assert ages(done(history, expiries(history, DAILY, NOW))) == [3, 2, 1, 0]


def test_a_revision_as_old_as_the_time_to_the_second_stays_until_the_next() -> None:
    history = days_ago(0, 1, 2, 3)
    assert not expiries(history, DAILY, NOW)
    (gone,) = expiries(history, DAILY, NOW + timedelta(seconds=1))
    assert gone.revision == history[0]


def test_however_many_there_are_the_young_stay() -> None:
    history = days_ago(*(hour / 24 for hour in range(72)))
    assert not expiries(history, DAILY, NOW)


def test_however_old_they_are_the_newest_stay() -> None:
    history = days_ago(1000, 1001, 1002, 1003)
    assert ages(done(history, expiries(history, DAILY, NOW))) == [1002, 1001, 1000]


def test_a_tag_goes_by_its_own_rule_and_the_revision_with_its_last_one() -> None:
    schedule = DAILY | {"weekly": Interval(interval=7 * DAY, keep=2)}
    old = revision(NOW - timedelta(days=10), "daily", "weekly")
    history = [old, *days_ago(0, 1, 2)]
    (first,) = expiries(history, schedule, NOW)
    assert (first.drop, first.keep, first.is_removed) == (("daily",), ("weekly",), False)
    history = [*done(history, [first]), revision(NOW, "weekly"), revision(NOW, "weekly")]
    later = NOW + timedelta(days=20)
    assert (old.id, True) in [
        (x.revision.id, x.is_removed) for x in expiries(history, schedule, later)
    ]


def test_a_manual_tag_holds_a_revision_for_ever() -> None:
    history = [
        revision(NOW - timedelta(days=9000), "daily", "former", "manual:x"),
        *days_ago(0, 1, 2),
    ]
    (only,) = expiries(history, DAILY, NOW)
    assert (only.drop, only.keep) == (("daily", "former"), ("manual:x",))
    assert not expiries(done(history, [only]), DAILY, NOW + timedelta(days=9000))[1:]


def test_a_tag_twice_in_a_record_does_not_count_twice() -> None:
    history = days_ago(4, 5, 6)
    history[-1] = replace(history[-1], tags=("daily",) * 3)
    assert not expiries(history, DAILY, NOW)


def test_a_revision_without_tags_goes_once_there_is_a_newer_one() -> None:
    history = [revision(NOW - timedelta(days=1)), revision(NOW)]
    (gone,) = expiries(history, DAILY, NOW)
    assert gone.revision == history[0]
    assert gone.is_removed


@pytest.mark.parametrize("minimum", [1, 2, 5])
def test_the_newest_revisions_are_left_as_they_are_by_another_schedule(minimum: int) -> None:
    history = days_ago(*range(100, 120), tag="former")
    after = done(history, expiries(history, DAILY, NOW, minimum))
    assert after == history[-minimum:]


def test_the_newest_that_is_not_distrusted_stays_beside_the_newest() -> None:
    history = [replace(each, trust=Trust.DISTRUSTED) for each in days_ago(*range(100, 110))]
    history[4] = replace(history[4], trust=Trust.VERIFIED)
    history[2] = replace(history[2], trust=Trust.TRUSTED)
    after = done(history, expiries(history, DAILY, NOW))
    assert after == [history[4], *history[-3:]]


def test_nothing_expires_where_there_is_nothing() -> None:
    assert expiries([], DAILY, NOW) == []


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        (("daily",), "daily has 3 newer and is older than 3 d 0 h"),
        (
            ("former", "daily"),
            "former is not in the schedule; daily has 3 newer and is older than 3 d 0 h",
        ),
        (("former", "manual:x"), "former is not in the schedule"),
        ((), "it has no tags"),
    ],
    ids=["kept long enough", "two reasons", "former", "none"],
)  # fmt: skip
def test_people_are_told_why(tags: tuple[str, ...], why: str) -> None:
    history = [revision(NOW - timedelta(days=30), *tags), *days_ago(0, 1, 2)]
    assert [each.why for each in expiries(history, DAILY, NOW)] == [why]


def test_a_rule_that_keeps_longer_than_there_are_years_keeps() -> None:
    schedule = {"daily": Interval(interval=300 * 365 * DAY, keep=10**9)}
    assert not expiries(days_ago(*range(100)), schedule, NOW)


@given(histories(), schedules(), jumps, minimums)
def test_the_newest_revisions_are_untouched_at_any_time(
    history: list[Revision], schedule: Schedule, now: datetime, minimum: int
) -> None:
    touched = {each.revision.id for each in expiries(history, schedule, now, minimum)}
    trusted = [each for each in history if each.trust is not Trust.DISTRUSTED]
    assert not touched & {each.id for each in history[-minimum:] + trusted[-1:]}


@given(histories(), schedules(), jumps, minimums)
def test_the_newest_with_each_tag_keep_it_at_any_time(
    history: list[Revision], schedule: Schedule, now: datetime, minimum: int
) -> None:
    # However the clock jumps: what goes is at most what is too many.
    found = expiries(history, schedule, now, minimum)
    for tag, rule in schedule.items():
        newest = [each.id for each in history if tag in each.tags][-rule.keep :]
        assert not {(each, tag) for each in newest} & dropped(found)
        assert not {each.revision.id for each in found if each.is_removed} & set(newest)


@given(histories(), schedules(), jumps, minimums)
def test_what_is_younger_than_its_time_keeps_its_tag(
    history: list[Revision], schedule: Schedule, now: datetime, minimum: int
) -> None:
    for each in expiries(history, schedule, now, minimum):
        for tag in set(each.drop) & schedule.keys():
            age = (now - each.revision.time).total_seconds()
            assert age > schedule[tag].keep * schedule[tag].interval


@given(histories(), schedules(), jumps, minimums)
def test_what_is_too_many_and_too_old_goes(
    history: list[Revision], schedule: Schedule, now: datetime, minimum: int
) -> None:
    ahead = [each for each in history if each.time > now + timedelta(minutes=1)]
    dated = [each for each in history if each not in ahead]
    trusted = [each for each in dated if each.trust is not Trust.DISTRUSTED]
    spared = {each.id for each in dated[-minimum:] + trusted[-1:]}
    after = [
        each
        for each in done(history, expiries(history, schedule, now, minimum))
        if each not in ahead
    ]
    for each in after:
        assert each.tags or each.id in spared
        assert each.id in spared or not {*each.tags} - {*schedule, "manual:x"}
    for tag, rule in schedule.items():
        for each in [each for each in after if tag in each.tags][: -rule.keep]:
            age = (now - each.time).total_seconds()
            assert each.id in spared or age <= rule.keep * rule.interval


@given(histories(), schedules(), jumps, minimums)
def test_what_comes_from_a_clock_that_was_ahead_has_no_say(
    history: list[Revision], schedule: Schedule, now: datetime, minimum: int
) -> None:
    dated = [each for each in history if each.time <= now + timedelta(minutes=1)]
    assert expiries(history, schedule, now, minimum) == expiries(dated, schedule, now, minimum)


@given(histories(), schedules(), jumps, minimums)
def test_once_it_is_done_there_is_nothing_more_to_do(
    history: list[Revision], schedule: Schedule, now: datetime, minimum: int
) -> None:
    after = done(history, expiries(history, schedule, now, minimum))
    assert expiries(after, schedule, now, minimum) == []


@given(histories(), schedules(), jumps, minimums)
def test_each_answer_says_what_becomes_of_every_tag(
    history: list[Revision], schedule: Schedule, now: datetime, minimum: int
) -> None:
    found = expiries(history, schedule, now, minimum)
    assert [each.revision for each in found] == [
        x for x in history if x in [y.revision for y in found]
    ]
    for each in found:
        assert {*each.drop, *each.keep} == {*each.revision.tags}
        assert not {*each.drop} & {*each.keep}
        assert each.is_removed is not bool(each.keep)
        assert each.drop or each.is_removed
        assert each.why.isprintable()
        assert not any(tag.startswith("manual:") for tag in each.drop)


@given(histories(), schedules(), jumps, jumps, minimums)
def test_what_goes_now_goes_later_as_well(
    history: list[Revision], schedule: Schedule, first: datetime, second: datetime, minimum: int
) -> None:
    now, later = sorted((first, second))
    gone = dropped(expiries(history, schedule, now, minimum))
    assert gone <= dropped(expiries(history, schedule, later, minimum))


@given(histories(), schedules(), jumps, minimums, st.integers(1, 5))
def test_who_keeps_more_loses_no_more(
    history: list[Revision], schedule: Schedule, now: datetime, minimum: int, more: int
) -> None:
    longer = {
        tag: Interval(interval=each.interval, keep=each.keep + more)
        for tag, each in schedule.items()
    }
    gone = dropped(expiries(history, schedule, now, minimum))
    assert dropped(expiries(history, longer, now, minimum)) <= gone
    assert dropped(expiries(history, schedule, now, minimum + more)) <= gone


@given(histories(), schedules(), st.lists(jumps, max_size=5), minimums)
def test_however_often_the_clock_jumps_the_newest_with_each_tag_stay(
    history: list[Revision], schedule: Schedule, clock: list[datetime], minimum: int
) -> None:
    after = history
    for now in clock:
        after = done(after, expiries(after, schedule, now, minimum))
    for tag, rule in schedule.items():
        with_tag = [[each.id for each in part if tag in each.tags] for part in (history, after)]
        assert with_tag[0][-rule.keep :] == with_tag[1][-rule.keep :]
