"""How long a backup may take. Pure."""

from backy.config.settings import Config
from backy.units import KiB

_HOUR = 3600  # seconds
_TIMES = 10  # as long as the longest of the kept backups
_SLOWEST_RATE = 128 * KiB  # bytes a second


def allowed_seconds(config: Config, job: str, slowest: float, done: int) -> float:
    """How long a backup may take, in seconds, if it has dealt with `done` bytes of its disks.

    That is `max-duration`, if it is configured. Otherwise it is the sum of an hour, ten times
    `slowest` (how long the longest of the kept backups took), the time limits of the hooks, and
    the time for `done` at 128 KiB/s. So a backup that is faster is never stopped.
    """
    if limit := config.jobs[job].max_duration:
        return limit
    hooks: int = sum(hook.timeout for _, hooks in config.hooks_of(job) for hook in hooks)
    return _HOUR + _TIMES * slowest + hooks + done / _SLOWEST_RATE
