"""The time of a new revision or batch."""

from __future__ import annotations

from datetime import datetime, timedelta

from backy.errors import ConfigError
from backy.model.revision import whole_seconds


def time_for(now: datetime, newest: datetime | None) -> datetime:
    """The time in a new id: `now` in whole seconds, or a second after `newest` if later.

    So ids sort in the order of the backups for `ls`, restore.sh and the history, even if two
    backups end in the same second or the clock was set back.
    """
    time = whole_seconds(now)
    if not newest:
        return time
    try:
        return max(time, newest + timedelta(seconds=1))
    except OverflowError:
        why = "a revision has the latest possible time, so no other can follow it"
        raise ConfigError(why, "Move it out of the repository.") from None
