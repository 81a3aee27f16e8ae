"""One minute of a server that nobody looks after: what it promises holds whatever happens to it."""

from __future__ import annotations

import os
import random
import re
import signal
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backy.model.revision import time_of
from tests.cli.runner import MIB, data, overwrite, wait_for
from tests.daemon.machine import Daemon, Server
from tests.lab.ports import free_port
from tests.programs import marked

INTERVAL, KEEP = 2, 5
OFTEN = {"often": {"two": {"interval": f"{INTERVAL}s", "keep": KEEP}}}
LATE = 20  # seconds that a machine may be late that has other things to do
REPORTED = {"failed", "postponed", "started"}  # what explains that a job made no backup since
HOOK = ["/bin/sh", "-c", 'echo "$BACKY_EVENT $BACKY_REVISION" >> "$0"']


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with marked(str(tmp_path)):
        yield Server(tmp_path)


def test_a_minute_with_kills_reloads_and_failures_leaves_no_silent_gap_and_nothing_half_done(
    server: Server,
) -> None:
    port, trace, metrics = free_port(), server.folder / "trace", server.folder / "backy.prom"
    settings = {"metrics_listen": f"127.0.0.1:{port}", "metrics_file": str(metrics)}
    server.configure(OFTEN, worker_limit=3, more=None, **settings)
    web = server.job("web", data(1, 3 * MIB), schedule="often")
    sleepy = {"command": [*HOOK[:2], HOOK[2] + "; sleep 3", str(trace)]}
    hooks = {"before-snapshot": sleepy, "after-snapshot": {"command": [*HOOK, str(trace)]}}
    server.job("slow", data(2, 2 * MIB), schedule="often", hooks=hooks)
    server.job("bad", schedule="often").unlink()
    server.job("old", schedule="often")

    orphan, half_done = is_killed(server, trace)
    daemon = is_reconfigured(server, trace, web, orphan)
    ended = datetime.now(UTC)
    assert half_done in " ".join(ever(server, "slow"))
    assert server.drafts("slow") == server.drafts("web") == server.drafts("new") == []
    assert not [each for each in server.children() if each != os.getpid()]
    for job in ("web", "slow", "bad", "new"):
        no_silent_gap(daemon, job, ended)
        server.ok("pause", job)
    for job in ("web", "slow", "new"):
        finished = [
            line["revision"] for line in daemon.lines(event="finished", verb="backup", job=job)
        ]
        assert set(finished) <= set(ever(server, job)), "what was made is there, or in the trash"
        retention_is_right(server, job)
        one_after_the_other(server, job)
        server.ok("verify", job)
    one_at_a_time(trace)
    all_say_the_same(server, port, metrics, ended)


def is_killed(server: Server, trace: Path) -> tuple[int, str]:
    """A backup is killed, and then the daemon while one runs: give its process and revision."""
    with server.daemon() as daemon:
        for job, event in [("web", "finished"), ("old", "finished"), ("bad", "failed")]:
            daemon.logs(event=event, job=job)
        os.kill(freezing(server, trace), signal.SIGKILL)
        daemon.logs(event="failed", job="slow", code=-signal.SIGKILL)
        server.ok("run", "slow")  # or else it waits for two minutes
        more(daemon, "slow")
        orphan = freezing(server, trace)
        half_done = server.drafts("slow")
        daemon.killed()
    assert Path(f"/proc/{orphan}").exists()
    (draft,) = half_done
    return orphan, re.findall(r"\d{8}T\d{6}Z-\w{4}", draft)[0]


