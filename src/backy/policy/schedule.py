"""When a job runs next, and with which tags. Pure functions; `now` is an argument.

    slot    the moments at which a tag is due: multiples of its interval, counted from the year 1
            and moved by the job's spread, so that not all jobs start at once
    missed  a tag whose newest revision is older than its interval

The numbers are backy 2's, as tests/golden/schedule.json has them: who moves keeps the times.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backy.config.settings import Schedule
from backy.model.revision import Revision

_EPOCH = datetime.min.replace(tzinfo=UTC)
_NONE = timedelta(0)
_GRACE = timedelta(seconds=300)  # a slot as near as this is awaited even where a tag is missed
_LONGEST_BACKOFF = 360  # minutes


@dataclass(frozen=True, slots=True)
class Run:
    """The next backup of a job: when, and the tags that its revision gets."""

    time: datetime
    tags: frozenset[str]


def spread(job: str, schedule: Schedule) -> int:
    """The seconds by which the slots of a job are moved: from 0 to its longest interval.

    The same in every process and on every server, since only the job's name decides.
    """
    seed = int(hashlib.md5(job.encode(), usedforsecurity=False).hexdigest(), 16)
    longest = max(each.interval for each in schedule.values())
    return random.Random(seed).randint(0, longest)  # noqa: S311 - nobody gains from guessing it


def next_in_interval(now: datetime, interval: int, spread: int) -> datetime:
    """The first slot after `now`, in whole seconds; `interval` and `spread` are seconds.

    Raises OverflowError where it were after the year 9999.
    """
    # Integers all the way: seconds since the year 1 are too many for a float to be exact.
    passed = (now - _EPOCH) // timedelta(seconds=1)
    return _EPOCH + timedelta(seconds=((passed - spread) // interval + 1) * interval + spread)


def next_run(
    schedule: Schedule,
    spread: int,
    last_by_tag: Mapping[str, datetime],
    has_history: bool,  # noqa: FBT001 - a fact, not a switch
    now: datetime,
) -> Run:
    """The first slot of any tag, with the tags that are missed by then; or earlier what is missed.

    A job with a history runs as soon as a tag is missed, unless its next slot is within five
    minutes. A job without one waits for its first slot: 10,000 new ones do not start together.
    A tag whose newest revision is from the future is not missed, but its slots are kept.

    The answer stays right until its time has come or a revision is made. backy 2 told what was
    missed when it was asked; it saw a slot lost in a restart only when it was asked again.
    """
    slots = {tag: next_in_interval(now, each.interval, spread) for tag, each in schedule.items()}
    waits = dict.fromkeys(schedule, _NONE)
    for tag in schedule.keys() & last_by_tag:
        interval = timedelta(seconds=schedule[tag].interval)
        waits[tag] = max(_NONE, interval - (now - last_by_tag[tag]))
    wait, slot = min(waits.values()), min(slots.values())
    time = now + wait if has_history and wait + _GRACE < slot - now else slot
    tags = {tag for tag in schedule if slots[tag] == time or waits[tag] <= time - now}
    return Run(time, frozenset(tags))


def last_by_tag(history: Iterable[Revision]) -> dict[str, datetime]:
    """The time of the newest revision with each tag; `history` is ascending."""
    return {tag: revision.time for revision in history for tag in revision.tags}


def backoff_seconds(errors: int) -> int:
    """How long to wait after so many failures in a row: 2, 4, 8 … minutes, 6 hours at most."""
    return min(2 ** min(errors, 9), _LONGEST_BACKOFF) * 60 if errors else 0


def sla_seconds(schedule: Schedule) -> float:
    """How old the newest revision of a job may be: one and a half of its smallest interval."""
    return 1.5 * min(each.interval for each in schedule.values())
