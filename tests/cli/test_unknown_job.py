"""A job that does not exist is told in one way by every command, and leaves nothing behind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import COMMANDS, own_parameters
from tests.cli.runner import Backy, image
from tests.daemon.machine import Server
from tests.programs import marked

REPORT = "20261123T004938Z-3fa1"
# What else a command needs beside the name of the job.
ARGUMENTS: dict[str, list[str]] = {
    "backup": [],
    "boot": [],
    "config show": [],
    "diff": ["1", "0"],
    "expire": [],
    "find": [],
    "history": [],
    "jobs": [],
    "list": [],
    "pause": [],
    "purge": [],
    "purge --job": [],
    "remove": ["-r", "latest"],
    "reports": [],
    "reports delete": [REPORT],
    "reports show": [REPORT],
    "restore": ["x.img"],
    "resume": [],
    "run": [],
    "scrub": [],
    "serve": ["--socket", "x.sock"],
    "status": [],
    "tag": ["+a"],
    "undo": [],
    "verify": [],
}
# These ask only the configuration, so without one they are wrong settings.
NEED_CONFIGURATION = {"config show", "jobs", "purge --job"}


def words(command: str) -> list[str]:
    name = ["--job", "nosuch"] if command == "config show" else ["nosuch"]
    return [*command.split(), *name, *ARGUMENTS[command]]


def test_every_command_that_takes_a_job_is_here() -> None:
    taking = {
        name
        for name, command in COMMANDS.items()
        if any("JOB" in (each.metavar or "") for each in own_parameters(command))
    }
    assert {*taking, "purge --job"} == ARGUMENTS.keys()


@pytest.fixture(scope="module", params=["no-configuration", "no-daemon", "daemon"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backy]:
    folder = tmp_path_factory.mktemp("unknown")
    Backy(folder / "backups").quiet("init")
    if request.param == "no-configuration":
        yield Backy(folder / "backups")
        return
    server = Server(folder)
    server.job("vm1")
    if request.param == "no-daemon":
        yield server
        return
    with marked(server.mark), server.daemon():
        yield server


@pytest.mark.parametrize("command", ARGUMENTS)
def test_an_unknown_job_is_not_found_and_the_hint_is_a_command_that_works(
    site: Backy, command: str, tmp_path: Path
) -> None:
    needs = command in NEED_CONFIGURATION and not isinstance(site, Server)
    said = site.refuses(3 if needs else 9, *words(command))
    assert needs or "nosuch" in said.message
    for hint in re.findall(r"backy [a-z]+(?: --?\w+| [A-Z]+| nosuch)*", said.hint):
        disk = image(tmp_path / "disk.img", b"disk")
        other = Backy(tmp_path / "other") if " backup " in hint else site
        other.ok(*shlex.split(hint.replace("PATH", str(disk)))[1:])
    assert {path.name for path in site.base.iterdir()} <= {".backy", ".backy-base"}
