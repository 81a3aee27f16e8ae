"""What `backy check` says: every state, its boundaries, and a form that Nagios can read."""

import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from _pytest.mark import ParameterSet
from hypothesis import given
from hypothesis import strategies as st

from backy.model.revision import Consistency, Revision, Trust, id_for
from backy.monitoring.health import Finding, Judge, Promise, Server, State, days_until_full
from backy.monitoring.space import Space
from backy.repository.status import Scrubbed, Status
from backy.repository.summary import Summary
from backy.units import GiB, TiB
from tests.docs import markdown

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR, DAY = 3600, 86400
HOURLY = Promise(HOUR)
SCRUBBED = Promise(HOUR, 30 * DAY)
ROOMY = Space(TiB, TiB // 2)
FINE = Server(is_running=True, space=ROOMY)
JUDGE = Judge(NOW)

# The Nagios plug-in guidelines: 'label'=value[unit];[warn];[crit];[min];[max]
NUMBER = r"-?[0-9]+(\.[0-9]+)?"
DATUM = re.compile(
    rf"[a-z_]{{1,19}}=(U|{NUMBER}(s|us|ms|%|B|KB|MB|TB|c)?)"
    rf"(;(@?(~|{NUMBER})?:?({NUMBER})?)){{0,2}}(;({NUMBER})?){{0,2}}"
)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def revision(age: float, trust: Trust = Trust.TRUSTED) -> Revision:
    return Revision(id_for(ago(age), "aaaa"), ago(age), None, 1.0, Consistency.CRASH, {}, (), trust)


def job(*ages: float, name: str = "vm1", reports: int = 0, **status: object) -> Summary:
    """A job with a revision of each age, the newest last."""
    made = [revision(age) for age in ages]
    return Summary(
        name,
        tuple(each.id for each in made),
        made[-1] if made else None,
        Status(**status),  # type: ignore[arg-type]
        reports,
        oldest=made[0].time if made else None,
    )


def job_ahead(*ages: float, ahead: int, **status: object) -> Summary:
    """The same, with so many more revisions after those that a clock made which was ahead."""
    summary = job(*ages, **status)  # type: ignore[arg-type]
    later = tuple(revision(-DAY - number).id for number in range(ahead))
    return replace(summary, revisions=summary.revisions + later, ahead=ahead)


def findings(
    summary: Summary, promise: Promise = HOURLY, judge: Judge = JUDGE
) -> list[tuple[State, str]]:
    return [(each.state, each.text) for each in judge.job(summary, promise)]


def of_server(server: Server, judge: Judge = JUDGE) -> list[tuple[State, str]]:
    return [(each.state, each.text) for each in judge.server(server) if each.state]


def check(
    *summaries: Summary, server: Server = FINE, promise: Promise = HOURLY, judge: Judge = JUDGE
) -> tuple[int, str, str, list[str]]:
    """The exit code, the status line, its perfdata, the lines after it."""
    code, text = judge.report(summaries, {each.job: promise for each in summaries}, server)
    assert text.endswith("\n")
    first, *lines = text[:-1].split("\n")
    line, _, perfdata = first.partition(" | ")
    return code, line, perfdata, lines


def numbers(perfdata: str) -> dict[str, str]:
    return {each.partition("=")[0]: re.split("[=;]", each)[1] for each in perfdata.split(" ")}


def test_a_job_with_a_new_revision_and_nothing_else_to_say_is_good() -> None:
    assert findings(job(2 * DAY, 60, seconds=12.5, failures=7)) == []


TROUBLES_OF_JOBS = [
    pytest.param(job(), State.CRITICAL, "never backed up", id="never"),
    pytest.param(job(paused=ago(60)), State.CRITICAL, "never backed up", id="never-though-paused"),
    pytest.param(
        job(36 * HOUR),
        State.CRITICAL,
        "last backup 1 d 12 h ago, 1 h 30 min allowed",
        id="late",
    ),
    pytest.param(
        job_ahead(ahead=2), State.CRITICAL, "no revision has a credible time", id="all-ahead"
    ),
    pytest.param(
        job_ahead(ahead=2, paused=ago(60)),
        State.CRITICAL,
        "no revision has a credible time",
        id="all-ahead-though-paused",
    ),
    pytest.param(
        job_ahead(60, ahead=3),
        State.WARNING,
        "newest revisions are from the future: 3",
        id="ahead",
    ),
    pytest.param(
        job(DAY, paused=ago(2 * DAY)),
        State.WARNING,
        "paused since 2026-11-21 12:00 UTC, last backup 1 d 0 h ago",
        id="paused",
    ),
    pytest.param(
        job(60, errors=3, error="vm1.img: No such file"),
        State.WARNING,
        "last 3 backups failed: vm1.img: No such file",
        id="failed",
    ),
    pytest.param(
        job(60, reports=2), State.WARNING, "reports of damage in quarantine: 2", id="reports"
    ),
    pytest.param(
        job(60, hooks_failed=1, hook_error="freeze ended with code 3"),
        State.WARNING,
        "a hook failed in the last backup: freeze ended with code 3",
        id="hooks",
    ),
    pytest.param(
        job(60, hooks_failed=4, hook_error="copy ended with code 1"),
        State.WARNING,
        "a hook failed in each of the last 4 backups: copy ended with code 1",
        id="hooks-again",
    ),
    pytest.param(
        job(60, tracking_error_at=ago(30 * DAY - 1)),
        State.WARNING,
        "source reported changed blocks as unchanged on 2026-10-24",
        id="tracking-error",
    ),
    pytest.param(
        job(60, suspicious="it has 3 of 100 GiB"),
        State.WARNING,
        "newest revision is suspicious: it has 3 of 100 GiB",
        id="suspicious",
    ),
    pytest.param(
        job(DAY, 60, distrusted=(revision(DAY).id,)),
        State.WARNING,
        "distrusted revisions: 1 of 2",
        id="distrusted",
    ),
    pytest.param(
        job(60, distrusted=(revision(60).id,)),
        State.CRITICAL,
        "distrusted revisions: 1 of 1",
        id="all-distrusted",
    ),
    pytest.param(
        Summary("vm1", problem="revision.json: disks: Field required"),
        State.CRITICAL,
        "revision.json: disks: Field required",
        id="damaged",
    ),
    pytest.param(
        Summary("vm1", problem="listing /srv/backy/vm1: Permission denied"),
        State.UNKNOWN,
        "listing /srv/backy/vm1: Permission denied",
        id="denied",
    ),
    pytest.param(
        replace(job(60), problem="reading status.json: it has no format"),
        State.CRITICAL,
        "reading status.json: it has no format",
        id="damaged-with-a-revision",
    ),
    pytest.param(
        replace(job(60), newest=None),
        State.UNKNOWN,
        "newest revision could not be checked",
        id="newest-not-read",
    ),
]


@pytest.mark.parametrize(("summary", "state", "text"), TROUBLES_OF_JOBS)
def test_each_trouble_of_a_job_is_a_finding(summary: Summary, state: State, text: str) -> None:
    assert findings(summary) == [(state, text)]
    assert check(summary)[0] == {State.WARNING: 1, State.CRITICAL: 2, State.UNKNOWN: 3}[state]


@pytest.mark.parametrize(
    ("summary", "judge", "is_good"),
    [
        pytest.param(job(5400), JUDGE, True, id="as-old-as-allowed"),
        pytest.param(job(5401), JUDGE, False, id="a-second-older"),
        pytest.param(job(5401), Judge(NOW, sla_factor=2), True, id="another-factor"),
        pytest.param(job(7201), Judge(NOW, sla_factor=2), False, id="too-old-for-that-too"),
        pytest.param(job(-60), JUDGE, True, id="a-minute-in-the-future"),
        pytest.param(job(60, errors=2), JUDGE, True, id="failed-twice"),
        pytest.param(job(60, errors=3), JUDGE, False, id="failed-three-times"),
        pytest.param(job(60, errors=3), Judge(NOW, failed=4), True, id="four-are-too-many"),
        pytest.param(job(60, errors=1), Judge(NOW, failed=1), False, id="one-is-too-many"),
    ],
)
def test_boundaries_are_where_the_thresholds_say(
    summary: Summary, judge: Judge, is_good: bool
) -> None:
    assert (findings(summary, judge=judge) == []) is is_good


def test_a_late_job_says_why_from_its_first_failure_on() -> None:
    late = (State.CRITICAL, "last backup 2 h 0 min ago, 1 h 30 min allowed")
    assert findings(job(2 * HOUR, errors=1, error="no space")) == [
        late,
        (State.WARNING, "last backup failed: no space"),
    ]
    assert findings(job(errors=1, error="no source"))[1:] == [
        (State.WARNING, "last backup failed: no source")
    ]


def test_a_threshold_that_is_no_number_makes_nothing_good() -> None:
    judge = Judge(NOW, sla_factor=float("nan"))
    with suppress(ValueError):  # which `backy check` reports as UNKNOWN
        assert findings(job(60), judge=judge) != []


def test_the_distrust_of_revisions_that_are_gone_is_forgotten() -> None:
    assert findings(job(60, distrusted=(revision(9 * DAY).id,))) == []


def test_the_newest_revision_is_distrusted_by_its_own_word_too() -> None:
    summary = replace(job(DAY, 60), newest=revision(60, Trust.DISTRUSTED))
    assert findings(summary) == [(State.WARNING, "distrusted revisions: 1 of 2")]
    assert numbers(check(summary)[2])["distrusted"] == "1"


def scrubbed(oldest: datetime | None, time: datetime = NOW) -> Scrubbed:
    return Scrubbed(time, 10, 10, oldest)


@pytest.mark.parametrize(
    ("summary", "days"),
    [
        pytest.param(job(30 * DAY, 60), None, id="never-read-and-as-old-as-promised"),
        pytest.param(job(31 * DAY, 60), 31, id="never-read-and-older"),
        pytest.param(job(60, scrubbed=scrubbed(ago(30 * DAY))), None, id="scrubbed-in-time"),
        pytest.param(job(60, scrubbed=scrubbed(ago(32 * DAY))), 32, id="scrub-left-something"),
        pytest.param(job(60, scrubbed=scrubbed(ago(30 * DAY + 1))), 30, id="scrubbed-too-late"),
        pytest.param(
            job(40 * DAY, 60, verified=ago(DAY)),
            40,
            id="verify-of-one-revision-is-no-proof-of-all-bytes",
        ),
        pytest.param(
            job(60, verified=ago(DAY), scrubbed=scrubbed(ago(34 * DAY))),
            34,
            id="verify-does-not-hide-what-scrub-left",
        ),
        pytest.param(
            job(40 * DAY, 60, verified=ago(50 * DAY), scrubbed=scrubbed(ago(DAY))),
            None,
            id="scrubbed-though-not-verified",
        ),
        pytest.param(
            job(35 * DAY, 60, scrubbed=scrubbed(None, ago(36 * DAY))),
            35,
            id="scrubbed-when-nothing-was-there",
        ),
        pytest.param(
            job(36 * DAY, 60, scrubbed=scrubbed(ago(-DAY))),
            36,
            id="read-in-the-future-is-no-proof",
        ),
        pytest.param(
            job(37 * DAY, 60, paused=ago(DAY)), 37, id="paused-jobs-are-to-be-read-as-well"
        ),
    ],
)
def test_what_was_not_read_within_the_promise_is_a_warning(
    summary: Summary, days: int | None
) -> None:
    text = f"not read for {days} d 0 h, 30 d 0 h promised"
    found = [each for each in findings(summary, SCRUBBED) if "paused" not in each[1]]
    assert found == ([(State.WARNING, text)] if days else [])


def test_where_no_reading_is_promised_none_is_missed() -> None:
    assert findings(job(400 * DAY, 60), HOURLY) == []
    assert len(findings(job(400 * DAY, 60), SCRUBBED)) == 1


def test_a_job_that_was_never_backed_up_is_not_told_to_be_read() -> None:
    assert findings(job(), SCRUBBED) == [(State.CRITICAL, "never backed up")]


TROUBLES_OF_THE_SERVER = [
    pytest.param(
        replace(FINE, is_running=False), State.CRITICAL, "daemon is not running", id="daemon"
    ),
    pytest.param(
        replace(FINE, is_running=None), State.UNKNOWN, "daemon could not be checked", id="not-asked"
    ),
    pytest.param(
        replace(FINE, configuration_problem="backy.yaml:3: jobs: bad"),
        State.WARNING,
        "configuration: backy.yaml:3: jobs: bad",
        id="configuration",
    ),
    pytest.param(
        replace(FINE, space=None), State.UNKNOWN, "free space could not be checked", id="no-space"
    ),
    pytest.param(
        replace(FINE, space=Space(100 * GiB, 9 * GiB)),
        State.WARNING,
        "9.0 GiB free (9.0 %)",
        id="little-space",
    ),
    pytest.param(
        replace(FINE, space=Space(100 * GiB, 2 * GiB)),
        State.CRITICAL,
        "2.0 GiB free (2.0 %)",
        id="hardly-any-space",
    ),
    pytest.param(
        replace(FINE, space=replace(ROOMY, inodes=Space(1000, 90))),
        State.WARNING,
        "90 inodes free (9.0 %)",
        id="few-inodes",
    ),
    pytest.param(
        replace(FINE, space=replace(ROOMY, inodes=Space(1000, 0))),
        State.CRITICAL,
        "0 inodes free (0.0 %)",
        id="no-inodes",
    ),
    pytest.param(
        replace(FINE, space=Space(0, 0)), State.CRITICAL, "0 B free (0.0 %)", id="no-size"
    ),
]


@pytest.mark.parametrize(("server", "state", "text"), TROUBLES_OF_THE_SERVER)
def test_each_trouble_of_the_server_is_a_finding(server: Server, state: State, text: str) -> None:
    assert of_server(server) == [(state, text)]
    code, line, _, lines = check(job(60), server=server)
    assert code == {State.WARNING: 1, State.CRITICAL: 2, State.UNKNOWN: 3}[state]
    assert line == f"BACKY {state.name} - 1 job: {text}"
    assert lines == [f"{state.name} {text}"]


@pytest.mark.parametrize(
    ("free", "limits", "state"),
    [
        pytest.param(1000, {}, State.OK, id="ten-percent"),
        pytest.param(999, {}, State.WARNING, id="a-little-less"),
        pytest.param(300, {}, State.WARNING, id="three-percent"),
        pytest.param(299, {}, State.CRITICAL, id="a-little-less-than-three"),
        pytest.param(999, {"free_warning": 5}, State.OK, id="another-warning"),
        pytest.param(999, {"free_critical": 50}, State.CRITICAL, id="another-critical"),
        pytest.param(9000, {"free_warning": float("nan")}, State.WARNING, id="no-number"),
        pytest.param(9000, {"free_critical": float("nan")}, State.CRITICAL, id="no-number-either"),
    ],
)
def test_free_space_is_judged_in_percent(free: int, limits: dict[str, float], state: State) -> None:
    judge = Judge(NOW, **limits)  # type: ignore[arg-type]
    found = of_server(replace(FINE, space=Space(10_000, free)), judge)
    assert [each for each, _ in found] == ([state] if state else [])


def filling(a_day: float, free: int = 500, hours: int = 48, past: int = 0) -> Space:
    """A sample an hour of a file system that loses so many bytes a day."""
    steps = [(hour * HOUR + past, round(free + a_day * hour / 24)) for hour in range(hours, 0, -1)]
    return Space(10_000, free, tuple((ago(seconds), left) for seconds, left in steps))


@pytest.mark.parametrize(
    ("a_day", "state"),
    [
        pytest.param(24, State.OK, id="in-21-days"),
        pytest.param(48, State.WARNING, id="in-10-days"),
        pytest.param(240, State.CRITICAL, id="in-2-days"),
        pytest.param(0, State.OK, id="at-rest"),
        pytest.param(-48, State.OK, id="emptying"),
    ],
)
def test_a_file_system_that_fills_up_is_said_before_it_is_full(a_day: int, state: State) -> None:
    judge = Judge(NOW, free_warning=0, free_critical=0)
    days = f"full in {500 / a_day if a_day else 0:.1f} days at this rate"
    assert of_server(replace(FINE, space=filling(a_day)), judge) == (
        [(state, days)] if state else []
    )


def test_inodes_that_run_out_are_said_before_the_last_is_taken() -> None:
    space = replace(ROOMY, inodes=replace(filling(240), capacity=1000))
    days = f"no inodes left in {500 / 240:.1f} days at this rate"
    assert of_server(replace(FINE, space=space)) == [(State.CRITICAL, days)]


def test_the_days_until_it_is_full_are_judged_by_the_thresholds() -> None:
    space = Space(10_000, 5000, ((ago(2 * DAY), 5500), (ago(DAY), 5250)))
    for warning, critical, state in [(20, 19, []), (20.5, 20, [1]), (30, 20.5, [3])]:
        judge = Judge(NOW, days_warning=warning, days_critical=critical)
        assert [each for each, _ in of_server(replace(FINE, space=space), judge)] == state


def test_the_trend_is_the_line_of_least_squares() -> None:
    # Worked out by hand: times -2, -1, 0 and 400, 100, 200 free give a slope of -100 a day.
    space = Space(1000, 200, ((ago(2 * DAY), 400), (ago(DAY), 100)))
    assert days_until_full(space, NOW) == pytest.approx(2)


def test_a_night_in_which_much_was_written_does_not_make_the_trend_of_weeks() -> None:
    steady = filling(10, free=5000, hours=14 * 24)
    night = replace(steady, free=4800)
    assert days_until_full(steady, NOW) == pytest.approx(500, rel=0.02)
    assert (days_until_full(night, NOW) or 0) > 100


def test_samples_of_the_future_have_no_say_in_the_trend() -> None:
    space = Space(1000, 500, ((ago(2 * DAY), 600), (ago(-2 * DAY), 1000)))
    assert days_until_full(space, NOW) == pytest.approx(10)


@pytest.mark.parametrize(
    ("samples", "is_known"),
    [
        pytest.param((), False, id="none"),
        pytest.param(((ago(DAY - 1), 900),), False, id="of-less-than-a-day"),
        pytest.param(((ago(DAY), 900),), True, id="of-a-day"),
        pytest.param(((ago(-9 * DAY), 900),), False, id="of-the-future"),
        pytest.param(((ago(0), 900), (ago(0), 0)), False, id="of-now"),
    ],
)
def test_there_is_a_trend_from_one_day_of_samples_on(
    samples: tuple[tuple[datetime, int], ...], is_known: bool
) -> None:
    assert (days_until_full(Space(1000, 500, samples), NOW) is not None) is is_known


def test_all_good_is_one_line_that_says_how_many_jobs_were_judged() -> None:
    code, line, _, lines = check(job(60), job(600, name="vm2"))
    assert (code, line, lines) == (0, "BACKY OK - 2 jobs: all good", [])


def test_bad_jobs_are_counted_then_the_worst_three_named_then_each_has_a_line() -> None:
    summaries = [
        job(60, name="fine"),
        job(60, name="shaky", errors=5, error="it is gone", reports=1),
        job(HOUR * 2, name="late"),
        job(HOUR * 9, name="later", errors=3, error="gone"),
        job(name="never"),
        Summary("odd", problem="listing odd: Permission denied"),
    ]
    code, line, perfdata, lines = check(*summaries)
    failed = "last 3 backups failed: gone"
    assert code == 2
    assert line == (
        "BACKY CRITICAL - 6 jobs, 3 critical, 1 unknown, 1 warning: never: never backed up; "
        "later: last backup 9 h 0 min ago, 1 h 30 min allowed; "
        "late: last backup 2 h 0 min ago, 1 h 30 min allowed"
    )
    assert lines == [
        "CRITICAL never: never backed up",
        f"CRITICAL later: last backup 9 h 0 min ago, 1 h 30 min allowed; {failed}",
        "CRITICAL late: last backup 2 h 0 min ago, 1 h 30 min allowed",
        "UNKNOWN odd: listing odd: Permission denied",
        "WARNING shaky: last 5 backups failed: it is gone; reports of damage in quarantine: 1",
    ]
    assert numbers(perfdata) == {
        "jobs": "6",
        "critical": "3",
        "unknown": "1",
        "warning": "1",
        "failing": "2",
        "distrusted": "0",
        "reports": "1",
        "oldest": f"{9 * HOUR}s",
        "free": f"{TiB // 2}B",
        "free_inodes": "U",
        "days_until_full": "U",
    }


def test_a_job_whose_repository_cannot_be_read_does_not_hide_one_without_a_backup() -> None:
    assert check(Summary("a", problem="x: Permission denied"), job(name="b"))[0] == 2
    assert check(Summary("a", problem="x: Permission denied"), job(60, errors=9, name="b"))[0] == 3


def test_what_is_wrong_with_the_server_comes_before_jobs_in_the_same_state() -> None:
    line = check(job(), server=replace(FINE, is_running=False))[1]
    assert line.endswith("1 job, 1 critical: daemon is not running; vm1: never backed up")


def test_without_jobs_nothing_is_good() -> None:
    code, line, _, _ = check()
    assert (code, line) == (3, "BACKY UNKNOWN - 0 jobs: no job is configured, or no job matches")


def test_a_job_without_a_summary_is_unknown_and_a_summary_without_a_job_are_left_out() -> None:
    code, text = JUDGE.report([job(name="stray")], {"vm1": HOURLY}, FINE)
    assert code == 3
    assert "1 job, 1 unknown: vm1: could not be checked" in text
    assert "stray" not in text


def test_repositories_without_a_job_are_listed_and_no_reason_to_worry() -> None:
    code, line, _, lines = check(job(60), server=replace(FINE, unknown_jobs=("old1", "old2")))
    assert (code, line) == (0, "BACKY OK - 1 job: all good")
    assert lines == ["repositories without a job: 2: old1, old2"]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        pytest.param("two\nlines\r\n", "two lines", id="lines"),
        pytest.param("a | b=1;2;3", "a / b=1;2;3", id="perfdata"),
        pytest.param("\x1b[2Jgone", "?[2Jgone", id="terminal"),
        pytest.param("nul\0\x07\x9b", "nul???", id="controls"),
        pytest.param("right\u202eleft", "right?left", id="direction"),
        pytest.param("a surrogate \udcff", "a surrogate ?", id="surrogate"),
        pytest.param("größe", "größe", id="letters"),
    ],
)
def test_an_error_that_steers_terminals_or_nagios_is_made_harmless(error: str, shown: str) -> None:
    _, line, _, lines = check(job(60, errors=9, error=error))
    assert line == f"BACKY WARNING - 1 job, 1 warning: vm1: last 9 backups failed: {shown}"
    assert lines == [f"WARNING vm1: last 9 backups failed: {shown}"]


