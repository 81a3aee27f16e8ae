"""Retention: which tags and revisions expire, and why. Pure functions; `now` is an argument.

1. A tag of the schedule is dropped from a revision if at least `keep` newer revisions have the tag
   and the revision is older than `keep` intervals. Both must be true. So the newest `keep`
   revisions stay, even after a burst of backups, a jump of the clock, or both.
2. A tag that is not in the schedule is dropped. Tags that begin with "manual:" stay until somebody
   drops them by hand.
3. A revision that has no tags left is removed.

Exceptions: the newest `minimum` revisions, and the newest one that is not distrusted, stay as they
are. They keep their tags because those tell when the job last ran. If a schedule that is wrong for
an hour could drop them, all jobs would run at once afterwards.

Revisions from the future, which a clock made that was ahead, are neither counted nor changed.

The rules are those of backy 2, which does not have these exceptions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from backy.config.settings import Schedule
from backy.model.revision import Revision, Trust, is_ahead
from backy.units import format_duration


@dataclass(frozen=True, slots=True)
class Expiry:
    """What happens to a revision: the tags to drop, the tags to keep, and why, in one line."""

    revision: Revision
    drop: tuple[str, ...]
    keep: tuple[str, ...]
    why: str

    @property
    def is_removed(self) -> bool:
        """Whether the revision itself is removed, because it keeps no tag."""
        return not self.keep


def dated_by(revisions: Sequence[Revision], now: datetime) -> list[Revision]:
    """Those of `revisions` that are not ahead of `now`, in their order."""
    return [revision for revision in revisions if not is_ahead(revision.time, now)]


def expiries(
    history: Sequence[Revision], schedule: Schedule, now: datetime, minimum: int = 1
) -> list[Expiry]:
    """What to do now, oldest first; `history` is ascending, and `minimum` is at least 1.

    After it was done, the same call returns nothing.
    """
    history = dated_by(history, now)
    trusted = [revision for revision in history if revision.trust is not Trust.DISTRUSTED]
    protected = {revision.id for revision in (*trusted[-1:], *history[-minimum:])}
    newer = Counter[str]()  # by tag, how many revisions after this one have it
    expired: list[Expiry] = []
    for revision in reversed(history):
        age = (now - revision.time).total_seconds()
        reasons = {tag: _reason(tag, newer[tag], age, schedule) for tag in revision.tags}
        drop = tuple(tag for tag, reason in reasons.items() if reason)
        keep = tuple(tag for tag, reason in reasons.items() if not reason)
        if revision.id not in protected and (drop or not keep):
            why = "; ".join(filter(None, reasons.values())) or "it has no tags"
            expired.append(Expiry(revision, drop, keep, why))
        for tag in reasons:
            newer[tag] += 1
    return expired[::-1]


def _reason(tag: str, newer: int, age: float, schedule: Schedule) -> str:
    """Why `tag` is dropped from a revision of this age in seconds; "" if the revision keeps it.

    `newer` is how many newer revisions have the tag.
    """
    if tag.startswith("manual:"):
        return ""
    if tag not in schedule:
        return f"{tag} is not in the schedule"
    rule = schedule[tag]
    longest = rule.keep * rule.interval
    if newer < rule.keep or age <= longest:
        return ""
    return f"{tag} has {newer} newer and is older than {format_duration(longest)}"