def is_reconfigured(server: Server, trace: Path, web: Path, orphan: int) -> Daemon:
    """The next daemon takes over, and is told of jobs that come and go, and of a broken file."""
    with server.daemon() as daemon:
        wait_for(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan has ended")
        server.ok("run", "slow")
        more(daemon, "slow")
        server.job("new", data(3, MIB), schedule="often")
        server.no_job("old")
        daemon.signal(signal.SIGHUP)
        daemon.logs(event="reloaded", jobs=4)
        broken = server.folder / "jobs.d" / "broken.yaml"
        broken.write_text("vm9: {schedule: often, sauce: {}}")
        daemon.signal(signal.SIGHUP)
        daemon.logs(event="not reloaded: the configuration is broken")
        assert re.search(
            r"^WARNING configuration: .*broken\.yaml:1", check(server)[1], re.MULTILINE
        )
        gone = len(daemon.lines(event="started", job="old"))
        more(daemon, "new", 2)
        broken.unlink()
        daemon.signal(signal.SIGHUP)
        daemon.logs(2, event="reloaded")
        for _ in range(8):
            overwrite(web, random.randrange(2 * MIB), random.randbytes(1000))
            more(daemon, "web")
        more(daemon, "slow")
        assert len(daemon.lines(event="started", job="old")) == gone
        freezing(server, trace)
        daemon.stops()
    return daemon


def all_say_the_same(server: Server, port: int, metrics: Path, ended: datetime) -> None:
    """Status, metrics and check tell of the revisions that are on disk."""
    with server.daemon():
        wait_for(lambda: metrics.stat().st_mtime > ended.timestamp(), "the metrics were written")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
            shown = (reply.read().decode(), metrics.read_text())
        rows = {row["job"]: row for row in server.ok("status", "--json").record()["jobs"]}
        assert rows.keys() == {"web", "slow", "bad", "new"}
        for job, row in rows.items():
            ids = server.revisions(job)
            assert row["state"] == "paused"
            assert row["revisions"] == len(ids)
            newest = time_of(ids[-1]) if ids else None
            assert row["last"] == (f"{newest:%Y-%m-%dT%H:%M:%SZ}" if newest else None)
            for text in shown:
                assert value(text, "backy_job_revisions", job) == len(ids)
                assert value(text, "backy_job_paused", job) == 1
                if newest:
                    name = "backy_job_last_success_timestamp_seconds"
                    assert value(text, name, job) == newest.timestamp()
        for text in shown:
            assert value(text, "backy_job_failures_total", "bad") == rows["bad"]["errors"] > 0
            assert value(text, "backy_job_failures_total", "slow") == 1  # the one that was killed
        code, said = check(server)
        assert code == 2
        assert re.search("^CRITICAL bad: never backed up", said, re.MULTILINE)
        assert re.search(r"\bjobs=4\b.*\bfailing=1\b", said)
        assert "repositories without a job: 1: old" in said


def more(daemon: Daemon, job: str, times: int = 1) -> None:
    """Wait until a job was backed up so many times more."""
    wanted = {"event": "finished", "verb": "backup", "job": job}
    daemon.logs(len(daemon.lines(**wanted)) + times, **wanted)


def freezing(server: Server, trace: Path) -> int:
    """Wait until a backup of the slow job begins, and is inside its hook; give its process."""
    count = begun(trace)
    wait_for(lambda: begun(trace) > count, "the slow job began a backup")
    return int(server.waits_for("slow", state="running", verb="backup")["pid"])


def begun(trace: Path) -> int:
    return trace.read_text().count("before-snapshot") if trace.exists() else 0


def ever(server: Server, job: str) -> list[str]:
    """All revisions that are there, or in the trash."""
    trash = (server.base / job / "trash").glob("*/*")
    return sorted([*server.revisions(job), *(each.name for each in trash)])


def check(server: Server) -> tuple[int, str]:
    result = server.run("check")
    assert result.err == ""
    return result.code, result.out


def value(text: str, metric: str, job: str) -> float:
    (found,) = re.findall(rf'^{metric}{{name="{job}"}} (\S+)$', text, re.MULTILINE)
    return float(found)


def no_silent_gap(daemon: Daemon, job: str, ended: datetime) -> None:
    """Each interval saw something of a job, or the log says why not."""
    lines = daemon.lines(job=job)
    times = [datetime.fromisoformat(line["timestamp"]) for line in lines]
    assert lines, job
    for line, time, then in zip(lines, times, [*times[1:], ended], strict=True):
        longest = timedelta(seconds=INTERVAL + LATE)
        assert then - time <= longest or line["event"] in REPORTED, (line, then)


def retention_is_right(server: Server, job: str) -> None:
    """After an expiry is there what the schedule keeps: the newest, and what is not old enough."""
    now = datetime.now(UTC)
    server.ok("expire", job)
    there, newest = server.revisions(job), ever(server, job)[-KEEP:]
    assert set(newest) <= set(there)
    longest = timedelta(seconds=INTERVAL * KEEP)
    old = {each for each in ever(server, job) if now - when(each) > longest}
    assert not set(there) & old - set(newest)
    gone = set(ever(server, job)) - set(there)
    assert all(datetime.now(UTC) - when(each) > longest for each in gone)


def when(revision: str) -> datetime:
    return time_of(revision)


def one_after_the_other(server: Server, job: str) -> None:
    """Each revision builds upon the one before it, and no id was given twice."""
    ids = ever(server, job)
    assert len(set(ids)) == len(ids)
    for parent, revision in zip(server.revisions(job), server.revisions(job)[1:], strict=False):
        assert server.said_of(job, revision)["parent"] == parent


def one_at_a_time(trace: Path) -> None:
    """The guest was frozen and thawed, by turns: no two backups of it ran at once."""
    words = [line.split() for line in trace.read_text().splitlines()]
    assert len(words) % 2 == 0
    for before, after in zip(words[::2], words[1::2], strict=True):
        assert (before[0], after[0]) == ("before-snapshot", "after-snapshot")
        assert before[1] == after[1]