def test_long_errors_are_cut_and_leave_room_for_other_jobs() -> None:
    summaries = [job(60, name=f"vm{number}", errors=9, error="x" * 10**6) for number in range(4)]
    _, line, _, lines = check(*summaries)
    assert len(line) <= 200
    assert all(f"vm{number}: last 9 backups failed" in line for number in range(3))
    assert [len(each) for each in lines] == [1000] * 4
    assert all(each.endswith("xxx...") for each in lines)


def test_ten_thousand_jobs_give_one_short_line_and_a_line_for_each_bad_one() -> None:
    summaries = [
        job(60 * (number % 200), name=f"customer-{number}.example.com") for number in range(10_000)
    ]
    code, line, perfdata, lines = check(*summaries, promise=SCRUBBED)
    bad = sum(60 * (number % 200) > 5400 for number in range(10_000))
    assert code == 2
    assert line.startswith(f"BACKY CRITICAL - 10000 jobs, {bad} critical: customer-")
    assert len(line) <= 200
    assert len(line) + len(perfdata) < 500
    assert len(lines) == bad
    assert lines[0].startswith("CRITICAL customer-1199.example.com: last backup 3 h 19 min ago")


PAGE = (markdown.PROJECT / "docs" / "monitoring.md").read_text()


def rows(begin: str) -> dict[re.Pattern[str], set[str]]:
    """The states of each text in the table of the page that comes after `begin`."""
    table = markdown.table(PAGE[PAGE.index(begin) :])
    return {
        re.compile(re.escape(row["it says"]).replace("…", ".+"), re.DOTALL): set(
            row["state"].split(", ")
        )
        for row in table
        if row["it says"] != "any other text"
    }


