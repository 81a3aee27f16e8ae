"""What the configuration says means what it says in backy.yaml, and nothing else is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backy.config.settings import Config, Global, Hook, Hooks, Interval, Job, Scrub
from backy.units import GiB, KiB, MiB

DAY = 86400
SOURCE = {"type": "file", "filename": "/dev/vg0/vm1"}
SCHEDULES = {"default": {"daily": {"interval": "1d", "keep": 9}}}


def job(**settings: object) -> Job:
    """A job with these settings, under their names in YAML."""
    return Job.model_validate(
        {"schedule": "default", "source": SOURCE, **settings}, by_alias=True, by_name=False
    )


def config(**settings: object) -> Config:
    """A configuration with one job, vm1."""
    base = {"schedules": SCHEDULES, "jobs": {"vm1": job()}}
    return Config.model_validate(base | settings, by_alias=True, by_name=False)


def commands(hooks: tuple[Hook, ...]) -> list[str]:
    return [" ".join(hook.command) for hook in hooks]


def test_a_job_that_says_nothing_gets_what_is_documented() -> None:
    made = job()
    assert made.scrub == Scrub(within=30 * DAY, rate=None, max_duration=900)
    assert (made.store, made.block_size, made.level) == (None, None, None)
    assert (made.limits, made.hooks) == ((), Hooks())
    assert (made.expire, made.minimum, made.trash) == (True, 1, 7 * DAY)


def test_the_daemon_gets_what_is_documented() -> None:
    made = Config().global_
    assert (made.base_dir, made.socket) == (Path("/srv/backy"), Path("/run/backy/backy.sock"))
    assert (made.worker_limit, made.nice, made.io_class) == (1, 10, "best-effort")
    assert (made.metrics_listen, made.metrics_file) == (None, None)
    assert (made.stop_timeout, made.backup_completed_callback) == (600, None)
    assert Config().include == ("jobs.d/*.yaml",)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        pytest.param("trash", "2w", 14 * DAY, id="duration"),
        pytest.param("trash", 90, 90, id="seconds"),
        pytest.param("trash", 0, 0, id="no-trash"),
        pytest.param("block-size", "1MiB", MiB, id="size"),
        pytest.param("block-size", 65536, 64 * KiB, id="bytes"),
        pytest.param("level", "19", 19, id="number-in-quotes"),
        pytest.param("expire", "no", False, id="no-in-quotes"),
        pytest.param("limits", "nfs", ("nfs",), id="one-limit"),
        pytest.param("limits", ["a", "b"], ("a", "b"), id="limits"),
        pytest.param("scrub", False, None, id="never-scrubbed"),
        pytest.param("scrub", True, Scrub(), id="scrubbed"),
        pytest.param("scrub", {"rate": "1GiB"}, Scrub(rate=GiB), id="scrub-with-a-rate"),
        pytest.param("scrub", {"max-duration": "1h"}, Scrub(max_duration=3600), id="scrub-longer"),
        pytest.param("minimum", None, 1, id="without-a-value"),
    ],
)
def test_a_setting_means(key: str, value: object, meant: object) -> None:
    assert getattr(job(**{key: value}), key.replace("-", "_")) == meant


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("trash", "1 day", id="duration"),
        pytest.param("trash", -1, id="negative-duration"),
        pytest.param("trash", True, id="true-is-no-duration"),
        pytest.param("trash", "1001y", id="no-such-unit"),
        pytest.param("block-size", "0", id="block-of-nothing"),
        pytest.param("block-size", "32KiB", id="block-too-small"),
        pytest.param("block-size", "17MiB", id="block-too-large"),
        pytest.param("block-size", "65KiB", id="block-no-multiple"),
        pytest.param("level", 0, id="level-0"),
        pytest.param("level", 20, id="level-20"),
        pytest.param("level", True, id="true-is-no-level"),
        pytest.param("minimum", 0, id="minimum-0"),
        pytest.param("store", "tape", id="store"),
        pytest.param("expire", "perhaps", id="neither-true-nor-false"),
        pytest.param("scrub", {"within": 0}, id="scrubbed-within-no-time"),
        pytest.param("scrub", {"rate": "1023KiB"}, id="scrub-too-slow"),
        pytest.param("scrub", {"max-duration": 0}, id="scrub-without-time"),
        pytest.param("scrub", "sometimes", id="scrub-in-words"),
        pytest.param("schedule", True, id="true-is-no-schedule"),
        pytest.param("block_size", "1MiB", id="attribute-instead-of-key"),
        pytest.param("fast", True, id="unknown"),
    ],
)
def test_a_setting_cannot_be(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        job(**{key: value})


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        pytest.param("/bin/a b", ["/bin/a b"], id="a-program-is-no-shell-line"),
        pytest.param(["/bin/a", "/bin/b"], ["/bin/a", "/bin/b"], id="programs"),
        pytest.param({"command": "/bin/a"}, ["/bin/a"], id="hook"),
        pytest.param({"command": ["/bin/a", 1]}, ["/bin/a 1"], id="number-as-argument"),
        pytest.param([{"command": ["/bin/a"]}, "/bin/b"], ["/bin/a", "/bin/b"], id="mixed"),
        pytest.param([], [], id="none"),
    ],
)
def test_programs_can_be_written_short(said: object, meant: list[str]) -> None:
    made = Hooks.model_validate({"after-backup": said})
    assert commands(made.after_backup) == meant


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("", id="nothing"),
        pytest.param({"timeout": 5}, id="without-command"),
        pytest.param({"command": []}, id="empty-command"),
        pytest.param({"command": ["", "x"]}, id="program-without-name"),
        pytest.param({"command": "/bin/a\0b"}, id="zero-byte"),
        pytest.param({"command": "/bin/a", "timeout": 0}, id="no-time"),
        pytest.param({"command": "/bin/a", "timeout": "25h"}, id="more-than-a-day"),
        pytest.param({"command": "/bin/a", "consistency": "none"}, id="consistency"),
        pytest.param({"command": "/bin/a", "shell": True}, id="unknown-key"),
        pytest.param(5, id="number"),
    ],
)
def test_a_hook_cannot_be(said: object) -> None:
    with pytest.raises(ValidationError):
        Hooks.model_validate({"before-snapshot": said})


def test_a_hook_has_a_minute_is_not_required_and_reaches_consistent_applications() -> None:
    hook = Hook(command=("/bin/a",))
    assert (hook.timeout, hook.required, hook.consistency) == (60, False, "application")


@pytest.mark.parametrize("address", ["127.0.0.1:9436", "[::1]:1", "backup.example:65535"])
def test_metrics_are_offered_at(address: str) -> None:
    assert Global.model_validate({"metrics-listen": address}).metrics_listen == address


@pytest.mark.parametrize(
    "address",
    ["9436", ":9436", "::1:9436", "host", "host:", "host:0", "host:65536", "host:+80", "a b:80"],
)
def test_metrics_cannot_be_offered_at(address: str) -> None:
    with pytest.raises(ValidationError, match="is not HOST:PORT"):
        Global.model_validate({"metrics-listen": address})


@pytest.mark.parametrize("key", ["base-dir", "socket", "metrics-file", "backup-completed-callback"])
@pytest.mark.parametrize("path", ["backups", "", "./x", "/a\nb"], ids=repr)
def test_paths_are_absolute_and_can_be_read_in_a_message(key: str, path: str) -> None:
    with pytest.raises(ValidationError, match="is not an absolute path"):
        Global.model_validate({key: path})


@pytest.mark.parametrize("tag", ["", "every day", "manual:x", "manual:", "a..b", "a" * 65, "-a"])
def test_a_tag_of_a_schedule_cannot_be(tag: str) -> None:
    with pytest.raises(ValidationError):
        config(schedules={"default": {tag: {"interval": "1d", "keep": 1}}})


@pytest.mark.parametrize(
    "key", ["status-file", "status-interval", "telnet-addrs", "telnet-port", "api", "peers"]
)
def test_keys_of_backy_2_that_mean_nothing_any_more_are_taken(key: str) -> None:
    said: dict[str, Any] = {key: {"x": 1}}
    made = config(**(said if key in {"api", "peers"} else {"global": said}))
    assert made == config()


def test_the_callback_comes_first_then_the_hooks_of_all_then_those_of_the_job() -> None:
    made = config(
        **{"global": {"backup-completed-callback": "/bin/callback"}},
        hooks={"after-backup": "/bin/all", "on-failure": "/bin/tell"},
        jobs={"vm1": job(hooks={"after-backup": ["/bin/own", "/bin/own2"]})},
    )
    hooks = made.hooks_of("vm1")
    assert commands(hooks.after_backup) == [
        "/bin/callback vm1",
        "/bin/all",
        "/bin/own",
        "/bin/own2",
    ]
    assert commands(hooks.on_failure) == ["/bin/tell"]
    assert hooks.before_snapshot == ()


def test_without_a_callback_only_the_hooks_run() -> None:
    assert config().hooks_of("vm1") == Hooks()


def test_the_intervals_of_a_job_are_those_of_its_schedule() -> None:
    other = {"weekly": {"interval": "1w", "keep": 5}, "daily": {"interval": 60, "keep": "3"}}
    made = config(schedules=SCHEDULES | {"other": other}, jobs={"vm1": job(schedule="other")})
    assert made.intervals("vm1") == {
        "weekly": Interval(interval=7 * DAY, keep=5),
        "daily": Interval(interval=60, keep=3),
    }


def test_what_was_read_stays_as_it_is() -> None:
    made = job()
    with pytest.raises(ValidationError, match="frozen"):
        made.trash = 5  # type: ignore[misc]


def test_json_has_the_keys_of_yaml() -> None:
    made = json.loads(job(**{"block-size": "1MiB"}, scrub=False).model_dump_json())
    assert made["block-size"] == MiB
    assert made["scrub"] is False
    assert "before-snapshot" in made["hooks"]
