"""How long a backup may take: nobody waits for ever, and nothing that goes on is stopped."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.config.settings import Config
from backy.policy.deadline import allowed_seconds

HOUR = 3600
TIB = 1024**4


def config(**settings: Any) -> Config:  # noqa: ANN401 - of a job
    job = {"schedule": "often", "source": {"type": "file"}, **settings}
    schedules = {"often": {"tick": {"interval": "1m", "keep": 3}}}
    return Config.model_validate({"schedules": schedules, "jobs": {"vm1": job}})


@given(st.floats(128 * 1024 + 1, 10**10), st.floats(0, 10**8), st.floats(0, 10**6))
def test_a_backup_that_reads_faster_than_a_modem_is_never_stopped(
    rate: float, seconds: float, slowest: float
) -> None:
    """A first one of twenty hours, say; nobody knows what is usual then."""
    assert allowed_seconds(config(), "vm1", slowest, int(rate * seconds)) > seconds


def test_a_first_backup_that_reads_nothing_is_stopped_after_an_hour() -> None:
    assert allowed_seconds(config(), "vm1", 0, 0) == HOUR


def test_one_that_trickles_is_stopped_after_an_hour_though_its_disk_is_large() -> None:
    trickled = 10 * 1024 * 4000  # bytes in 4,000 seconds
    assert allowed_seconds(config(), "vm1", 0, trickled) < 4000


def test_the_longest_backup_that_is_kept_says_what_is_usual() -> None:
    assert allowed_seconds(config(), "vm1", 2 * HOUR, 0) == 21 * HOUR


def test_hooks_may_take_the_time_that_they_have() -> None:
    hooks = {"before-snapshot": {"command": "/bin/true", "timeout": "1h"}, "after-backup": ["/x"]}
    assert allowed_seconds(config(hooks=hooks), "vm1", 0, 0) == HOUR + HOUR + 60


@pytest.mark.parametrize("done", [0, TIB])
def test_what_is_configured_holds_alone(done: int) -> None:
    assert allowed_seconds(config(**{"max-duration": "4h"}), "vm1", 9 * HOUR, done) == 4 * HOUR
