"""A guard: a small shell that runs programs in our place if we are killed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from subprocess import DEVNULL

from backy.system.process import GRACE_SECONDS, Guard, Program, spawn
from backy.system.signals import shielded


@contextmanager
def guarding(programs: Iterable[Program]) -> Iterator[Guard]:
    """Have `programs` run, one after the other, if this process ends before it disarms them.

    That is so after SIGKILL, too, and when the body is left without `Guard.disarm`; then they
    are waited for. A process group that `run` was given the guard for is killed first.

    The guard is in a session of its own, ignores the signals that stop us, and has none of our
    files open. It does not outlive its container, or a systemd unit that kills all processes.
    """
    lines = [
        f"printf %s {shlex.quote(each.stdin.decode())} | env "
        + shlex.join(f"{name}={value}" for name, value in each.environment.items())
        + f" timeout -k {GRACE_SECONDS} {each.timeout_seconds} {shlex.join(each.command)}"
        for each in programs
    ]
    script = resources.files("backy.system").joinpath("guard.sh").read_text()
    with shielded():
        child = spawn(("/bin/sh", "-c", script, "guard", *lines), {}, DEVNULL, DEVNULL)
    with child:
        assert child.stdin
        armed = Guard(child.stdin)
        armed.tell("")
        yield armed