@pytest.mark.parametrize(
    ("begin", "troubles"),
    [
        pytest.param("Texts of a job.", TROUBLES_OF_JOBS, id="jobs"),
        pytest.param("Texts of the server", TROUBLES_OF_THE_SERVER, id="server"),
    ],
)
def test_the_page_for_operators_explains_every_text_with_its_state(
    begin: str, troubles: list[ParameterSet]
) -> None:
    explained = rows(begin)
    unexplained = []
    for _, state, text in (each.values for each in troubles):
        assert isinstance(state, State)
        pages = [states for pattern, states in explained.items() if pattern.fullmatch(str(text))]
        if not pages or state.name not in pages[0]:
            unexplained.append(text)
    # "any other text" is what the repository could not be read for.
    assert all("json" in str(text) for text in unexplained)


def test_the_page_for_operators_has_the_exit_code_of_each_state() -> None:
    said = {
        row["state"]: int(row["exit code"])
        for row in markdown.table(markdown.section(PAGE, "What it looks like"))
    }
    late, odd = job(), Summary("vm1", problem="x: Permission denied")
    came = {State.CRITICAL.name: check(late)[0], State.UNKNOWN.name: check(odd)[0]}
    came |= {State.OK.name: check(job(60))[0], State.WARNING.name: check(job(60, reports=1))[0]}
    assert said == came


