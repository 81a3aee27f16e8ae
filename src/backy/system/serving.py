"""Programs that serve us while something else is done."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from subprocess import DEVNULL, PIPE, Popen
from threading import Thread

from backy.system.process import DIES_WITH_US, attend, end, spawn
from backy.system.signals import shielded


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
            child = spawn((*DIES_WITH_US, *command), {}, DEVNULL, PIPE)
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
            stack.callback(end, child, None)
            stderr_reader = attend(child, b"", output)
            stack.callback(stderr_reader.join, 0.5)
        yield RunningProgram(child, stderr_reader, output)
