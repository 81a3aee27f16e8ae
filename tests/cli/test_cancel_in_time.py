"""A signal ends every command, whatever hangs: a server, a program, a file system, a pipe.

What hangs here would hang for ever, so a command that does not obey never ends.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import pytest

from tests.cli.runner import (
    MIB,
    PROGRAM,
    SMALL,
    Argument,
    Backy,
    Result,
    data,
    image,
    refusal,
    wait_for,
)
from tests.lab.needs import absent, need
from tests.lab.storage_daemon import needs_storage_daemon, storage_daemon
from tests.nbd.scripted import Answer, Request, Script, everything, scripted
from tests.nbd.servers import short_folder
from tests.programs import MARK, alive, marked, wait_for_none
from tests.sources.test_qemu_hostile import GREETING, OK, Talk, listening, says, silent, trickling

ROUNDS = int(os.environ.get("BACKY_ROUNDS", "1"))
SEED = int(os.environ.get("BACKY_SEED", "1"))
CONTENT = data(5, 2 * MIB)


def trickle(request: Request) -> Iterator[bytes]:
    """An answer of which a byte comes now and then."""
    yield request.data(request.offset, bytes(request.length))[:30]
    for _ in repeat(None):
        time.sleep(0.05)
        yield b"x"


def nothing(_: Request) -> Iterator[bytes]:
    while True:
        time.sleep(0.05)
        yield b""


def small_holes(request: Request) -> Answer:
    """One hole of 512 bytes: 64 TiB take for ever, and all of it is one extent."""
    yield request.extents(0, [(512, 3)], last=False)
    yield request.chunk(0)


class Large(bytes):
    def __len__(self) -> int:
        return 64 << 40


SERVERS = {
    "silent": Script(CONTENT, read=nothing),
    "trickles": Script(CONTENT, read=trickle),
    "silent-about-extents": Script(
        CONTENT, contexts={"base:allocation": everything}, status=nothing
    ),
    "endless-holes": Script(Large(), contexts={"base:allocation": everything}, status=small_holes),
    "silent-from-the-start": Script(CONTENT, greeting=nothing(Request(0, 0, 0))),
}


class Configured(Backy):
    """A program with a configuration: one job, vm1, with this source."""

    def configure(self, **source: object) -> None:
        self.base.mkdir(exist_ok=True)
        schedule = {"daily": {"interval": "1d", "keep": 7}}
        job = {"source": source, "schedule": "default"}
        there = {"base-dir": str(self.base), "socket": str(self.base / "socket")}
        config = there, {"default": schedule}, {"vm1": job}
        names = ("global", "schedules", "jobs")
        self.config.write_text(json.dumps(dict(zip(names, config, strict=True))))

    @property
    def config(self) -> Path:
        return self.base.parent / "backy.yaml"

    def command(self, *arguments: Argument) -> list[str]:
        return [*PROGRAM, "--config", str(self.config), *map(str, arguments)]


@pytest.fixture
def backy(tmp_path: Path) -> Configured:
    return Configured(tmp_path / "base")


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    with marked(str(tmp_path)) as mark:
        yield mark


def ended(result: Result) -> None:
    """It obeyed, and was not ended by force."""
    assert refusal(result, 130).message == "stopped by SIGTERM"


def stopped_at_random(
    backy: Configured, server: str, seed: int, verb: str, *arguments: Argument
) -> None:
    """Run a command whose source is this server, and stop it a moment after it has connected."""
    script, heard = SERVERS[server], threading.Event()

    def greeting() -> Iterator[bytes]:
        heard.set()
        yield from script.greeting

    with scripted(replace(script, greeting=greeting())) as uri:
        backy.configure(type="nbd", disks={"vda": uri})
        with backy.started(verb, "vm1", *arguments) as running:
            assert heard.wait(60)
            time.sleep(random.Random(seed).uniform(0, 0.6))
            running.signal(signal.SIGTERM)
            ended(running.end())


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
@pytest.mark.parametrize("server", SERVERS)
def test_a_backup_ends_whatever_its_server_does(backy: Configured, server: str, seed: int) -> None:
    stopped_at_random(backy, server, seed, "backup")
    assert not backy.revisions("vm1")
    assert not backy.drafts("vm1")


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
@pytest.mark.parametrize(
    ("verb", "server"), [("verify", "silent"), ("scrub", "trickles"), ("restore", "silent")]
)
def test_healing_from_a_server_ends_whatever_it_does(
    backy: Configured, tmp_path: Path, verb: str, server: str, seed: int
) -> None:
    backy.configure(type="file", disks={"vda": str(image(tmp_path / "vm1.img", CONTENT))})
    backy.ok("backup", "vm1", "--store", "chunks")
    [revision] = backy.revisions("vm1")
    backy.damage("vm1", revision, 0)
    target = [str(tmp_path / "new.img")] if verb == "restore" else []
    stopped_at_random(backy, server, seed, verb, *target)
    assert backy.said_of("vm1", revision)["trust"] == "trusted"


@pytest.mark.parametrize(
    "talk", [silent, trickling, says(GREETING, OK)], ids=["silent", "trickles", "late"]
)
def test_a_backup_ends_though_qemu_does_not_answer(
    backy: Configured, tmp_path: Path, talk: Talk
) -> None:
    heard = tmp_path / "heard"

    def noted(connection: socket.socket) -> None:
        heard.touch()
        talk(connection)

    with listening(tmp_path / "qmp", noted) as path:
        backy.configure(type="qemu", qmp=str(path), scratch=str(tmp_path), timeout="1h")
        with backy.started("backup", "vm1") as running:
            wait_for(heard.exists, "it has connected")
            running.signal(signal.SIGTERM)
            ended(running.end())


STUBBORN = "trap '' TERM; touch $F; while :; do sleep 1; done"
HANGS = "touch $F; exec sleep 1000"


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\nF={path.parent}/begun\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("name", "script", "source"),
    [
        ("exec", HANGS, {"type": "exec", "command": ["exec"]}),
        ("exec", STUBBORN, {"type": "exec", "command": ["exec"]}),
        ("exec", f"[ $1 = release ] && {HANGS}; {HANGS}", {"type": "exec", "command": ["exec"]}),
        ("rbd", HANGS, {"type": "rbd", "disks": {"vda": "a/b", "vdb": "a/c"}, "timeout": "1h"}),
        ("virsh", HANGS, {"type": "libvirt", "domain": "vm1", "timeout": "1h"}),
    ],
    ids=["exec", "stubborn", "its-clean-up", "rbd", "virsh"],
)
def test_a_backup_ends_though_a_program_does_not(
    backy: Configured,
    tmp_path: Path,
    mark: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    script: str,
    source: dict[str, object],
) -> None:
    path = program(tmp_path / name, script)
    backy.configure(**source | ({"command": [path]} if name == "exec" else {}))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with backy.started("backup", "vm1", env={MARK: mark}) as running:
        wait_for((tmp_path / "begun").exists, "the program runs")
        running.signal(signal.SIGTERM)
        ended(running.end())
    wait_for_none(mark)


@pytest.mark.parametrize("verb", ["status", "check", "run"])
def test_a_command_ends_though_the_daemon_does_not_answer(
    backy: Configured, tmp_path: Path, verb: str
) -> None:
    heard = tmp_path / "heard"

    def talk(connection: socket.socket) -> None:
        heard.touch()
        trickling(connection)

    backy.configure(type="file", disks={"vda": str(image(tmp_path / "vm1.img", SMALL[1]))})
    backy.ok("backup", "vm1", "--store", "chunks")
    with (
        listening(backy.base / "socket", talk),
        backy.started(verb, *(["vm1"] if verb == "run" else [])) as running,
    ):
        wait_for(heard.exists, "it has asked")
        running.signal(signal.SIGTERM)
        result = running.end()
    assert "SIGTERM" in result.out + result.err


class Hasty(Configured):
    """Is ended by force after one second, and not after nine."""

    PROGRAM = """if True:
        import sys
        from backy.cli import main
        from backy.system import signals
        signals._END_SECONDS = 1
        sys.exit(main())
    """

    def command(self, *arguments: Argument) -> list[str]:
        return [sys.executable, "-c", self.PROGRAM, *super().command(*arguments)[len(PROGRAM) :]]


@contextmanager
def hung_file(folder: Path, content: bytes) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file of a file system in user space, and what makes that file system hang."""
    with ExitStack() as stack:
        daemon = stack.enter_context(storage_daemon(folder, r=content))
        process = daemon.process
        assert process
        stack.callback(process.send_signal, signal.SIGCONT)
        yield daemon.door("r"), lambda: process.send_signal(signal.SIGSTOP)


