"""A guard: a small shell that runs clean-up programs if we are killed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from subprocess import DEVNULL, PIPE

from backy.system.permissions import others_may_write_program
from backy.system.process import GRACE_SECONDS, Guard, Program, spawn
from backy.system.signals import shielded


@contextmanager
def guarding(programs: Iterable[Program]) -> Iterator[Guard]:
    """Run `programs`, one after the other, if this process ends before it calls `Guard.disarm`.

    This holds even after SIGKILL. They also run if the body ends without `Guard.disarm`; we wait
    for them then. If a program runs with this guard (see `run`), its process group is killed first.

    The guard is in a session of its own, ignores the signals that stop us, and has none of our
    files open. It leaves out what root refuses to run, see `run`. It does not outlive its
    container, or a systemd unit that kills all processes.
    """
    lines = [
        f"printf %s {shlex.quote(program.stdin.decode())} | env "
        + shlex.join(f"{name}={value}" for name, value in program.environment.items())
        + f" timeout -k {GRACE_SECONDS} {program.timeout_seconds} {shlex.join(program.command)}"
        for program in programs
        if not others_may_write_program(program.command[0])
    ]
    script = resources.files("backy.system").joinpath("guard.sh").read_text()
    with shielded():
        child = spawn(("/bin/sh", "-c", script, "guard", *lines), {}, PIPE, DEVNULL)
    with child:
        assert child.stdin and child.stdout  # noqa: PT018 - this is no test
        child.stdout.readline()  # from here on it ignores the signals
        guard = Guard(child.stdin)
        guard.tell("")
        yield guard
