"""What one repository can cost: memory, lines and characters, whoever filled it with what."""

import fcntl
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backy.errors import StoreError
from backy.model.revision import id_for
from tests.cli.runner import Backy, tree

MIB = 1024**2
MOST = 110 * MIB
LONGEST_LINE = 5000  # characters: a name, a message of 2,000 and a hint
EVIL = "\x1b[2J\n" + "x" * 900_000
Change = Callable[[dict[str, Any]], object]


def multiply(folder: Path, name: str, count: int, change: Change) -> list[str]:
    """Copy a record in a folder of its own `count` times, each a second later and changed."""
    template = next(path for path in sorted(folder.iterdir()) if (path / name).exists())
    ids = []
    for number in range(count):
        record = json.loads((template / name).read_text())
        time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        record |= {"id": id_for(time, "aaaa"), "time": f"{time:%Y-%m-%dT%H:%M:%SZ}"}
        change(record)
        copy = folder / record["id"]
        copy.mkdir()
        for path in template.iterdir():
            if path.name != name:
                os.link(path, copy / path.name)
        (copy / name).write_text(json.dumps(record))
        assert (copy / name).stat().st_size < MIB
        ids.append(record["id"])
    return ids


def test_the_history_of_a_job_has_a_bound_that_names_itself(aged: Backy) -> None:
    """The newest revisions are read; nothing is lost, and nothing is deleted because of it."""
    newest = aged.revisions("vm1")[-1]

    def fill(record: dict[str, Any]) -> None:
        record["warnings"] = ["x" * 1_000_000]

    multiply(aged.base / "vm1" / "revisions", "revision.json", 75, fill)
    before = tree(aged.base / "vm1" / "chunks")
    said = aged.ok("list", "vm1")
    assert newest in said.out
    assert 60 < len(said.out.splitlines()) < 72
    assert said.err.count("all revision.json together exceed 64 MiB; remove revisions") == 1
    aged.ok("purge", "vm1")
    assert tree(aged.base / "vm1" / "chunks") == before


@pytest.fixture
def reported(aged: Backy) -> Backy:
    """With a report of damage that was not healed."""
    aged.damage("vm1", aged.revisions("vm1")[0], 0)
    (aged.base.parent / "vm1.img").unlink(missing_ok=True)
    aged.refuses(6, "verify", "vm1")
    return aged


def test_reports_are_read_one_by_one(reported: Backy) -> None:
    def fill(record: dict[str, Any]) -> None:
        record["reason"] = "x" * 1_000_000

    ids = multiply(reported.base / "vm1" / "quarantine", "report.json", 120, fill)
    limit = ["prlimit", f"--data={MOST}"]  # which all at once exceed by far
    result = reported.run("reports", under=limit)
    assert result.code == 0, result.err
    assert all(report in result.out for report in ids)


def test_what_a_repository_says_is_bounded_and_steers_no_terminal(reported: Backy) -> None:
    root = reported.base / "vm1"
    multiply(root / "quarantine", "report.json", 1, lambda record: record.update(reason=EVIL))
    multiply(root / "revisions", "revision.json", 1, lambda record: record.update(consistency=EVIL))
    status = json.loads((root / "status.json").read_text())
    (root / "status.json").write_text(json.dumps(status | {"error": EVIL, "errors": 3}))
    settings = json.loads((root / "repository.json").read_text())
    commands = ("backup", "list", "reports", "purge", "status --once", "jobs", "find")
    said = [use(reported, command) for command in commands]
    (root / "repository.json").write_text(json.dumps(settings | {"store": EVIL}))
    said += [use(reported, command) for command in ("list", "backup", "restore")]
    assert any("\\x1b[2J\\n" in text for text in said)
    for text in said:
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) < LONGEST_LINE


def use(backy: Backy, command: str) -> str:
    """What a command says while somebody holds the lock, in which is a long text, too."""
    arguments = {"restore": ["vm1", str(backy.base.parent / "new.img")], "jobs": []}
    with (backy.base / "vm1" / "lock").open("w") as lock:
        lock.write(2 * EVIL)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        job = [] if " " in command else ["vm1"]
        result = backy.run(*command.split(), *arguments.get(command, job))
    return result.out + result.err


def test_every_error_is_bounded() -> None:
    error = StoreError(EVIL, EVIL)
    for text in (error.message, error.hint, str(error)):
        assert text.isprintable()
        assert len(text) < LONGEST_LINE
