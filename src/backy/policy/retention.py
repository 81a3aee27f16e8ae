"""Which tags a revision loses and which revisions go, and why. Pure; `now` is an argument.

1. A tag of the schedule leaves a revision that is beyond the newest `keep` with that tag and
   older than `keep` intervals. Either alone keeps it: so neither a burst of backups nor a clock
   that jumps, nor both, takes one of the newest `keep`.
2. A tag that is not in the schedule leaves. One that begins with "manual:" is only dropped by hand.
3. A revision without tags goes.

The newest revisions are left as they are, whatever the rules say: `minimum` of them, and the
newest that is not distrusted. They keep their tags, too: a schedule that was wrong for an hour
would else take the tags that tell when the job last ran, and every job would run at once.

The rules are backy 2's; it has no such exception.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from backy.config.settings import Schedule
from backy.model.revision import Revision, Trust
from backy.units import format_duration


@dataclass(frozen=True, slots=True)
class Expiry:
    """What becomes of a revision: the tags that go and stay, and why, in a line for people."""

    revision: Revision
    drop: tuple[str, ...]
    keep: tuple[str, ...]
    why: str

    @property
    def is_removed(self) -> bool:
        """Whether the revision itself goes."""
        return not self.keep


def expiries(
    history: Sequence[Revision], schedule: Schedule, now: datetime, minimum: int = 1
) -> list[Expiry]:
    """What is to be done now, oldest first; `history` is ascending. Done, there is no more to do.

    `minimum` is at least 1.
    """
    trusted = [each.id for each in history if each.trust is not Trust.DISTRUSTED]
    protected = {*trusted[-1:], *(each.id for each in history[-minimum:])}
    newer = Counter[str]()  # how many revisions after this one have a tag
    found: list[Expiry] = []
    for revision in reversed(history):
        age = (now - revision.time).total_seconds()
        reasons = {tag: _reason(tag, newer[tag], age, schedule) for tag in revision.tags}
        drop = tuple(tag for tag, reason in reasons.items() if reason)
        keep = tuple(tag for tag, reason in reasons.items() if not reason)
        if revision.id not in protected and (drop or not keep):
            why = "; ".join(filter(None, reasons.values())) or "it has no tags"
            found.append(Expiry(revision, drop, keep, why))
        for tag in reasons:
            newer[tag] += 1
    return found[::-1]


def _reason(tag: str, newer: int, age: float, schedule: Schedule) -> str:
    """Why a revision loses `tag`; "" where it keeps it."""
    if tag.startswith("manual:"):
        return ""
    if tag not in schedule:
        return f"{tag} is not in the schedule"
    rule = schedule[tag]
    longest = rule.keep * rule.interval
    if newer < rule.keep or age <= longest:
        return ""
    return f"{tag} has {newer} newer and is older than {format_duration(longest)}"