def test_the_page_for_operators_explains_the_performance_data() -> None:
    table = markdown.table(markdown.section(PAGE, "Performance data"))
    named = {name for row in table for name in re.findall("[a-z_]+", row["name"])}
    assert named == numbers(check(job(60))[2]).keys()


def test_the_example_of_the_page_is_in_the_form_that_is_printed() -> None:
    example = next(block.text for block in markdown.blocks(PAGE))
    first, *lines = example.split("\n")
    line, _, perfdata = first.partition(" | ")
    assert len(line) <= 200
    assert numbers(perfdata).keys() == numbers(check(job(60))[2]).keys()
    summaries = [job(60, name=f"vm{number}") for number in range(9997)]
    summaries += [
        job(60, name="odd", errors=3, error="vm3.img: No such file"),
        job(36 * HOUR, name="old", errors=1, error="connection refused"),
        job(name="new"),
    ]
    code, came, data, details = check(*summaries, server=replace(FINE, unknown_jobs=["vm-old"]))
    for alias, name in {"odd": "vm3", "old": "vm1", "new": "vm7"}.items():
        came = came.replace(f"{alias}:", f"{name}:")
        details = [each.replace(f"{alias}:", f"{name}:") for each in details]
    assert (code, came, details) == (2, line, lines)
    assert data.partition(" days")[0] == perfdata.partition(" days")[0]


