"""Runs backy as a user does, judged by what it says and leaves behind: in this process where only
that matters, as a program where a process does.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zstandard

import backy as package
from tests.cli import in_process
from tests.lab.dispositions import WITH_DEFAULTS
from tests.lab.losses import index_copies, lose
from tests.lab.paged import block_hashes, copies, page_names
from tests.lab.watchdog import ends

MIB = 1024**2
Argument = str | Path
Store = Literal["chunks", "images"]
PROGRAM = [sys.executable, "-m", "backy"]
_PATIENCE_SECONDS = 120  # for what happens at once, unless the machine is overloaded


def environment(**more: str) -> dict[str, str]:
    """What the program is to find around it, wherever the tests were started from."""
    source = str(Path(package.__file__).parents[1])
    settings = {"PYTHONPATH": source, "PYTHONWARNINGS": "error", "LC_ALL": "C.UTF-8"}
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return inherited | settings | more


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str

    def records(self) -> list[dict[str, Any]]:
        """What it printed for programs: one JSON value a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def record(self) -> dict[str, Any]:
        """The only one of them."""
        (record,) = self.records()
        return record

    def error(self) -> dict[str, Any]:
        """The error that it printed for programs: one line of stderr, and nothing on stdout."""
        (error,) = [line for line in self.err.splitlines() if line.startswith("{")]
        assert '"event": "error"' not in self.out
        record: dict[str, Any] = json.loads(error)
        return record

    def last(self) -> dict[str, Any]:
        """What a command with events ends with."""
        return self.records()[-1]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a command said that did not do what it was asked to do."""

    message: str
    hint: str
    before: str  # on stderr: warnings, progress


class Backy:
    """The program with one base directory, which is one user's whole installation."""

    def __init__(self, base: Path, store: Store = "chunks") -> None:
        self.base = base
        self.store = store

    def command(self, *arguments: Argument) -> list[str]:
        return [*PROGRAM, "--base-dir", str(self.base), *map(str, arguments)]

    def run(
        self, *arguments: Argument, under: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> Result:
        """Run it to its end; in this process, unless it is to be `under` another program."""
        words = self.command(*arguments)[len(PROGRAM) :]
        if under or in_process.ONLY_AS_PROGRAMS & set(words):
            return self.run_program(*arguments, under=under, env=env)
        return called(words, environment() | dict(env or {}))

    def run_program(
        self, *arguments: Argument, under: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> Result:
        """Run it to its end in a process of its own, `under` another program where there is one."""
        return ran([*under, *self.command(*arguments)], environment() | dict(env or {}))

    def ok(self, *arguments: Argument) -> Result:
        """Run it; it has to succeed."""
        result = self.run(*arguments)
        assert result.code == 0, result
        return result

    def quiet(self, *arguments: Argument) -> Result:
        """Run it; it has to succeed and must not complain."""
        result = self.ok(*arguments)
        assert result.err == ""
        return result

    def refuses(self, code: int, *arguments: Argument, under: Sequence[str] = ()) -> Refusal:
        """Run it; it has to end with `code`, say why, and say what to do next."""
        return refusal(self.run(*arguments, under=under), code)

    def backup(self, job: str, source: Argument, *options: Argument) -> str:
        """Back up to what may be a new job; give the id of the revision."""
        said = self.ok("backup", job, "--source", source, "--store", self.store, *options).out
        return str(re.match(rf"{re.escape(job)}: (\S+): ", said)[1])  # type: ignore[index]

    @contextmanager
    def started(
        self,
        *arguments: Argument,
        stderr: int = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
    ) -> Iterator[Running]:
        """Start it, and go on while it runs; it is killed at the end if it still does."""
        process = subprocess.Popen(
            [*WITH_DEFAULTS, *self.command(*arguments)],
            env=environment(**env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        with process:
            try:
                yield Running(process)
            finally:
                process.kill()

    # What is on disk, without a line of backy's code.

    def revisions(self, job: str) -> list[str]:
        """The ids of what was published, oldest first."""
        return [name for name in self._entries(job) if not name.startswith(".")]

    def drafts(self, job: str) -> list[str]:
        """What is not published (yet)."""
        return [name for name in self._entries(job) if name.startswith(".")]

    def _entries(self, job: str) -> list[str]:
        folder = self.base / job / "revisions"
        return sorted(path.name for path in folder.glob("*"))

    def content(self, job: str, back: int = 0, disk: str = "vda") -> bytes:
        """A disk of the newest revision, or of one so many steps `back`: what anybody can read."""
        folder = self.base / job / "revisions" / self.revisions(job)[-1 - back]
        if self.store == "images":
            return (folder / f"{disk}.img").read_bytes()
        names = block_hashes(self.base / job, folder, disk)
        paths = [self.base / job / "chunks" / name[:2] / f"{name}.zst" for name in names]
        return b"".join(zstandard.decompress(path.read_bytes()) for path in paths)

    def chunk(self, job: str, revision: str, block: int) -> Path:
        """The file that a block of disk vda is kept in."""
        folder = self.base / job / "revisions" / revision
        digest = block_hashes(self.base / job, folder)[block]
        return self.base / job / "chunks" / digest[:2] / f"{digest}.zst"

    def damage(self, job: str, revision: str, block: int) -> None:
        """Change a stored byte of a block of disk vda."""
        if self.store == "chunks":
            path, offset = self.chunk(job, revision, block), 1000
        else:
            folder = self.base / job / "revisions" / revision
            path, offset = folder / "vda.img", block * MIB + 1000
        with path.open("r+b") as file:  # a read-only mode does not stop root
            [byte] = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)

    def lose_index(self, job: str, revision: str, disk: str = "vda") -> None:
        """Delete both copies of the index of a disk."""
        lose(index_copies(self.base / job, self.base / job / "revisions" / revision, disk))

    def pages(self, job: str, revision: str, disk: str = "vda") -> list[list[Path]]:
        """Both copies of each page of a disk, in order."""
        names = page_names(self.base / job / "revisions" / revision, disk)
        return [copies(self.base / job, name) for name in names]

    def chunks_of(self, job: str) -> set[str]:
        """The names of all chunks that are there."""
        return {path.stem for path in (self.base / job / "chunks").glob("*/*")}

    def chunks_named(self, job: str) -> set[str]:
        """The names that the indexes of the published revisions have."""
        indexes = (self.base / job / "revisions").glob("[0-9]*/*.blocks")
        return {
            name
            for index in indexes
            for name in block_hashes(self.base / job, index.parent, index.stem)
        }

    def said_of(self, job: str, revision: str) -> dict[str, Any]:
        """The content of a revision.json."""
        path = self.base / job / "revisions" / revision / "revision.json"
        record: dict[str, Any] = json.loads(path.read_text())
        return record


@dataclass(frozen=True, slots=True)
class Running:
    """A program that has not ended yet."""

    process: subprocess.Popen[bytes]

    def end(self) -> Result:
        """Wait for it."""
        out, err = self.process.communicate(timeout=_PATIENCE_SECONDS)
        err = err or b""
        return Result(self.process.returncode, out.decode(errors="replace"), err.decode())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def obeys(self) -> None:
        """Wait until it has seen the signal that it was sent: then it ignores all others."""
        terminated = 1 << (signal.SIGTERM - 1)
        status = Path(f"/proc/{self.process.pid}/status")
        wait_for(
            lambda: (
                self.process.poll() is not None
                or terminated & int(re.findall(r"SigIgn:\s*(\w+)", status.read_text())[0], 16) > 0
            ),
            "the signal was seen",
        )


def called(words: Sequence[str], env: Mapping[str, str]) -> Result:
    """Run a command of backy in this process, as in_process.py says."""
    with ends(_PATIENCE_SECONDS):
        code, *said = in_process.call(words, env)
    return Result(code, *(each.decode(errors="surrogateescape") for each in said))


def ran(command: Sequence[str], env: Mapping[str, str]) -> Result:
    """Run a program to its end, with nothing to read and no other variables than `env`."""
    done = subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=_PATIENCE_SECONDS,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def refusal(result: Result, code: int) -> Refusal:
    """Take apart what was said with an exit code: the message, and a hint in the line below."""
    assert result.code == code, result
    assert "Traceback" not in result.err
    found = re.fullmatch(r"((?:.*\n)*?)backy: (.+?)\n  (\S.+)\n", result.err, re.DOTALL)
    assert found, result.err
    return Refusal(message=found[2], hint=found[3], before=found[1])


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    """Return when it is so. Fails after a time that matters only where a test is broken."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"it never came to this: {what}"
        time.sleep(0.005)


class Lease:
    """Stops whoever opens a file until it is released: fcntl(2), "Leases".

    That is how a test has a program stand still in the middle of its work, without any luck.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.fcntl(self._file, fcntl.F_SETSIG, signal.SIGURG)  # SIGIO, the default, would end us.
        fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def wait(self) -> None:
        """Return when somebody waits for the file."""
        wait_for(
            lambda: fcntl.fcntl(self._file, fcntl.F_GETLEASE) != fcntl.F_WRLCK,
            "the file was opened",
        )

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


@contextmanager
def leased(path: Path) -> Iterator[Lease]:
    """Nobody gets beyond opening this file. The kernel allows it for 45 seconds."""
    lease = Lease(path)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def unpublishable(backy: Backy, job: str) -> Iterator[None]:
    """A backup comes to its last step, and waits: the test has the lock on the history."""
    folder = os.open(backy.base / job / "revisions", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def data(seed: int, length: int = 3 * MIB + 5000) -> bytes:
    """Bytes that no compression makes smaller; the default length is no multiple of any block."""
    return random.Random(seed).randbytes(length)


SMALL = {seed: data(seed, 200_000) for seed in (1, 2, 3)}  # disks for which size does not matter


def image(path: Path, content: bytes) -> Path:
    """A disk image with this content."""
    path.write_bytes(content)
    return path


def overwrite(path: Path, offset: int, content: bytes) -> None:
    """What a running machine does to its disk."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and the time of its last change."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }
