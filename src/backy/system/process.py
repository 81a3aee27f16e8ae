"""Programs: start them, read their output, and make sure that they end; and this one.

A guard is a small shell that runs clean-up programs if we are killed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import pwd
import resource
import select
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from threading import Event, Thread, current_thread, main_thread
from typing import IO

from backy.system import signals
from backy.system.permissions import others_may_write_program
from backy.system.signals import shielded

_GRACE_SECONDS = 5  # seconds from SIGTERM to SIGKILL
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IO_CLASSES = {"best-effort": 2 << 13 | 7, "idle": 3 << 13}  # linux/ioprio.h
_LOOK_SECONDS = 0.5  # so often a thread that waits looks whether it is to stop
_KEPT = 64 * 1024  # bytes of a program's output: the last ones, which say why it failed


def identity() -> str:
    """The name of this process in a lock file, for people who wait: "backy[4711]"."""
    return f"backy[{os.getpid()}]"


def asker() -> str:
    """The user behind this process, for people: "root (uid 0, sudo of anna) on host1".

    The name that sudo gives is not proved.
    """
    uid, name = os.getuid(), "unknown"
    with suppress(KeyError):
        name = pwd.getpwuid(uid).pw_name
    sudo = f", sudo of {os.environ['SUDO_USER']}" if "SUDO_USER" in os.environ else ""
    return f"{name} (uid {uid}{sudo}) on {os.uname().nodename}"


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def busy_seconds(thread: int | None) -> float:
    """How long a thread of this process has run, or has waited for a processor.

    The rest of its time it waited for something else. Raises OSError if it has ended, or if this
    kernel does not tell.
    """
    ran, waited, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text("ascii").split()
    return (int(ran) + int(waited)) / 1e9


def allow_open_files(count: int) -> None:
    """Raise the soft limit of open files to `count`, or to the hard limit if that is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_open_files() -> int:
    """How many files this process may have open: the soft limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def prioritize(nice: int, io_class: str, pid: int = 0) -> None:
    """Set the priority of a process, or of this thread (0) and those that it starts later.

    `nice` is 0 to 19; `io_class` "none" (as it is), "best-effort" or "idle". The disk gets the
    lowest level of a class of ioprio_set(2), whose errors are ignored. Raises OSError if the
    process has ended, or has less priority already.
    """
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    number = _IOPRIO_SET.get(platform.machine())
    if number and io_class in _IO_CLASSES:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(ctypes.c_long(number), 1, pid, _IO_CLASSES[io_class])


@dataclass(frozen=True, slots=True)
class Program:
    """A command to run, its input and time limit; `environment` is added to ours."""

    command: Sequence[str]
    environment: Mapping[str, str]
    stdin: bytes
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: `code` is its exit code, -n for signal n, None for its time limit.

    `output` has the last 64 KiB of its stderr and stdout, or of stderr only if `stdout` is used.
    `is_held`: a process that it left in the background has its stdout open.
    """

    code: int | None
    output: str
    stdout: bytes = b""
    is_held: bool = False


def run(program: Program, guard: Guard | None = None, *, limit: int = 0) -> Outcome:
    """Run a program in a session of its own, and wait until it ends.

    With `limit`, Outcome.stdout has the first `limit` + 1 bytes that it wrote to stdout until it
    ended; they are complete only if it ended in time and there are no more than `limit`. The
    program then gets SIGTERM if we are killed. Do not use `limit` together with `guard`.

    At the time limit, and if an exception such as CancelledError ends the wait, the process group
    gets SIGTERM, and SIGKILL 5 seconds later. If the program ends by itself, processes that it
    left in the background continue; we do not wait for them, and they may write more output.

    A signal that tells this process to stop ends the wait in any thread. A program without `guard`
    that runs in clean-up gets as much time as `signals.allowed` says.

    A program that cannot be started has exit code 126 or 127, as in a shell; so has one that root
    refuses because others may write it. If we are killed, `guard` kills its process group.
    """
    output, ended = bytearray(), Event()
    if refusal := others_may_write_program(program.command[0]):
        return Outcome(126, f"refused: {refusal}")
    command = (*(_DIES_WITH_US if limit else _TELLS_GUARD), *program.command)
    pipe = PIPE if limit else guard.pipe if guard else DEVNULL
    with ExitStack() as stack:
        try:
            with shielded():
                child = _spawn(command, program.environment, pipe, PIPE)
                stack.callback(_end, child, guard)
                stderr_reader = _attend(child, program.stdin, output)
                stdout_reader = _StdoutReader(child.stdout, limit + 1, ended)
                stdout_reader.start()
        # No memory, no thread, a NUL byte in an argument.
        except (OSError, RuntimeError, ValueError) as error:
            return Outcome(127, str(error))
        code = _wait(child, program.timeout_seconds, is_guarded=guard is not None)
    ended.set()
    stderr_reader.join(0.5)  # returns at once unless a background process has stderr open
    stdout_reader.complete.wait()
    said = output.decode(errors="replace")
    return Outcome(code, said, bytes(stdout_reader.kept), stdout_reader.is_held)


def _wait(child: Popen[bytes], seconds: float, *, is_guarded: bool) -> int | None:
    """The exit code of a program; None if it takes longer than it may."""
    is_cleanup, deadline = signals.is_stopping(), time.monotonic() + seconds
    while True:
        if not is_guarded:
            deadline = min(deadline, time.monotonic() + signals.allowed(seconds))
            if not is_cleanup and current_thread() is not main_thread():  # no signal raises here
                signals.obey()
        left = max(0, deadline - time.monotonic())
        try:
            return child.wait(min(left, _LOOK_SECONDS))
        except TimeoutExpired:
            if not left:
                return None


