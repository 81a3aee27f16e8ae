"""What status says of jobs that need somebody, and that it says it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.runner import SMALL
from tests.daemon.machine import Row, Server

RULES = {"often": {"tick": {"interval": "1s", "keep": 9}}}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Four jobs: good, one with a damaged block, one that failed, one that cannot be read."""
    made = Server(tmp_path)
    for name in ("a-good", "b-damaged", "c-failed", "d-unreadable"):
        made.job(name, SMALL[1])
        made.ok("backup", name)
    (damaged,) = made.revisions("b-damaged")
    made.damage("b-damaged", damaged, 0)
    (tmp_path / "b-damaged.img").unlink()
    made.refuses(6, "verify", "b-damaged")
    (tmp_path / "c-failed.img").unlink()
    made.refuses(4, "backup", "c-failed")
    (unreadable,) = made.revisions("d-unreadable")
    (made.base / "d-unreadable" / "revisions" / unreadable / "revision.json").write_text("{")
    return made


def shown(server: Server, *words: str) -> list[Row]:
    rows: list[Row] = server.ok("status", "--json", *words).record()["jobs"]
    return rows


def test_the_worst_comes_first_and_damage_is_not_idle(server: Server) -> None:
    rows = shown(server)
    assert [(row["job"], row["state"]) for row in rows] == [
        ("d-unreadable", "unreadable"),
        ("c-failed", "failed"),
        ("b-damaged", "damaged"),
        ("a-good", "idle"),
    ]
    assert rows[2]["damage"] == "distrusted revisions: 1 of 1; reports of damage: 1"
    assert [row["damage"] for row in rows if row != rows[2]] == ["", "", ""]
    lines = server.ok("status", "--once").out.splitlines()
    assert "distrusted revisions: 1 of 1" in lines[3]
    assert "4 jobs, 1 unreadable, 1 failed, 1 damaged, 1 idle, 0 overdue" in lines


def test_only_those_are_shown_that_are_wanted(server: Server) -> None:
    assert [row["job"] for row in shown(server, "a-good", "b-damaged")] == ["b-damaged", "a-good"]
    failed = [row["job"] for row in shown(server, "--failed")]
    assert failed == ["d-unreadable", "c-failed", "b-damaged"]
    assert shown(server, "a-good", "--failed") == []


def test_lists_of_jobs_and_of_repositories_can_be_shortened_likewise(server: Server) -> None:
    bad = ["b-damaged", "c-failed", "d-unreadable"]

    def listed(*words: str) -> list[str]:
        return [row["job"] for row in server.run("list", "--json", *words).record()["jobs"]]

    def configured(*words: str) -> list[str]:
        return list(server.ok("jobs", "--json", *words).record()["jobs"])

    assert listed("--failed") == configured("--failed") == bad
    assert (
        listed("a-good", "c-failed") == configured("a-good", "c-failed") == ["a-good", "c-failed"]
    )
    assert listed("a-good", "--failed") == configured("a-good", "--failed") == []
    assert server.ok("list", "a-good").out.startswith("revision ")
    for verb in ("list", "jobs"):
        server.refuses(9, verb, "a-good", "typo")


def test_the_daemon_says_the_same(server: Server) -> None:
    before = shown(server)
    with server.daemon():
        server.waits_for("d-unreadable", state="unreadable")
        after = shown(server)
    assert [(row["job"], row["state"], row["damage"]) for row in after] == [
        (row["job"], row["state"], row["damage"]) for row in before
    ]


def test_what_is_late_is_wanted_as_well(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.configure(RULES)
    server.job("late", SMALL[1], schedule="often")
    server.job("good", SMALL[1])
    for name in ("late", "good"):
        server.ok("backup", name)
    folder = server.base / "late" / "revisions"
    (revision,) = server.revisions("late")
    old = f"20200101{revision[8:]}"
    text = (folder / revision / "revision.json").read_text()
    day = f"{revision[:4]}-{revision[4:6]}-{revision[6:8]}"
    text = text.replace(revision, old).replace(f'"{day}T', '"2020-01-01T')
    (folder / revision / "revision.json").write_text(text)
    (folder / revision).rename(folder / old)
    assert [row["job"] for row in shown(server, "--failed")] == ["late"]
