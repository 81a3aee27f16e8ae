"""Run one command and say what it cost.

Every command runs in a process group of its own. Whatever ends the call early (Ctrl-C, the time
limit, a bug) stops that group and nothing else, so no command outlives the benchmark.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

COMMAND_LIMIT_SECONDS = 3600.0
STOP_GRACE_SECONDS = 10.0
ERROR_TAIL_CHARACTERS = 600


class BenchmarkError(Exception):
    """Something that keeps a row, or all of the benchmark, from being measured."""


@dataclass(frozen=True, slots=True)
class Run:
    """Cost of one command.

    `peak_rss_bytes` is that of the largest single process the command consisted of. It is never
    below what the benchmark itself holds (about 20 MiB): Linux counts the memory from before exec.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


def timed(
    command: Sequence[str],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    sync: bool = True,
) -> Run:
    """Run `command` and measure it; with `sync`, until everything it wrote is on the disk.

    What was dirty before is written out before the clock starts. The output of the command is
    added to `log`. Raises BenchmarkError where the command fails or reaches the time limit.
    """
    if sync:
        os.sync()
    start = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        begin = time.perf_counter()
        with _running(command, output=output.fileno(), cwd=cwd, env=env) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if sync:
            os.sync()
        seconds = time.perf_counter() - begin
    if process.returncode:
        raise BenchmarkError(_failure(command, process.returncode, _tail(log, start)))
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def output_of(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Standard output of `command`, not timed.

    Raises BenchmarkError where the command fails or is not there.
    """
    try:
        with _running(command, output=subprocess.PIPE, cwd=cwd, env=env) as process:
            text, _ = process.communicate()
    except FileNotFoundError as error:
        raise BenchmarkError(f"{command[0]}: not installed") from error
    decoded = text.decode(errors="replace")
    if process.returncode:
        raise BenchmarkError(_failure(command, process.returncode, decoded))
    return decoded


@contextmanager
def _running(
    command: Sequence[str], *, output: int, cwd: Path | None, env: Mapping[str, str] | None
) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        start_new_session=True,
    )
    limit = threading.Timer(COMMAND_LIMIT_SECONDS, _signal, (process, signal.SIGKILL))
    limit.daemon = True
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        _signal(process, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_GRACE_SECONDS)


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    # The group has the id of its first process, which is ours until it has been waited for.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _failure(command: Sequence[str], code: int, text: str) -> str:
    reason = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{Path(command[0]).name}: {reason}: {text.strip()[-ERROR_TAIL_CHARACTERS:]}"


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")
