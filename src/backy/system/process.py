"""The door to programs: start them, ask them, and see that they end."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from threading import Thread
from typing import IO

from backy.system.signals import shielded

GRACE_SECONDS = 5  # seconds from SIGTERM to SIGKILL
_HEARD = 64 * 1024  # bytes that are kept of what a program says: the last, which say how it ended


def identity() -> str:
    """Name this process for a person who finds the lock taken: "backy[4711]"."""
    return f"backy[{os.getpid()}]"


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def allow_open_files(count: int) -> None:
    """Raise the soft limit of open files to `count`, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def be_idle() -> None:
    """Let all other processes go first, on the processors and on the disk (ioprio_set(2)).

    The threads that are started from here on inherit it. Does what the system allows.
    """
    os.nice(19)
    set_io_class(0, "idle")


def set_io_class(pid: int, name: str) -> None:
    """Put a process, or this thread (0), into a class of ioprio_set(2), at its lowest level."""
    if number := _IOPRIO_SET.get(platform.machine()):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(ctypes.c_long(number), 1, pid, _IO_CLASSES[name])


_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IO_CLASSES = {"best-effort": 2 << 13 | 7, "idle": 3 << 13}  # linux/ioprio.h


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: a program and its arguments, and what is added to our environment for it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    stdin: bytes
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: with a code, by signal n (-n), or by its time limit (None).

    `output` has the last 64 KiB of what it said on stderr; and on stdout, unless that is apart.
    """

    code: int | None
    output: str
    stdout: bytes = b""


def run(program: Program, guard: Guard | None = None, *, limit: int = 0) -> Outcome:
    """Run a program to its end, in a session of its own.

    With `limit`, which goes without a guard, `stdout` is apart: all of it, but at most `limit` + 1
    bytes. It is complete only where the program ended within its time and said no more; and the
    program dies with us if we are killed.

    At its time limit, and where CancelledError or another exception ends the wait for it, its
    process group gets SIGTERM, and SIGKILL after 5 seconds. When it ends by itself, what it left
    in the background goes on, is not waited for, and may go on talking.

    A program that cannot be started ends with 126 or 127, as in a shell. If we are killed
    meanwhile, `guard` kills its process group.
    """
    said, stdout = bytearray(), bytearray()
    code = None
    deadline = time.monotonic() + program.timeout_seconds
    command = (*(_WITH_US if limit else _TELL), *program.command)
    pipe = PIPE if limit else guard.pipe if guard else DEVNULL
    with ExitStack() as stack:
        try:
            with shielded():
                child = spawn(command, program.environment, pipe, PIPE)
                stack.callback(_end, child, guard)
                Thread(target=_feed, args=(child.stdin, program.stdin), daemon=True).start()
                hearing = Thread(target=_hear, args=(child.stderr, said), daemon=True)
                hearing.start()
                taking = Thread(target=_take, args=(child.stdout, stdout, limit + 1), daemon=True)
                taking.start()
        except (
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # no memory, no thread, a NUL in a word
            return Outcome(127, str(error))
        with suppress(TimeoutExpired):
            code = child.wait(program.timeout_seconds)
    hearing.join(0.5)  # at once, if nothing in the background can speak in its name
    taking.join(max(0, deadline - time.monotonic()))
    code = None if taking.is_alive() else code
    return Outcome(code, said.decode(errors="replace"), bytes(stdout))


@dataclass(frozen=True, slots=True)
class RunningProgram:
    """A program that runs beside us."""

    _popen: Popen[bytes]
    _hearing: Thread
    _said: bytearray

    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._popen.poll() is not None

    def said(self) -> str:
        """The last 64 KiB of what it said on stderr; all of that, if it has ended."""
        if self.has_ended():
            self._hearing.join(0.5)
        return self._said.decode(errors="replace")


@contextmanager
def serving(command: Sequence[str]) -> Iterator[RunningProgram]:
    """Have a program run during the body; it is ended with it, and dies with us if we are killed.

    Raises OSError where nothing can be started; a program that is missing is one that has ended.
    """
    said, begun = bytearray(), SimpleQueue[Popen[bytes] | Exception]()

    def hold() -> None:
        # The kernel takes the end of the thread that starts a child for ours (PR_SET_PDEATHSIG).
        try:
            child = spawn((*_WITH_US, *command), {}, DEVNULL, PIPE)
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            begun.put(error)
        else:
            begun.put(child)
            child.wait()

    with ExitStack() as stack:
        with shielded():
            Thread(target=hold, daemon=True).start()
            child = begun.get()
            if isinstance(child, Exception):
                raise child
            stack.callback(_end, child, None)
            Thread(target=_feed, args=(child.stdin, b""), daemon=True).start()
            hearing = Thread(target=_hear, args=(child.stderr, said), daemon=True)
            hearing.start()
            stack.callback(hearing.join, 0.5)
        yield RunningProgram(child, hearing, said)


# The shell tells the guard its number before it becomes the program, so that the guard knows of
# each program that runs. Where the guard is gone, SIGPIPE ends only the subshell.
_TELL = ("/bin/sh", "-c", '(echo $$); exec >&2; exec "$@"', "sh")
# Of a child that nobody waits for any more the kernel can say so only to the child itself.
_WITH_US = ("setpriv", "--pdeathsig", "TERM", "--")


def spawn(
    command: Sequence[str], environment: Mapping[str, str], stdout: int | IO[bytes], stderr: int
) -> Popen[bytes]:
    """Start a program in a session of its own, with `environment` added to ours."""
    return Popen(
        command,
        bufsize=0,
        stdin=PIPE,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        env=os.environ | dict(environment),
    )


def _end(child: Popen[bytes], guard: Guard | None) -> None:
    """See that a program has ended; a time limit ends the wait for what only root may kill."""
    with shielded():
        if child.returncode is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, number)
                with suppress(TimeoutExpired):
                    child.wait(GRACE_SECONDS)
        if guard:
            guard.tell("")


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with suppress(BrokenPipeError), pipe:  # it need not listen
        pipe.write(data)


def _take(pipe: IO[bytes] | None, taken: bytearray, limit: int) -> None:
    """Listen to all of it, and keep its beginning."""
    if pipe:
        with pipe:
            while more := pipe.read(_HEARD):
                taken += more[: limit - len(taken)]


def _hear(pipe: IO[bytes], said: bytearray) -> None:
    """Listen until nobody can speak any more: who is not heard would be stopped by SIGPIPE."""
    with pipe:
        while more := pipe.read(_HEARD):
            said += more
            del said[:-_HEARD]


@dataclass(frozen=True, slots=True)
class Guard:
    """What `guard` gives: our end of the pipe to guard.sh."""

    pipe: IO[bytes]

    def tell(self, line: str) -> None:
        """Say which process group is to die with us ("": none), or "done"."""
        with suppress(BrokenPipeError):  # somebody killed it
            self.pipe.write(f"{line}\n".encode())

    def disarm(self) -> None:
        """Have nothing run when we are gone."""
        self.tell("done")
