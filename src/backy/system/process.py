"""Programs: start them, read their output, and make sure that they end."""

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

from backy.system.permissions import others_may_write_program
from backy.system.signals import shielded

GRACE_SECONDS = 5  # seconds from SIGTERM to SIGKILL
_KEPT = 64 * 1024  # bytes of a program's output: the last ones, which say why it failed


def identity() -> str:
    """The name of this process in a lock file, for people who wait: "backy[4711]"."""
    return f"backy[{os.getpid()}]"


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def allow_open_files(count: int) -> None:
    """Raise the soft limit of open files to `count`, or to the hard limit if that is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def be_idle() -> None:
    """Give this process the lowest priority for processors and disks (ioprio_set(2)).

    Threads that are started later inherit it. Errors of ioprio_set(2) are ignored.
    """
    os.nice(19)
    set_io_class(0, "idle")


def set_io_class(pid: int, name: str) -> None:
    """Put a process, or this thread (0), at the lowest level of a class of ioprio_set(2)."""
    if number := _IOPRIO_SET.get(platform.machine()):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(ctypes.c_long(number), 1, pid, _IO_CLASSES[name])


_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IO_CLASSES = {"best-effort": 2 << 13 | 7, "idle": 3 << 13}  # linux/ioprio.h


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
    """

    code: int | None
    output: str
    stdout: bytes = b""


def run(program: Program, guard: Guard | None = None, *, limit: int = 0) -> Outcome:
    """Run a program in a session of its own, and wait until it ends.

    With `limit`, Outcome.stdout has the first `limit` + 1 bytes of its stdout. They are complete
    only if the program ended in time and there are no more than `limit`. The program then gets
    SIGTERM if we are killed. Do not use `limit` together with `guard`.

    At the time limit, and if an exception such as CancelledError ends the wait, the process group
    gets SIGTERM, and SIGKILL 5 seconds later. If the program ends by itself, processes that it
    left in the background continue; we do not wait for them, and they may write more output.

    A program that cannot be started has exit code 126 or 127, as in a shell; so has one that root
    refuses because others may write it. If we are killed, `guard` kills its process group.
    """
    output, stdout = bytearray(), bytearray()
    code = None
    if refusal := others_may_write_program(program.command[0]):
        return Outcome(126, f"refused: {refusal}")
    deadline = time.monotonic() + program.timeout_seconds
    command = (*(_DIES_WITH_US if limit else _TELLS_GUARD), *program.command)
    pipe = PIPE if limit else guard.pipe if guard else DEVNULL
    with ExitStack() as stack:
        try:
            with shielded():
                child = spawn(command, program.environment, pipe, PIPE)
                stack.callback(_end, child, guard)
                Thread(target=_feed, args=(child.stdin, program.stdin), daemon=True).start()
                stderr_reader = Thread(target=_keep_end, args=(child.stderr, output), daemon=True)
                stderr_reader.start()
                stdout_reader = Thread(
                    target=_keep_start, args=(child.stdout, stdout, limit + 1), daemon=True
                )
                stdout_reader.start()
        except (
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # no memory, no thread, a NUL byte in an argument
            return Outcome(127, str(error))
        with suppress(TimeoutExpired):
            code = child.wait(program.timeout_seconds)
    stderr_reader.join(0.5)  # returns at once unless a background process has stderr open
    stdout_reader.join(max(0, deadline - time.monotonic()))
    code = None if stdout_reader.is_alive() else code
    return Outcome(code, output.decode(errors="replace"), bytes(stdout))


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
    """Run a program during the body, and end it afterwards. It gets SIGTERM if we are killed.

    Raises OSError if no process can be started. A missing program counts as one that has ended.
    """
    output, started = bytearray(), SimpleQueue[Popen[bytes] | Exception]()

    def start_and_wait() -> None:
        # PR_SET_PDEATHSIG refers to the thread that starts the child, so that thread must stay.
        try:
            child = spawn((*_DIES_WITH_US, *command), {}, DEVNULL, PIPE)
        except Exception as error:  # noqa: BLE001 - raised again in the calling thread
            started.put(error)
        else:
            started.put(child)
            child.wait()

    with ExitStack() as stack:
        with shielded():
            Thread(target=start_and_wait, daemon=True).start()
            child = started.get()
            if isinstance(child, Exception):
                raise child
            stack.callback(_end, child, None)
            Thread(target=_feed, args=(child.stdin, b""), daemon=True).start()
            stderr_reader = Thread(target=_keep_end, args=(child.stderr, output), daemon=True)
            stderr_reader.start()
            stack.callback(stderr_reader.join, 0.5)
        yield RunningProgram(child, stderr_reader, output)


# The shell writes its process id to the guard and then becomes the program, so the guard knows
# every program that runs. If the guard is gone, SIGPIPE ends only the subshell.
_TELLS_GUARD = ("/bin/sh", "-c", '(echo $$); exec >&2; exec "$@"', "sh")
# The kernel sends the child SIGTERM when we die (PR_SET_PDEATHSIG).
_DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM", "--")


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
    """End a program's process group, unless the program has ended; then tell the guard.

    Gives up after 5 seconds for each signal: we may lack the permission to kill it.
    """
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
    with suppress(BrokenPipeError), pipe:  # the program need not read it
        pipe.write(data)


def _keep_start(pipe: IO[bytes] | None, kept: bytearray, limit: int) -> None:
    """Read all of `pipe` into `kept`, but no more than `limit` bytes; drop the rest."""
    if pipe:
        with pipe:
            while more := pipe.read(_KEPT):
                kept += more[: limit - len(kept)]


def _keep_end(pipe: IO[bytes], kept: bytearray) -> None:
    """Read all of `pipe`, and keep the end in `kept`.

    Reads on after the program has ended: SIGPIPE would stop its background processes.
    """
    with pipe:
        while more := pipe.read(_KEPT):
            kept += more
            del kept[:-_KEPT]


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