# The shell writes its process id to the guard and then becomes the program, so the guard knows
# every program that runs. If the guard is gone, SIGPIPE ends only the subshell.
_TELLS_GUARD = ("/bin/sh", "-c", '(echo $$); exec >&2; exec "$@"', "sh")
# The kernel sends the child SIGTERM when we die (PR_SET_PDEATHSIG).
_DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM", "--")


def _spawn(
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
    """End a program's process group, unless the program has ended; then tell the guard.

    Gives up after 5 seconds for each signal: we may lack the permission to kill it.
    """
    with shielded():
        if child.returncode is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, number)
                with suppress(TimeoutExpired):
                    child.wait(_GRACE_SECONDS)
        if guard:
            guard.tell("")


def _attend(child: Popen[bytes], data: bytes | None, kept: bytearray) -> Thread:
    """Have threads feed a program, and keep the end of its stderr in `kept`; return the latter.

    Without `data` its stdin stays open.
    """
    if data is not None:
        Thread(target=_feed, args=(child.stdin, data), daemon=True).start()
    reader = Thread(target=_keep_end, args=(child.stderr, kept), daemon=True)
    reader.start()
    return reader


def _feed(pipe: IO[bytes], data: bytes) -> None:
    """Write all of `data` to a program's stdin, and close it."""
    with suppress(BrokenPipeError), pipe:  # the program need not read it
        pipe.write(data)


class _StdoutReader(Thread):
    """Keeps the first `limit` bytes that a program writes to `pipe` until it has `ended`.

    `complete` is set then. Reads on: SIGPIPE would stop what it left in the background.
    """

    def __init__(self, pipe: IO[bytes] | None, limit: int, ended: Event) -> None:
        super().__init__(daemon=True)
        self.kept, self.complete, self.is_held = bytearray(), Event(), False
        self._pipe, self._limit, self._ended = pipe, limit, ended

    def run(self) -> None:
        if not self._pipe:
            self.complete.set()
            return
        with self._pipe as pipe:
            while self._has_more(pipe):
                more = pipe.read(_KEPT)
                if not more:
                    break
                self.kept += more[: self._limit - len(self.kept)]
            else:
                self.is_held = True
            self.complete.set()
            while self.is_held and pipe.read(_KEPT):
                pass

    def _has_more(self, pipe: IO[bytes]) -> bool:
        """Whether something can be read, or the pipe has ended. Waits for that."""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while True:
            has_ended = self._ended.is_set()  # before the look: all that it wrote is there then
            is_ready = bool(poll.poll(0 if has_ended else 100))
            if has_ended:
                return is_ready and len(self.kept) < self._limit
            if is_ready:
                return True


def _keep_end(pipe: IO[bytes], kept: bytearray) -> None:
    """Read all of `pipe`, and keep the end in `kept`.

    Reads on after the program has ended: SIGPIPE would stop its background processes.
    """
    with pipe:
        while more := pipe.read(_KEPT):
            kept += more
            del kept[:-_KEPT]


@dataclass(frozen=True, slots=True)
class RunningProgram:
    """A program that runs during the body of `serving`."""

    _popen: Popen[bytes]
    _reader: Thread
    _output: bytearray

    def has_ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._popen.poll() is not None

    def said(self) -> str:
        """The last 64 KiB of its stderr so far; complete once it has ended."""
        if self.has_ended():
            self._reader.join(0.5)
        return self._output.decode(errors="replace")


@contextmanager
def serving(command: Sequence[str]) -> Iterator[RunningProgram]:
    """Run a program during the body, and end it afterwards.

    If we are killed its process group gets SIGTERM each second, and SIGKILL after 5 seconds.

    Raises OSError if no process can be started. A missing program counts as one that has ended.
    """
    output = bytearray()
    script = resources.files("backy.system").joinpath("serving.sh").read_text()
    with ExitStack() as stack:
        with shielded():
            child = _spawn(("/bin/sh", "-c", script, "sh", *command), {}, DEVNULL, PIPE)
            stack.enter_context(child.stdin or nullcontext())
            stderr_reader = _attend(child, None, output)
            stack.callback(stderr_reader.join, 0.5)
            stack.callback(_end, child, None)
        yield RunningProgram(child, stderr_reader, output)


@dataclass(frozen=True, slots=True)
class Guard:
    """Our end of the pipe to guard.sh; see `guarding`."""

    pipe: IO[bytes]

    def tell(self, line: str) -> None:
        """Send the process group to kill if we die ("": none), or "done"."""
        with suppress(BrokenPipeError):  # somebody killed the guard
            self.pipe.write(f"{line}\n".encode())

    def disarm(self) -> None:
        """Make sure that the guard runs nothing when we end."""
        self.tell("done")


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
        + f" timeout -k {_GRACE_SECONDS} {program.timeout_seconds} {shlex.join(program.command)}"
        for program in programs
        if not others_may_write_program(program.command[0])
    ]
    script = resources.files("backy.system").joinpath("guard.sh").read_text()
    with ExitStack() as stack:
        with shielded():
            command = ("/bin/sh", "-c", script, "guard", *lines)
            child = stack.enter_context(_spawn(command, {}, PIPE, DEVNULL))
        assert child.stdin and child.stdout  # noqa: PT018 - this is no test
        child.stdout.readline()  # from here on it ignores the signals
        guard = Guard(child.stdin)
        guard.tell("")
        yield guard
