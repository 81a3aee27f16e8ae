"""A server that runs unattended: the real daemon and its real commands, in one folder."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from backy.clients import daemon_client
from tests.cli.runner import PROGRAM, Argument, Backy, environment, image, wait_for
from tests.lab.dispositions import WITH_DEFAULTS
from tests.programs import MARK, alive

Line = dict[str, Any]
Row = dict[str, Any]
NEVER = "never"  # a schedule that is not due while a test runs
_PATIENCE_SECONDS = 120
_SCHEDULES: Mapping[str, object] = {NEVER: {"yearly": {"interval": "365d", "keep": 3}}}


class Server(Backy):
    """A base directory, a configuration, and the programs that work with them."""

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        super().__init__(base or folder / "backups", "chunks")
        self.folder = folder
        self.path = folder / "backy.yaml"
        self.socket = folder / "socket"
        self.log = folder / "daemon.log"
        self.mark = str(folder)
        (folder / "jobs.d").mkdir()
        self.configure()

    def command(self, *arguments: Argument) -> list[str]:
        return [*PROGRAM, "--config", str(self.path), *map(str, arguments)]

    def configure(
        self,
        schedules: Mapping[str, object] = _SCHEDULES,
        /,
        *,
        more: Line | None = None,
        **g: object,
    ) -> None:
        """Write the main file; `g` are settings of the daemon."""
        settings = {key.replace("_", "-"): value for key, value in g.items()}
        place = {"base-dir": str(self.base), "socket": str(self.socket)}
        said = {"global": place | settings, "schedules": {**_SCHEDULES, **schedules}}
        self.path.write_text(yaml.safe_dump(said | (more or {})))

    def job(self, name: str, content: bytes = b"disk" * 500, /, **settings: object) -> Path:
        """Configure a job in a file of its own, whose source is an image; give the image."""
        path = image(self.folder / f"{name}.img", content)
        source = {"type": "file", "filename": str(path)}
        said = {"schedule": NEVER, "source": source, "scrub": False} | settings
        said = {key.replace("_", "-"): value for key, value in said.items()}
        (self.folder / "jobs.d" / f"{name}.yaml").write_text(yaml.safe_dump({name: said}))
        return path

    def no_job(self, name: str) -> None:
        """Take a job out of the configuration."""
        (self.folder / "jobs.d" / f"{name}.yaml").unlink()

    def gated(self, name: str, **settings: object) -> Gate:
        """Configure a job whose backups stop before the snapshot until the gate lets them go on."""
        gate = Gate(self.folder / f"{name}.gate", self.folder / f"{name}.trace")
        hooks = {
            "before-snapshot": {"command": gate.command("begin"), "timeout": "10m"},
            "after-snapshot": {"command": gate.command("end")},
        }
        self.job(name, name.encode() * 500, hooks=hooks, **settings)
        return gate

    def ask(self, **request: object) -> dict[str, Any]:
        """What the daemon answers."""
        reply = daemon_client.ask(self.socket, request)  # type: ignore[arg-type]
        assert reply is not None
        return dict(reply)

    def row(self, job: str) -> Row:
        """What the daemon says of a job."""
        (row,) = (row for row in self.ask(do="status")["jobs"] if row["job"] == job)
        return dict(row)

    def waits_for(self, job: str, **wanted: object) -> Row:
        """Wait until the daemon says this of a job."""
        row: Row = {}

        def is_so() -> bool:
            row.update(self.row(job))
            return row | wanted == row or _not_yet()

        wait_for(is_so, f"{job} has {wanted}")
        return row

    @contextmanager
    def daemon(self, *, stderr: int | None = None, **env: str) -> Iterator[Daemon]:
        """Start it and go on when it is ready.

        Unless it was killed it has to stop at the end when it is told to, with code 0. It must
        never have said anything but lines of its log.
        """
        name = self.folder / f"notify-{len(list(self.folder.iterdir()))}"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices,
            self.log.open("ab") as log,
        ):
            notices.bind(str(name))
            notices.settimeout(_PATIENCE_SECONDS)
            process = subprocess.Popen(
                [*WITH_DEFAULTS, *self.command("daemon", "--log-json")],
                env=environment(NOTIFY_SOCKET=str(name), **{MARK: self.mark}, **env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=stderr or log,
            )
            daemon = Daemon(process, self.log, notices)
            with process:
                try:
                    assert notices.recv(1000) == b"READY=1"
                    yield daemon
                    if process.poll() is None:
                        daemon.stops()
                finally:
                    process.kill()
            daemon.is_well()

    def children(self) -> list[int]:
        """The processes that the daemons started, and what these started, still running."""
        return alive(self.mark)


@dataclass
class Daemon:
    """One that was started, and what it says."""

    process: subprocess.Popen[bytes]
    log: Path
    notices: socket.socket
    told: list[str] = field(default_factory=list)

    def lines(self, **wanted: object) -> list[Line]:
        """The lines of the log that say this; all daemons of a server write to one log."""
        text = self.log.read_text()
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if line | wanted == line]

    def logs(self, count: int = 1, **wanted: object) -> Line:
        """Wait until the log says this so many times; give the last."""
        wait_for(
            lambda: len(self.lines(**wanted)) >= count or _not_yet(), f"{count} times {wanted}"
        )
        return self.lines(**wanted)[-1]

    def hears(self, word: str, count: int = 1) -> None:
        """Wait until it has told systemd this so many times."""
        while sum(each.startswith(word) for each in self.told) < count:
            self.told.append(self.notices.recv(1000).decode())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stops(self) -> None:
        """Tell it to stop, as systemd does, and wait until it has."""
        self.signal(signal.SIGTERM)
        self.ends()

    def ends(self) -> None:
        """Wait until it has ended, as it should."""
        assert self.process.wait(_PATIENCE_SECONDS) == 0, self.log.read_text()

    def killed(self) -> None:
        """End it at once; what it started goes on."""
        self.process.kill()
        self.process.wait(_PATIENCE_SECONDS)

    def is_well(self) -> None:
        """It never had a bug, and said nothing that is no line of its log."""
        text = self.log.read_text()
        assert "Traceback" not in text, text
        assert all(line.startswith("{") for line in text.splitlines()), text
        assert not self.lines(event="a bug")


@dataclass(frozen=True)
class Gate:
    """Holds the backups of a job, so that a test has all the time it wants."""

    path: Path
    trace: Path

    def __post_init__(self) -> None:
        os.mkfifo(self.path)

    def command(self, word: str) -> list[str]:
        """A hook that says a word, and waits at the gate where that is "begin"."""
        wait = f'read -r _ < "{self.path}"' if word == "begin" else ":"
        return ["/bin/sh", "-c", f'echo "{word} $BACKY_REVISION" >> "{self.trace}"; {wait}']

    def passed(self, word: str) -> list[str]:
        """The revisions that a hook said the word of."""
        text = self.trace.read_text() if self.trace.exists() else ""
        return re.findall(rf"^{word} (\S+)$", text, re.MULTILINE)

    def holds(self, count: int = 1) -> None:
        """Wait until so many backups have begun."""
        wait_for(lambda: len(self.passed("begin")) >= count, "a backup came to the gate")

    def opens(self) -> None:
        """Let the one go on that waits."""

        def is_open() -> bool:
            try:
                gate = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return False  # the hook has yet to open it
            os.write(gate, b"\n")
            os.close(gate)
            return True

        wait_for(is_open, "a hook waited at the gate")


def _not_yet() -> bool:
    """Leave the processor to those that are waited for: to ask takes some of it, too."""
    time.sleep(0.05)
    return False


def talk(path: Path, sent: bytes, *, is_listening: bool = True) -> bytes:
    """Send something to a socket, and give what comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_PATIENCE_SECONDS)
        channel.connect(str(path))
        with suppress(OSError):  # it may have heard enough
            channel.sendall(sent)
        answer = b""
        with suppress(OSError):
            while is_listening and (more := channel.recv(65536)):
                answer += more
        return answer
