"""What is recorded of a command, and what is not: a mistake at the keyboard leaves no trace."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runner import SMALL, Backy, data, image, refusal, tree, wait_for
from tests.daemon.machine import Server
from tests.programs import marked

MISTAKES = [
    pytest.param(["--level", "5"], 2, id="level"),
    pytest.param(["--store", "images"], 2, id="store"),
    pytest.param(["--block-size", "2MiB"], 2, id="block-size"),
    pytest.param(["--source", "/nonexistent/disk.img"], 4, id="source"),
    pytest.param(["--source", "a b=/nonexistent/disk.img"], 2, id="disk"),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with marked(str(tmp_path)):
        yield Server(tmp_path)


def status_of(backy: Backy, job: str) -> dict[str, Any]:
    """What status.json says."""
    known: dict[str, Any] = json.loads((backy.base / job / "status.json").read_text())
    return known


def written(backy: Backy) -> dict[str, tuple[int, int]]:
    """All files but `lock`, in which the last holder of the lock is named."""
    return {path: state for path, state in tree(backy.base).items() if path != "vm1/lock"}


@pytest.mark.parametrize(("options", "code"), MISTAKES)
def test_a_mistake_at_the_keyboard_leaves_no_trace_in_a_repository(
    backy: Backy, tmp_path: Path, options: list[str], code: int
) -> None:
    backy.store = "chunks"
    backy.backup("vm1", image(tmp_path / "vm1.img", SMALL[1]))
    before = written(backy)
    backy.refuses(code, "backup", "vm1", *options)
    assert written(backy) == before


@pytest.mark.parametrize(("options", "code"), MISTAKES[3:])
def test_a_mistake_at_the_keyboard_leaves_no_new_repository(
    backy: Backy, options: list[str], code: int
) -> None:
    backy.quiet("init")
    backy.refuses(code, "backup", "typo", *options)
    assert not (backy.base / "typo").exists()
    assert "typo" not in backy.ok("list").out


@pytest.mark.parametrize(("options", "code"), MISTAKES)
def test_a_mistake_at_the_keyboard_is_no_failure_of_a_configured_job(
    server: Server, options: list[str], code: int
) -> None:
    heard = server.folder / "heard"
    server.job("vm1", hooks={"on-failure": ["touch", str(heard)]})
    server.ok("backup", "vm1")
    before = written(server)
    server.refuses(code, "backup", "vm1", *options)
    assert written(server) == before
    assert not heard.exists()


def test_a_configured_job_that_never_succeeded_has_a_status_and_no_empty_repository(
    server: Server,
) -> None:
    server.job("vm1").unlink()
    server.refuses(4, "backup", "vm1")
    assert status_of(server, "vm1")["errors"] == 1
    assert not (server.base / "vm1" / "repository.json").exists()
    assert "vm1" not in server.ok("list").out


def test_the_source_that_the_repository_remembers_counts_as_the_jobs_own(
    backy: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    backy.backup("vm1", source)
    source.unlink()
    backy.refuses(4, "backup", "vm1")
    assert status_of(backy, "vm1")["errors"] == 1
    backy.refuses(4, "backup", "vm1", "--source", source)
    assert status_of(backy, "vm1")["errors"] == 2


def test_a_stop_during_the_hook_after_a_backup_says_that_the_revision_is_there(
    server: Server,
) -> None:
    begun = server.folder / "begun"
    command = ["/bin/sh", "-c", f"touch {begun}; exec sleep 600"]
    server.job("vm1", hooks={"after-backup": {"command": command, "timeout": "20m"}})
    with server.started("backup", "vm1") as running:
        wait_for(begun.exists, "the hook runs")
        running.signal(signal.SIGTERM)
        said = refusal(running.end(), 130)
    [revision] = server.revisions("vm1")
    assert revision in said.hint
    assert "Nothing was published" not in said.hint
    known = status_of(server, "vm1")
    assert (known["errors"], known["failures"]) == (0, 0)
    assert known["seconds"] == server.said_of("vm1", revision)["seconds"]


def test_a_stop_before_that_says_that_nothing_was_published(server: Server) -> None:
    begun = server.folder / "begun"
    command = ["/bin/sh", "-c", f"touch {begun}; exec sleep 600"]
    server.job("vm1", hooks={"before-snapshot": {"command": command, "timeout": "20m"}})
    with server.started("backup", "vm1") as running:
        wait_for(begun.exists, "the hook runs")
        running.signal(signal.SIGTERM)
        said = refusal(running.end(), 130)
    assert said.hint == "Nothing was published; run it again."
    assert not (server.base / "vm1").exists()


INVALID: dict[str, dict[str, object]] = {
    "a mistyped key": {"typo": 1},
    "a schedule that does not exist": {"schedule": "hourly"},
}
VERBS = {
    "backup": ["backup", "vm1"],
    "run": ["run", "vm1"],
    "expire": ["expire", "vm1"],
    "restore": ["restore", "vm1", "restored.img"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("mistake", INVALID)
def test_a_job_with_a_mistake_in_its_configuration_is_not_taken_for_one_without(
    server: Server, verb: str, mistake: str
) -> None:
    server.job("vm1")
    server.ok("backup", "vm1")
    server.job("vm1", b"another disk", **INVALID[mistake])
    before = written(server)
    said = server.refuses(3, *VERBS[verb])
    assert "vm1.yaml:" in said.message
    assert "config check" in said.hint
    assert written(server) == before


def test_a_job_that_may_be_in_a_file_that_cannot_be_read_is_not_taken_for_one_without(
    server: Server,
) -> None:
    server.job("vm1")
    server.ok("backup", "vm1")
    (server.folder / "jobs.d" / "vm1.yaml").write_text("vm1: {")
    before = written(server)
    server.refuses(3, "backup", "vm1")
    assert written(server) == before


def test_damage_is_not_healed_from_a_source_that_such_a_job_had_before(server: Server) -> None:
    server.job("vm1", data(1))
    server.ok("backup", "vm1")
    [revision] = server.revisions("vm1")
    server.damage("vm1", revision, 0)
    server.job("vm1", data(1), typo=1)
    said = server.refuses(6, "verify", "vm1")
    assert "The source could not be asked: vm1: its configuration cannot be used" in said.hint
