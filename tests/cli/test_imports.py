"""A command imports what it needs: what takes long to import makes each call slow."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.runner import SMALL, environment
from tests.daemon.machine import Server
from tests.programs import marked

# What takes longest to import, but for typer and pydantic, which every command needs.
SLOW = {"asyncio", "blake3", "rich", "structlog", "zstandard"}
OURS = {"backy.daemon.daemon", "backy.operations.backup", "backy.sources"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """With the job vm1, which has a revision."""
    with marked(str(tmp_path)):
        made = Server(tmp_path)
        made.job("vm1", SMALL[1])
        made.ok("backup", "vm1")
        yield made


def imported(command: list[str], code: int = 0) -> set[str]:
    """All modules that a program imports until it ends."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "backy", *command],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_the_version_needs_next_to_nothing() -> None:
    for words in (["--version"], ["-V"], ["version"]):
        loaded = imported(words)
        assert "backy.cli" in loaded
        assert loaded & (SLOW | OURS | {"typer", "pydantic", "ctypes", "json"}) == set()


@pytest.mark.parametrize("words", ["--help", "help", "--base-dir / --version"])
def test_help_needs_no_command_and_nothing_that_is_slow(words: str) -> None:
    loaded = imported(words.split())
    assert "typer" in loaded
    others = {"ctypes", "pydantic", "yaml", "backy.cli.backup", "backy.operations.site"}
    assert loaded & (SLOW | OURS | others) == set()


@pytest.mark.parametrize("command", ["list", "list vm1", "list --json", "tag vm1 +x", "undo vm1"])
def test_commands_that_look_at_repositories_need_no_stores_sources_and_daemon(
    server: Server, command: str
) -> None:
    code = 9 if command == "undo vm1" else 0
    loaded = imported(server.command(*command.split())[3:], code)
    assert "backy.repository.repository" in loaded
    assert loaded & (SLOW | OURS) == set()


@pytest.mark.parametrize("command", ["status --once", "top --once", "check --days-warning 1"])
def test_commands_that_ask_the_daemon_leave_the_jobs_to_it(server: Server, command: str) -> None:
    with server.daemon():
        loaded = imported(server.command(*command.split())[3:])
    assert "backy.clients.daemon_client" in loaded
    assert loaded & (SLOW | OURS) == set()


def test_the_daemon_needs_them() -> None:
    """So that the names above are those of modules that exist."""
    code = f"import {', '.join(SLOW | OURS)}"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