def is_stuck(pid: int) -> bool:
    """Whether a thread of the process waits for the file system in user space."""
    for each in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread that has ended meanwhile
            if "request_wait_answer" in (each / "wchan").read_text():
                return True
    return False


@needs_storage_daemon
@pytest.mark.parametrize("verb", ["backup", "restore", "verify"])
def test_a_command_ends_though_a_file_system_hangs(tmp_path: Path, verb: str) -> None:
    """Neither the main thread nor another one can be interrupted then."""
    backy = Hasty(tmp_path / "base")
    with hung_file(tmp_path, CONTENT) as (path, hang):
        backy.configure(type="file", disks={"vda": str(path)})
        backy.ok("backup", "vm1", "--store", "chunks")
        [revision] = backy.revisions("vm1")
        backy.damage("vm1", revision, 0)
        words = {"restore": ["vm1", str(path), "--over-source"]}.get(verb, ["vm1"])
        hang()
        with backy.started(verb, *words) as running:
            wait_for(lambda: is_stuck(running.process.pid), "it waits for the file system")
            running.signal(signal.SIGTERM)
            said = refusal(running.end(), 130)
    assert "could not: something that it called does not answer" in said.message
    assert "Run it again" in said.hint
    assert backy.revisions("vm1") == [revision]
    # Its locks ended with it.
    image(tmp_path / "vm1.img", SMALL[1])
    backy.configure(type="file", disks={"vda": str(tmp_path / "vm1.img")})
    backy.ok("backup", "vm1")
    assert len(backy.revisions("vm1")) == 2
    assert backy.drafts("vm1") == []


