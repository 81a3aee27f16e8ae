"""When a job runs next, and with which tags. Pure functions; `now` is an argument.

    due time  when a tag is due: each multiple of its interval, counted from the year 1 and moved
              by the spread of the job, so that not all jobs start at once
    missed    a tag whose newest revision is older than its interval

The times are the same as in backy 2, so whoever moves keeps them: tests/golden/schedule.json.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backy.config.settings import Schedule
from backy.model.revision import Revision

_EPOCH = datetime.min.replace(tzinfo=UTC)
_NONE = timedelta(0)
_GRACE = timedelta(seconds=300)  # a missed tag waits for a due time that is as near as this
_LONGEST_BACKOFF = 360  # minutes


@dataclass(frozen=True, slots=True)
class Run:
    """The next backup of a job: when, and the tags that its revision gets."""

    time: datetime
    tags: frozenset[str]


def spread(job: str, schedule: Schedule) -> int:
    """The seconds by which the due times of a job are moved: from 0 to its longest interval.

    It depends only on the job's name and its schedule, so it is the same on every server.
    """
    seed = int(hashlib.md5(job.encode(), usedforsecurity=False).hexdigest(), 16)
    longest = max(rule.interval for rule in schedule.values())
    return random.Random(seed).randint(0, longest)  # noqa: S311 - nobody gains from guessing it


def next_in_interval(now: datetime, interval: int, spread: int) -> datetime:
    """The first due time after `now`, in whole seconds; `interval` and `spread` are seconds.

    Raises OverflowError if it is after the year 9999.
    """
    # Integers only: a float is not exact for the seconds since the year 1.
    passed = (now - _EPOCH) // timedelta(seconds=1)
    return _EPOCH + timedelta(seconds=((passed - spread) // interval + 1) * interval + spread)


def next_run(
    schedule: Schedule,
    spread: int,
    last_by_tag: Mapping[str, datetime],
    has_history: bool,  # noqa: FBT001 - a fact, not a switch
    now: datetime,
) -> Run:
    """The next run: at the first due time of any tag, or earlier if a tag is missed before.

    A job with a history runs as soon as a tag is missed, unless its next due time is within five
    minutes. A job without a history waits for its first due time, so that 10,000 new jobs do not
    start together. A tag whose newest revision is in the future is not missed, but its due times
    are kept. The run gets all tags that are due or missed at its time.

    The result is valid until that time, or until a revision is made. backy 2 reported what was
    missed at the moment of the call, so it noticed a due time that passed during a restart only at
    the next call.
    """
    due = {tag: next_in_interval(now, rule.interval, spread) for tag, rule in schedule.items()}
    waits = dict.fromkeys(schedule, _NONE)
    for tag in schedule.keys() & last_by_tag:
        interval = timedelta(seconds=schedule[tag].interval)
        waits[tag] = max(_NONE, interval - (now - last_by_tag[tag]))
    wait, first = min(waits.values()), min(due.values())
    time = now + wait if has_history and wait + _GRACE < first - now else first
    tags = {tag for tag in schedule if due[tag] == time or waits[tag] <= time - now}
    return Run(time, frozenset(tags))


def last_by_tag(history: Iterable[Revision]) -> dict[str, datetime]:
    """The time of the newest revision with each tag; `history` is ascending."""
    return {tag: revision.time for revision in history for tag in revision.tags}


def backoff_seconds(errors: int) -> int:
    """How long to wait after so many failures in a row: 2, 4, 8 … minutes, 6 hours at most."""
    return min(2 ** min(errors, 9), _LONGEST_BACKOFF) * 60 if errors else 0


def sla_seconds(schedule: Schedule) -> float:
    """How old the newest revision of a job may be: 1.5 times its shortest interval."""
    return 1.5 * min(rule.interval for rule in schedule.values())
