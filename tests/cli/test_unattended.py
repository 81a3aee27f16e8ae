"""The commands of a configured installation, without a daemon."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backy.repository.status import Status, read_status
from tests.cli.runner import SMALL, data, image
from tests.daemon.machine import Server
from tests.programs import marked

RULES = {"rules": {"daily": {"interval": "1d", "keep": 2}, "weekly": {"interval": "7d", "keep": 1}}}
SOON = {"soon": {"tick": {"interval": "1s", "keep": 1}}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with marked(str(tmp_path)):
        yield Server(tmp_path)


def told(server: Server) -> Status:
    return read_status(server.base / "vm1")


def test_a_configuration_that_is_right_is_said_to_be_so(server: Server) -> None:
    server.job("vm1")
    server.base.mkdir()
    said = server.quiet("config", "check").out
    assert said == f"{server.path}: 1 job in 2 files, no problems\n"
    shown = server.quiet("config", "show", "--job", "vm1").record()["vm1"]
    assert shown["source"]["filename"] == str(server.folder / "vm1.img")
    assert server.quiet("config", "show").record()["jobs"].keys() == {"vm1"}
    assert "properties" in server.quiet("config", "schema").record()


def test_the_jobs_are_shown_with_their_intervals_in_words(server: Server) -> None:
    rules = {
        "daily": {"interval": "1d", "keep": 9},
        "weekly": {"interval": "7d", "keep": 5},
        "often": {"interval": "5m", "keep": 12},
        "nightly": {"interval": "24h", "keep": 1},
        "odd": {"interval": "90s", "keep": 2},
        "month": {"interval": "30d", "keep": 4},
        "2h": {"interval": "2h", "keep": 3},
    }
    server.configure({"rules": rules})
    server.job("vm1", schedule="rules")
    heading, line = server.quiet("jobs").out.splitlines()
    assert heading.split() == ["job", "schedule", "intervals", "source", "limits"]
    name, schedule, intervals, *_ = re.split("  +", line)
    assert (name, schedule) == ("vm1", "rules")
    assert set(intervals.split("; ")) == {
        "daily, 9 kept",
        "weekly, 5 kept",
        "often: every 5 min, 12 kept",
        "nightly: daily, 1 kept",
        "odd: every 90 s, 2 kept",
        "month: every 30 d, 4 kept",
        "2h: every 2 h, 3 kept",
    }


def test_all_that_is_wrong_is_named_with_its_line_and_costs_only_the_jobs_that_have_it(
    server: Server,
) -> None:
    server.job("vm1")
    wrong = server.folder / "jobs.d" / "wrong.yaml"
    wrong.write_text("vm2: {schedule: hourly, source: {type: file, filename: /x}}\nvm3:\n  a: 1\n")
    result = server.run("config", "check", "--json")
    assert result.code == 3
    record = json.loads(result.out.splitlines()[0])
    assert record["jobs"] == 1
    lines = {(each["file"], each["line"]) for each in record["problems"]}
    assert {(str(wrong), 1), (str(wrong), 3)} <= lines
    server.refuses(3, "config", "show", "--job", "vm2")
    assert "wrong.yaml:1" in server.ok("jobs").err
    assert [each["job"] for each in server.ok("status", "--json").record()["jobs"]] == ["vm1"]


def test_a_backup_by_hand_is_kept_as_one_of_the_schedule_and_its_hooks_run(server: Server) -> None:
    server.configure(RULES)
    heard = server.folder / "heard.json"
    hook = {"command": ["/bin/sh", "-c", 'cat > "$0"', str(heard)]}
    server.job("vm1", schedule="rules", hooks={"after-backup": hook}, store="chunks", level=7)
    server.ok("backup", "vm1")
    (revision,) = server.revisions("vm1")
    assert server.said_of("vm1", revision)["tags"] == ["daily", "weekly"]
    record = json.loads(heard.read_text())
    assert (record["event"], record["revision"]) == ("after-backup", revision)
    assert json.loads((server.base / "vm1" / "repository.json").read_text())["level"] == 7
    assert told(server).seconds > 0
    assert (told(server).errors, told(server).hooks_failed) == (0, 0)


def test_failures_are_counted_until_a_backup_succeeds(server: Server) -> None:
    heard = server.folder / "heard.json"
    hook = {"command": ["/bin/sh", "-c", 'cat > "$0"', str(heard)]}
    source = server.job("vm1", hooks={"on-failure": hook})
    content = source.read_bytes()
    source.unlink()
    for count in (1, 2):
        server.refuses(4, "backup", "vm1")
        assert (told(server).errors, told(server).failures) == (count, count)
    assert str(source) in told(server).error
    assert json.loads(heard.read_text())["error"] == told(server).error
    image(source, content)
    server.ok("backup", "vm1")
    assert (told(server).errors, told(server).error, told(server).failures) == (0, "", 2)


def test_a_backup_that_is_told_to_stop_did_not_fail(server: Server) -> None:
    gate = server.gated("vm1")
    with server.started("backup", "vm1") as running:
        gate.holds()
        running.signal(signal.SIGTERM)
        assert running.end().code == 130
    assert gate.passed("end") == gate.passed("begin")
    assert (told(server).errors, told(server).failures) == (0, 0)
    assert server.drafts("vm1") == server.revisions("vm1") == []


def test_a_hook_that_fails_is_counted_and_costs_no_backup(server: Server) -> None:
    server.job("vm1", hooks={"after-backup": "/bin/false"})
    server.ok("backup", "vm1")
    assert len(server.revisions("vm1")) == 1
    assert told(server).hooks_failed == 1
    assert "/bin/false ended with code 1" in told(server).hook_error


def test_a_revision_with_far_less_data_than_the_one_before_is_suspicious(server: Server) -> None:
    size = len(data(1))
    source = server.job("vm1", data(1))
    server.ok("backup", "vm1")
    assert told(server).suspicious == ""
    source.write_bytes(bytes(size))
    assert "it had" in server.ok("backup", "vm1").err
    assert told(server).suspicious.startswith("disk vda has ")
    assert "WARNING vm1: newest revision is suspicious: disk vda" in server.run("check").out


def age(server: Server, days: int) -> None:
    """Make all revisions of vm1 older than they are."""
    folder = server.base / "vm1" / "revisions"
    for name in server.revisions("vm1"):
        record = server.said_of("vm1", name)
        time = datetime.fromisoformat(record["time"]) - timedelta(days=days)
        new = f"{time:%Y%m%dT%H%M%SZ}-{name[-4:]}"
        record |= {"id": new, "time": f"{time:%Y-%m-%dT%H:%M:%SZ}", "parent": None}
        (folder / name / "revision.json").write_text(json.dumps(record))
        (folder / name).rename(folder / new)


def test_expire_says_what_would_go_and_then_moves_it_to_the_trash(server: Server) -> None:
    server.configure(RULES)
    server.job("vm1", schedule="rules")
    for tag in ("daily", "manual:keep", "daily", "daily", "daily"):
        server.ok("backup", "vm1", "--tag", tag)
        age(server, 1)
    before = server.revisions("vm1")
    dry = server.quiet("expire", "vm1", "--dry-run", "--json").record()
    # Two are kept by their number, one is as old as two days allow, the manual one always is.
    assert dry["dry_run"] is True
    removed = [each["revision"] for each in dry["expired"] if each["removed"]]
    assert removed
    assert before[0] in removed
    assert not {before[1], *before[-2:]} & set(removed)
    assert server.revisions("vm1") == before
    assert removed[0] in server.quiet("expire", "vm1").out
    assert server.revisions("vm1") == [each for each in before if each not in removed]
    server.ok("undo", "vm1")
    assert server.revisions("vm1") == before


def test_nothing_expires_of_a_job_that_is_not_configured(server: Server) -> None:
    server.job("vm1")
    server.ok("backup", "vm1")
    server.no_job("vm1")
    assert "not configured" in server.refuses(3, "expire", "vm1").message


def test_only_a_repository_that_is_certainly_not_configured_can_be_deleted(server: Server) -> None:
    server.job("vm1")
    server.ok("backup", "vm1")
    assert "it is configured" in server.refuses(3, "purge", "--job", "vm1").message
    server.no_job("vm1")
    broken = server.folder / "jobs.d" / "broken.yaml"
    broken.write_text("vm1: {schedule: gone}")
    assert "it may be configured" in server.refuses(3, "purge", "--job", "vm1").message
    assert len(server.revisions("vm1")) == 1
    broken.unlink()
    assert "vm1" in server.ok("jobs", "--json").record()["not_configured"]
    server.quiet("purge", "--job", "vm1")
    assert [path.name for path in server.base.iterdir()] == [".backy-base"]
    server.refuses(9, "purge", "--job", "vm1")


def test_pause_is_shown_and_warned_of_until_resume(server: Server) -> None:
    server.job("vm1")
    server.ok("backup", "vm1")
    assert server.quiet("pause", "vm1").out == "vm1: paused\n"
    since = told(server).paused
    assert since
    assert datetime.now(UTC) - since < timedelta(minutes=5)
    server.quiet("pause", "vm1")
    assert told(server).paused == since
    (row,) = server.quiet("status", "--json").record()["jobs"]
    assert row["state"] == "paused"
    assert "WARNING vm1: paused since" in server.run("check").out
    assert server.quiet("resume", "vm1", "--json").record() == {"job": "vm1", "state": "resumed"}
    assert told(server).paused is None
    server.refuses(9, "pause", "vm2")
    assert not (server.base / "vm2").exists()


def test_run_does_the_backup_itself_where_no_daemon_does(server: Server) -> None:
    server.job("vm1", SMALL[1])
    result = server.ok("run", "vm1")
    assert result.err.startswith("backy: the daemon is not running; backing up here\n")
    assert server.content("vm1") == SMALL[1]


def test_what_shows_the_jobs_works_without_a_daemon_and_says_so(server: Server) -> None:
    server.job("vm1")
    server.job("vm2")
    server.ok("backup", "vm1")
    record = server.quiet("status", "--json").record()
    assert record["problem"] == "the daemon is not running"
    shown = {row["job"]: (row["state"], row["revisions"]) for row in record["jobs"]}
    assert shown == {"vm1": ("idle", 1), "vm2": ("new", 0)}
    lines = server.quiet("status", "--once").out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["job", "vm1", "vm2"]
    assert lines[-1] == "the daemon is not running"
    assert server.quiet("top", "--once", "--json").record()["jobs"] == []
    assert set(server.quiet("jobs", "--json").record()["jobs"]) == {"vm1", "vm2"}


def test_check_ends_with_the_code_of_what_is_worst(server: Server) -> None:
    server.configure(SOON)
    server.job("vm1")
    server.ok("backup", "vm1")
    result = server.run("check")
    assert (result.code, result.err) == (2, "")
    assert result.out.startswith("BACKY CRITICAL - 1 job: daemon is not running")
    assert "CRITICAL vm1" not in result.out
    server.job("vm2", schedule="soon")
    assert "CRITICAL vm2: never backed up" in server.run("check", "--job", "^vm2$").out
    wrong = server.run("check", "--job", "(" * 90)
    assert wrong.code == 3
    assert wrong.out.startswith("BACKY UNKNOWN - --job '((")
    assert len(wrong.out) <= 201
    server.path.unlink()
    assert server.run("check").code == 3


def test_the_daemon_does_not_start_without_a_configuration(server: Server) -> None:
    server.path.write_text("global: {worker-limit: 0}")
    assert "worker-limit" in server.refuses(3, "daemon").message
    server.path.unlink()
    server.refuses(3, "daemon")