@needs_storage_daemon
def test_a_server_ends_though_a_file_system_hangs(tmp_path: Path) -> None:
    """A client waits for a block that could be healed from there."""
    need(absent("nbdcopy"))
    backy = Hasty(tmp_path / "base")
    with hung_file(tmp_path, CONTENT) as (path, hang), short_folder() as folder:
        backy.configure(type="file", disks={"vda": str(path)})
        backy.ok("backup", "vm1", "--store", "chunks")
        backy.damage("vm1", backy.revisions("vm1")[0], 0)
        hang()
        with backy.started("serve", "vm1", "--socket", folder / "s") as running:
            wait_for((folder / "s").is_socket, "it listens")
            uri = f"nbd+unix:///vm1/latest/vda?socket={folder / 's'}"
            with subprocess.Popen(["nbdcopy", uri, "null:"], stderr=subprocess.DEVNULL):
                wait_for(lambda: is_stuck(running.process.pid), "it waits for the file system")
                running.signal(signal.SIGTERM)
                assert "does not answer" in refusal(running.end(), 130).message


@needs_storage_daemon
def test_a_hook_that_thaws_runs_though_the_command_was_ended_by_force(
    tmp_path: Path, mark: str
) -> None:
    """It takes longer than the command may, so the guard begins it again, and waits for it."""
    backy = Hasty(tmp_path / "base")
    notes, go = tmp_path / "notes", tmp_path / "go"
    slow = f"echo begun >>{notes}; while ! [ -e {go} ]; do sleep 0.1; done; echo thawed >>{notes}"
    backy.configure(type="file", disks={"vda": str(image(tmp_path / "vm1.img", SMALL[1]))})
    config = json.loads(backy.config.read_text())
    config["jobs"]["vm1"]["hooks"] = {"after-snapshot": [{"command": ["/bin/sh", "-c", slow]}]}
    backy.config.write_text(json.dumps(config))
    with backy.started("backup", "vm1", env={MARK: mark}) as running:
        wait_for(notes.exists, "the hook runs")
        running.signal(signal.SIGTERM)
        assert running.end().code == 130
    assert alive(mark)
    go.touch()
    wait_for_none(mark)
    assert notes.read_text().split() == ["begun", "begun", "thawed"]


def test_a_command_ends_though_nobody_reads_its_errors(backy: Configured) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with suppress(BlockingIOError):
        while True:
            os.write(theirs, bytes(65536))
    os.set_blocking(theirs, True)
    hasty = Hasty(backy.base)
    with scripted(SERVERS["silent"]) as uri:
        hasty.configure(type="nbd", disks={"vda": uri})
        with hasty.started("backup", "vm1", stderr=theirs) as running:
            wait_for(lambda: bool(hasty.drafts("vm1")), "it copies")
            running.signal(signal.SIGTERM)
            assert running.end().code == 130
    os.close(ours)
    os.close(theirs)