times = st.datetimes(datetime(2026, 10, 1), datetime(2026, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
statuses = st.builds(
    Status,
    errors=st.integers(0, 5),
    error=st.text(max_size=80),
    hooks_failed=st.integers(0, 2),
    hook_error=st.text(),
    suspicious=st.text(max_size=3),
    paused=st.none() | times,
    verified=st.none() | times,
    scrubbed=st.none() | st.builds(scrubbed, st.none() | times, times),
    distrusted=st.lists(times.map(lambda time: id_for(time, "aaaa")), max_size=2).map(tuple),
)


@st.composite
def some_summary(draw: st.DrawFn, name: str) -> Summary:
    ages = sorted(draw(st.lists(st.integers(-100, 60 * DAY), max_size=3)), reverse=True)
    made = replace(job(*ages, name=name, reports=draw(st.integers(0, 2))), status=draw(statuses))
    problem = draw(st.sampled_from(["", "", "", "Permission denied"]) | st.text(max_size=50))
    return replace(
        made, problem=problem, newest=draw(st.sampled_from([made.newest, made.newest, None]))
    )


servers = st.builds(
    Server,
    is_running=st.booleans(),
    space=st.none()
    | st.builds(
        Space,
        st.just(1000),
        st.integers(0, 1000),
        st.lists(st.tuples(times, st.integers(0, 1000)), max_size=5).map(tuple),
    ),
    configuration_problem=st.text(max_size=60),
    unknown_jobs=st.lists(st.text(), max_size=3),
)


@given(
    st.lists(st.integers(0, 9), unique=True, max_size=4).flatmap(
        lambda names: st.tuples(*(some_summary(f"vm{name}") for name in names))
    ),
    servers,
)
def test_the_exit_code_is_the_worst_finding_and_the_output_is_what_nagios_can_read(
    summaries: tuple[Summary, ...], server: Server
) -> None:
    found: list[Finding] = [each for one in summaries for each in JUDGE.job(one, SCRUBBED)]
    found += JUDGE.server(server)
    worst = max([each.state for each in found], default=State.OK) if summaries else None
    code, line, perfdata, lines = check(*summaries, server=server, promise=SCRUBBED)
    if worst is None:
        worst = max([State.UNKNOWN, *(each.state for each in found)])
    assert code == {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}[worst.name]
    assert line.startswith(f"BACKY {worst.name} - {len(summaries)} job")
    assert len(line) <= 200
    assert all(each.isprintable() and "|" not in each for each in (line, *lines))
    assert all(DATUM.fullmatch(each) for each in perfdata.split(" "))
    bad = {each.job for each in found if each.state and each.job}
    assert {each.split()[1] for each in lines if each.split()[1].startswith("vm")} == {
        f"{name}:" for name in bad
    }
