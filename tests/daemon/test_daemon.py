"""The daemon as a program: what it promises while it runs, is stopped, killed and disturbed."""

from __future__ import annotations

import json
import os
import signal
import stat
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backy.repository import status
from backy.repository.status import Status
from tests.cli.runner import wait_for
from tests.daemon.machine import Daemon, Server, talk
from tests.lab.ports import free_port
from tests.programs import marked

OFTEN = {"often": {"tick": {"interval": "1s", "keep": 3}}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with marked(str(tmp_path)):
        yield Server(tmp_path)


def runs_on(daemon: Daemon, job: str, times: int = 2) -> None:
    """Wait until a job was backed up so many more times: the daemon has had its chances."""
    done = len(daemon.lines(event="finished", job=job, verb="backup"))
    daemon.logs(done + times, event="finished", job=job, verb="backup")


def newer_than(server: Server, revisions: list[str]) -> None:
    """Wait for one more."""
    wait_for(lambda: server.revisions("vm1")[-1:] > revisions[-1:], "one more is there")


def started(daemon: Daemon, verb: str = "backup") -> list[str]:
    """The jobs of which the log says that they were started, in this order."""
    return [line["job"] for line in daemon.lines(event="started", verb=verb)]


# One daemon, and what outlives it.


def test_a_base_directory_has_one_daemon_and_the_socket_is_its_owners_alone(server: Server) -> None:
    server.job("vm1")
    with server.daemon():
        refused = server.refuses(7, "daemon")
        assert str(server.base) in refused.message
        assert server.row("vm1")["state"] == "new"
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
    assert not server.socket.exists()


def test_a_killed_daemon_hinders_no_new_one_and_what_it_started_ends_as_if_nothing_had_happened(
    server: Server,
) -> None:
    gate = server.gated("vm1")
    with server.daemon() as first:
        server.ask(do="run", job="vm1")
        gate.holds()
        orphan = Path(f"/proc/{server.row('vm1')['pid']}")
        first.killed()
    with server.daemon() as second:
        server.ask(do="run", job="vm1")
        second.logs(event="postponed", job="vm1", verb="backup")
        assert len(server.drafts("vm1")) == 1
        gate.opens()
        wait_for(lambda: not orphan.exists(), "the orphan has ended")
        server.ask(do="run", job="vm1")
        gate.holds(2)
        gate.opens()
        second.logs(event="finished", job="vm1", verb="backup")
    old, new = server.revisions("vm1")
    assert server.said_of("vm1", new)["parent"] == old
    assert gate.passed("begin") == gate.passed("end") == [old, new]
    assert status.read_status(server.base / "vm1").failures == 0


def test_a_daemon_whose_log_nobody_takes_goes_on_with_its_work(server: Server) -> None:
    server.configure(OFTEN)
    server.job("vm1", schedule="often")
    reader, writer = os.pipe()
    with server.daemon(stderr=writer) as daemon:
        os.close(writer)
        wait_for(lambda: bool(server.revisions("vm1")), "it made a backup")
        os.close(reader)
        for _ in range(2):  # the first one may have begun before
            newer_than(server, server.revisions("vm1"))
        daemon.killed()


# What it tells systemd, and how it ends.


def test_systemd_hears_that_it_is_ready_that_it_lives_and_that_it_stops(server: Server) -> None:
    server.configure(stop_timeout="7s")
    server.job("vm1")
    with server.daemon(WATCHDOG_USEC="200000") as daemon:
        daemon.hears("WATCHDOG=1", 5)
        daemon.signal(signal.SIGTERM)
        daemon.hears("STOPPING=1")
        said = daemon.told[-1].splitlines()
        assert said[1].startswith("EXTEND_TIMEOUT_USEC=")
        assert int(said[1].partition("=")[2]) > 7_000_000


def test_a_stop_waits_for_what_runs_and_starts_nothing_more(server: Server) -> None:
    server.configure(OFTEN, worker_limit=2)
    gate = server.gated("vm1")
    server.job("vm2", schedule="often")
    with server.daemon() as daemon:
        server.ask(do="run", job="vm1")
        gate.holds()
        runs_on(daemon, "vm2", 1)
        daemon.signal(signal.SIGTERM)
        daemon.logs(event="stopping")
        server.waits_for("vm2", state="idle")
        before = started(daemon)
        assert server.ask(do="status")["stopping"]
        gate.opens()
        daemon.ends()
        assert started(daemon) == before
    assert len(server.revisions("vm1")) == 1
    assert gate.passed("end") == server.revisions("vm1")


@pytest.mark.parametrize("is_asked_again", [False, True], ids=["stop-timeout", "second SIGTERM"])
def test_a_stop_does_not_wait_for_ever(server: Server, is_asked_again: bool) -> None:
    server.configure(stop_timeout="1h" if is_asked_again else "1s")
    gate = server.gated("vm1")
    with server.daemon() as daemon:
        server.ask(do="run", job="vm1")
        gate.holds()
        daemon.signal(signal.SIGTERM)
        daemon.logs(event="stopping")
        if is_asked_again:
            daemon.signal(signal.SIGTERM)
        daemon.ends()
    assert (server.revisions("vm1"), server.drafts("vm1")) == ([], [])
    assert gate.passed("end") == gate.passed("begin")
    assert not server.children()
    # It was told to stop, so it did not fail.
    assert status.read_status(server.base / "vm1").failures == 0


# What runs when.


def test_a_limit_holds_only_the_jobs_that_name_it(server: Server) -> None:
    server.configure(more={"limits": {"nas": 1}}, worker_limit=3)
    one, two = server.gated("vm1", limits=["nas"]), server.gated("vm2", limits="nas")
    server.job("vm3")
    with server.daemon() as daemon:
        server.ask(do="run", job="vm1")
        one.holds()
        server.ask(do="run", job="vm2")
        server.ask(do="run", job="vm3")
        daemon.logs(event="finished", job="vm3")
        assert server.row("vm2")["state"] == "waiting"
        assert not two.passed("begin")
        one.opens()
        two.holds()
        assert server.revisions("vm1")
        two.opens()
    assert started(daemon) == ["vm1", "vm3", "vm2"]


def test_jobs_that_are_known_to_be_slow_hold_up_no_fast_one(server: Server) -> None:
    slow = {name: server.gated(name) for name in ("vm1", "vm2")}
    for name in slow:
        status.update(server.base / name, lambda old: replace(old, seconds=601))
    server.job("vm3")
    with server.daemon() as daemon:
        for name in slow:
            server.waits_for(name, seconds=601)
        server.ask(do="run", job="vm1")
        slow["vm1"].holds()
        server.ask(do="run", job="vm2")
        server.ask(do="run", job="vm3")
        daemon.logs(event="finished", job="vm3")
        server.waits_for("vm3", state="idle")
        assert server.row("vm1")["pool"] == "slow"
        server.waits_for("vm2", state="waiting", pool="slow")
        assert server.ask(do="status")["pools"] == {
            "fast": {"slots": 1, "in_use": 0, "queued": 0},
            "slow": {"slots": 1, "in_use": 1, "queued": 1},
        }
        for gate in slow.values():
            gate.holds()
            gate.opens()
        server.waits_for("vm2", state="idle")


def test_what_is_asked_for_by_hand_goes_before_what_is_due(server: Server) -> None:
    server.configure(OFTEN)
    gate = server.gated("vm1")
    server.job("vm2", schedule="often")
    server.job("vm3")
    with server.daemon() as daemon:
        server.ask(do="run", job="vm1")
        gate.holds()
        server.waits_for("vm2", state="waiting", verb="backup")
        assert server.ok("run", "vm3").out.startswith("vm3: next to start")
        held = len(started(daemon))
        gate.opens()
        daemon.logs(event="finished", job="vm3")
        assert started(daemon)[held] == "vm3"


def test_a_paused_job_stays_paused_over_a_restart_and_runs_only_by_hand(server: Server) -> None:
    server.configure(OFTEN)
    for name in ("vm1", "vm2"):
        server.job(name, schedule="often")
    server.ok("pause", "vm1")
    with server.daemon() as daemon:
        runs_on(daemon, "vm2")
        assert server.row("vm1")["state"] == "paused"
        daemon.killed()
    with server.daemon() as daemon:
        runs_on(daemon, "vm2")
        assert "vm1" not in started(daemon)
        server.ask(do="run", job="vm1")
        daemon.logs(event="finished", job="vm1")
        runs_on(daemon, "vm2")
        server.waits_for("vm1", state="paused", next=None)
        assert started(daemon).count("vm1") == 1
        server.ok("resume", "vm1")
        daemon.logs(2, event="finished", job="vm1")


def test_a_configuration_of_any_size_reaches_a_command_and_not_its_hooks(server: Server) -> None:
    """A variable of the environment takes 128 KiB."""
    server.configure(more={"limits": {f"storage-{number}": 1 for number in range(20_000)}})
    seen = server.folder / "seen"
    look = f"readlink /proc/$PPID/fd/0 /proc/self/fd/0 >> {seen}; env | grep SETTINGS >> {seen}"
    hooks = {"after-backup": {"command": ["/bin/sh", "-c", look]}}
    server.job("vm1", limits=["storage-7"], hooks=hooks)
    with server.daemon() as daemon:
        server.ask(do="run", job="vm1")
        daemon.logs(event="finished", job="vm1")
        assert server.revisions("vm1")
    assert seen.read_text().splitlines()[0] == "/dev/null"
    assert "SETTINGS" not in seen.read_text()


def test_a_backup_that_takes_too_long_is_stopped_and_named_and_others_get_its_slot(
    server: Server,
) -> None:
    gate = server.gated("stuck", max_duration="1s")
    server.job("vm2")
    with server.daemon() as daemon:
        server.ask(do="run", job="stuck")
        server.ask(do="run", job="vm2")
        failed = daemon.logs(event="failed", job="stuck")
        daemon.logs(event="finished", job="vm2")
        row = server.waits_for("stuck", state="failed", errors=1)
        checked = server.run("check").out
    assert "the backup was stopped after " in failed["error"]
    assert row["error"] == failed["error"]
    assert f"last backup failed: {failed['error']}" in checked
    assert started(daemon) == ["stuck", "vm2"]
    assert gate.passed("end") == gate.passed("begin")  # its guest was thawed
    assert (server.revisions("stuck"), server.drafts("stuck")) == ([], [])


# What fails.


def test_what_fails_is_recorded_and_is_tried_again_only_after_a_while(server: Server) -> None:
    server.configure(OFTEN)
    server.job("bad", schedule="often").unlink()
    server.job("good", schedule="often")
    with server.daemon() as daemon:
        failed = daemon.logs(event="failed", job="bad")
        assert (failed["code"], failed["level"]) == (4, "error")
        assert "bad.img" in failed["error"]
        runs_on(daemon, "good", 3)
        assert started(daemon).count("bad") == 1
        row = server.row("bad")
    assert (row["state"], row["errors"], row["error"]) == ("failed", 1, failed["error"])
    again = datetime.fromisoformat(row["next"])
    assert (again - datetime.now(UTC)).total_seconds() > 60


def test_what_fails_without_a_trace_is_not_tried_again_at_once_either(server: Server) -> None:
    server.configure(OFTEN)
    for name in ("bad", "good"):
        server.job(name, schedule="often")
    server.ok("backup", "bad")
    (server.folder / "bad.img").unlink()
    lock = server.base / "bad" / ".status.lock"  # nobody can note down that it failed
    lock.unlink()
    lock.mkdir()
    with server.daemon() as daemon:
        daemon.logs(event="failed", job="bad")
        runs_on(daemon, "good", 3)
        assert started(daemon).count("bad") == 1


def test_a_backup_that_was_killed_is_recorded_as_failed(server: Server) -> None:
    gate = server.gated("vm1")
    with server.daemon() as daemon:
        server.ask(do="run", job="vm1")
        gate.holds()
        os.kill(server.waits_for("vm1", state="running")["pid"], signal.SIGKILL)
        daemon.logs(event="failed", job="vm1", code=-9)
        row = server.waits_for("vm1", state="failed")
        assert (row["errors"], row["error"]) == (1, "the backup was ended by signal 9")
        # Its guest was thawed, and the next one works.
        wait_for(lambda: gate.passed("end") == gate.passed("begin"), "the guard has run the hook")
        server.ask(do="run", job="vm1")
        gate.holds(2)
        gate.opens()
        daemon.logs(event="finished", job="vm1")
        server.waits_for("vm1", state="idle", errors=0)
    assert server.drafts("vm1") == []


def test_a_hook_that_prints_without_end_does_not_fill_the_log(server: Server) -> None:
    flood = {"command": ["/bin/sh", "-c", "yes loud | head -5000 >&2"]}
    server.job("vm1", hooks={"after-backup": flood})
    with server.daemon() as daemon:
        server.ask(do="run", job="vm1")
        left_out = daemon.logs(event="more was said, but not logged", job="vm1")
        assert daemon.lines(event="finished", job="vm1")
        shown = daemon.lines(job="vm1")
    assert len(shown) < 250
    assert left_out["level"] == "warning"
    assert left_out["lines"] > 1000


def test_where_cron_starts_the_backups_nobody_misses_a_daemon(server: Server) -> None:
    server.configure(daemon=False)
    for job in ("vm1", "vm2"):
        server.job(job)
    server.ok("backup", "vm2")
    checked = server.run("check").out
    assert "vm1: never backed up" in checked
    assert "daemon" not in checked
    server.quiet("run", "vm1")
    assert "vm1: " not in server.run("check", "--free-warning", "0", "--free-critical", "0").out
    assert "daemon" not in server.ok("status", "--once").out
    assert server.ok("status", "--json").record()["problem"] == ""
    assert "there is no daemon" in server.refuses(3, "daemon").message


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\x00garbage\n", id="garbage"),
        pytest.param(b"x" * 1_000_000, id="a huge line"),
        pytest.param(b"[" * 60_000 + b"\n", id="deep nesting"),
        pytest.param(b"[1, 2]\n", id="no object"),
        pytest.param(b'{"do": "explode"}\n', id="an unknown verb"),
        pytest.param(b'{"do": ["run"], "job": {}}\n', id="wrong types"),
        pytest.param(b'{"do": "run", "job": "../../etc"}\n', id="a path for a job"),
        pytest.param(b'{"do": "run", "job": "\\ud800"}\n', id="half a character"),
    ],
)
def test_no_request_disturbs_it(shared: Server, request_: bytes) -> None:
    with_half = request_ if request_.endswith(b"\n") or len(request_) > 1000 else b"\n"
    answer = talk(shared.socket, with_half)
    if answer:  # it may hang up on what is too much
        assert json.loads(answer)["error"]
    talk(shared.socket, request_, is_listening=False)  # who asks and is gone
    assert [row["job"] for row in shared.ask(do="status")["jobs"]] == ["vm1"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One daemon for what does not change it; it has to end well, too."""
    server = Server(tmp_path_factory.mktemp("shared"))
    server.job("vm1")
    with marked(server.mark), server.daemon():
        yield server


def test_a_repository_without_a_job_can_be_paused_though_the_daemon_does_not_know_it(
    shared: Server,
) -> None:
    shared.ok("backup", "old", "--source", shared.folder / "vm1.img")
    shared.ok("pause", "old")
    assert status.read_status(shared.base / "old").paused
    assert "no job 'old'" in shared.refuses(9, "run", "old").message


# What it shows.


def test_prometheus_is_answered_on_the_loopback_device(server: Server) -> None:
    port = free_port()
    server.configure(metrics_listen=f"127.0.0.1:{port}", metrics_file=str(server.folder / "m.prom"))
    server.job("vm1")
    server.ok("backup", "vm1")
    with server.daemon():
        server.waits_for("vm1", state="idle")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
            text = reply.read().decode()
        assert 'backy_job_revisions{name="vm1"} 1\n' in text
        assert "backy_configuration_ok 1\n" in text
        file = server.folder / "m.prom"
        wait_for(file.exists, "the file for node_exporter was written")
        assert 'backy_job_revisions{name="vm1"} 1\n' in file.read_text()


def test_a_job_that_was_taken_out_leaves_the_metrics_and_a_new_one_joins(server: Server) -> None:
    port = free_port()
    server.configure(metrics_listen=f"127.0.0.1:{port}")
    gate = server.gated("vm1")
    with server.daemon() as daemon:
        server.ask(do="run", job="vm1")
        gate.holds()
        server.no_job("vm1")
        server.job("vm2")
        daemon.signal(signal.SIGHUP)
        daemon.logs(event="reloaded", jobs=1)
        gate.opens()  # what runs goes on
        daemon.logs(event="finished", job="vm1")
        server.waits_for("vm2", state="new")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
            text = reply.read().decode()
    assert '{name="vm2"}' in text
    assert '{name="vm1"}' not in text
    assert len(server.revisions("vm1")) == 1


def test_nothing_is_lost_where_a_status_file_is(server: Server) -> None:
    server.job("vm1")
    server.ok("backup", "vm1")
    (server.base / "vm1" / "status.json").write_text("{")
    with server.daemon() as daemon:
        row = server.waits_for("vm1", revisions=1)
        assert "status.json" in row["error"]
        server.ask(do="run", job="vm1")
        daemon.logs(event="finished", job="vm1")
    assert status.read_status(server.base / "vm1") != Status()
