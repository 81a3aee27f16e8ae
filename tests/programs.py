"""Small programs for the tests of what starts programs, and a way to find those that still run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backy.system.process import Program
from tests.cli.runner import wait_for

MARK = "BACKY_TEST_MARK"


def sh(
    script: str,
    *arguments: object,
    mark: str = "",
    stdin: bytes = b"",
    seconds: float = 600,
    **more: str,
) -> Program:
    """A line of shell, whose arguments are $1 and so on."""
    command = ("/bin/sh", "-c", script, "sh", *map(str, arguments))
    return Program(command, {MARK: mark, **more}, stdin, seconds)


def alive(mark: str) -> list[int]:
    """Other processes that were started with this mark in their environment, and still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [number for number in found if number != os.getpid()]


def wait_for_none(mark: str) -> None:
    """Wait until they have all ended: SIGKILL takes a moment."""
    wait_for(lambda: not alive(mark), "all have ended")


@contextmanager
def marked(mark: str) -> Iterator[str]:
    """Give the mark; whatever has it is killed after the body."""
    try:
        yield mark
    finally:
        for number in alive(mark):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def gate(folder: Path) -> Path:
    """A pipe with a name: `read _ <GATE` waits until somebody writes to it."""
    path = folder / "gate"
    os.mkfifo(path)
    return path
