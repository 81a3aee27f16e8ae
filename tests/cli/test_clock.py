"""A clock that was ahead once: what it leaves behind, and the documented way out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backy.config.loader import load
from backy.daemon.state import Setup, observe
from backy.model.revision import Revision, id_for, time_of
from backy.operations.backup import backup
from backy.repository import status, trash
from backy.repository.repository import Repository
from backy.repository.status import Scrubbed
from backy.repository.summary import summarize
from backy.sources import open_source
from tests.cli.runner import SMALL, image
from tests.daemon.machine import Server

RULES = {"rules": {"daily": {"interval": "1h", "keep": 1}}}
YEAR = timedelta(days=365)


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """vm1 has a revision of yesterday."""
    made = Server(tmp_path)
    made.configure(RULES)
    made.job("vm1", SMALL[1], schedule="rules")
    made.ok("backup", "vm1")
    (today,) = made.revisions("vm1")
    yesterday = now() - timedelta(days=1)
    folder = made.base / "vm1" / "revisions" / today
    renamed = folder.rename(folder.with_name(id_for(yesterday, "aaaa")))
    record = renamed / "revision.json"
    text = record.read_text().replace(today, renamed.name)
    record.write_text(
        text.replace(f"{time_of(today):%Y-%m-%dT%H:%M:%SZ}", f"{yesterday:%Y-%m-%dT%H:%M:%SZ}")
    )
    return made


def at(server: Server, time: datetime, content: bytes) -> Revision:
    """A backup while the clock says `time`."""
    path = image(server.folder / "vm1.img", content)
    source = open_source({"type": "file", "filename": str(path)})
    repository = Repository(server.base / "vm1")
    return backup(repository, source, tags=("daily",), now=time)


def check(server: Server) -> str:
    return server.run("check").out


def listed(server: Server) -> dict[str, datetime]:
    (job,) = server.ok("list", "vm1", "--json").record()["jobs"]
    return {each["id"]: datetime.fromisoformat(each["time"]) for each in job["revisions"]}


def test_after_a_clock_was_ahead_the_documented_way_leads_out(server: Server) -> None:
    (old,) = server.revisions("vm1")
    ahead = at(server, now() + YEAR, SMALL[2])
    assert "vm1: last backup 1 d 0 h ago" in check(server), "what is right is not hidden"
    assert "newest revisions are from the future: 1" in check(server)
    assert server.ok("expire", "vm1", "--json").record()["expired"] == []

    image(server.folder / "vm1.img", SMALL[3])
    began = now()
    server.ok("backup", "vm1")
    times = listed(server)
    new = server.revisions("vm1")[-1]
    assert list(times) == [old, ahead.id, new], "the order is that of the backups"
    assert began <= times[new] <= now(), "its time is the true one"
    assert server.content("vm1") == SMALL[3]
    assert "vm1" not in check(server).splitlines()[-1]
    assert "future" not in check(server)

    tomorrow = f"{now() + timedelta(days=1):%Y-%m-%d}"
    removed = server.ok("remove", "vm1", "-r", f"{tomorrow}..", "--json").record()["removed"]
    assert removed == [ahead.id]
    assert list(listed(server)) == [old, new]
    (expired,) = server.ok("expire", "vm1", "--json").record()["expired"]
    assert expired["revision"] == old, "now there is a newer one"


def test_what_was_made_while_the_clock_was_ahead_has_its_place_in_ranges(server: Server) -> None:
    (old,) = server.revisions("vm1")
    ahead = at(server, now() + YEAR, SMALL[2]).id
    new = at(server, now(), SMALL[3]).id

    def tagged(spec: str) -> list[str]:
        record = server.ok("tag", "vm1", "-r", spec, "--json", "+manual:x").record()
        return [each["id"] for each in record["revisions"]]

    today, later = f"{now():%Y-%m-%d}", f"{now() + timedelta(days=2):%Y-%m-%d}"
    assert tagged("latest") == [new]
    assert tagged("1..latest") == [ahead, new]
    assert tagged("..1") == [old, ahead]
    assert tagged(f"{later}..") == [ahead]
    assert tagged(f"..{today}") == [old, new]
    assert tagged(f"2..{today}") == [old, new]


def test_the_daemon_plans_by_what_is_not_ahead(server: Server) -> None:
    (old,) = server.revisions("vm1")
    at(server, now() + YEAR, SMALL[2])
    setup = Setup(load(server.path, open_source).config, server.base, now())
    seen, summary = observe(setup, "vm1", now())
    assert summary.newest
    assert (summary.newest.id, summary.ahead) == (old, 1)
    assert (seen.newest, seen.last_by_tag) == (time_of(old), {"daily": time_of(old)})
    assert "expire" not in seen.due


def test_if_all_are_ahead_no_age_is_made_up(server: Server) -> None:
    (old,) = server.revisions("vm1")
    at(server, now(), SMALL[2])
    summary = summarize(server.base, "vm1", time_of(old) - YEAR)
    assert (summary.newest, summary.ahead, summary.oldest) == (None, 2, None)


def test_the_oldest_is_the_first_whose_time_is_true(server: Server) -> None:
    (old,) = server.revisions("vm1")
    at(server, now() + YEAR, SMALL[2])
    time = at(server, now(), SMALL[3]).time
    server.ok("remove", "vm1", "-r", old)
    summary = summarize(server.base, "vm1", now())
    assert (summary.ahead, summary.oldest) == (0, time)


def test_a_purge_finds_what_was_removed_while_the_clock_was_ahead(server: Server) -> None:
    at(server, now(), SMALL[2])
    third = at(server, now() + timedelta(seconds=2), SMALL[3])
    first, second, _ = server.revisions("vm1")
    repository = Repository(server.base / "vm1")
    batches = server.base / "vm1" / "trash"
    server.ok("remove", "vm1", "-r", first)
    server.ok("remove", "vm1", "-r", second)
    for number, batch in enumerate(sorted(batches.iterdir())):
        batch.rename(batch.with_name(id_for(now() + YEAR + timedelta(hours=number), "aaaa")))
    setup = Setup(load(server.path, open_source).config, server.base, now())

    def due() -> datetime:
        return observe(setup, "vm1", now())[0].due["purge"]

    assert due() <= now(), "it is dated right at once"
    assert trash.purge(repository, 3600).kept == (first, second), "their age is unknown"
    assert now() + timedelta(days=6) < due() < now() + timedelta(days=8)
    assert server.ok("undo", "vm1", "--json").record()["restored"] == [second]
    assert third.id in server.revisions("vm1")


def test_the_next_command_dates_the_status_right(server: Server) -> None:
    root = server.base / "vm1"
    ahead = now() + YEAR
    changed = status.Status(
        errors=2, failed=ahead, verified=ahead, paused=ahead, tracking_error_at=ahead,
        scrubbed=Scrubbed(ahead, 1, 1, ahead),
    )  # fmt: skip
    status.update(root, lambda _: changed)
    began = now()
    told = status.update(root, lambda old: replace(old, errors=3))
    for time in (told.failed, told.verified, told.paused, told.tracking_error_at):
        assert time
        assert began <= time <= now()
    assert told.scrubbed is None, "nobody knows when that was"
