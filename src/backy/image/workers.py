"""Do steps in a few threads, each with a buffer of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from backy.system import files, process, signals
from backy.units import MiB

Step = TypeVar("Step")
_BUFFERS = 32 * MiB  # bytes of all buffers together, unless one alone is larger


def in_parallel(
    steps: Iterator[Step],
    take: Callable[[Step, memoryview], None],
    buffer_size: int,
    workers: int | None = None,
) -> None:
    """Call `take(step, buffer)` for each step, from `workers` threads at once.

    By default there are two more threads than processors, at most 8; there are fewer if their
    buffers of `buffer_size` bytes would take more than 32 MiB, or if few files may be open. Each
    thread fetches a step when it has finished the last one, so nothing queues up.

    The first exception stops all threads before their next step, and is raised here. So does a
    CancelledError that a signal raises meanwhile. No thread is left on return: it could use a
    descriptor that was closed and is now another file. If a thread cannot be stopped, since it is
    in a call to a file system that hangs, `last_resort` ends the process.
    """
    # Each opens up to four files at once, beside some ten of the command.
    allowed = max(1, process.most_open_files() // 10)
    wanted = workers or min(8, process.processors() + 2, allowed)
    pool = _Pool(steps, take, buffer_size)
    if wanted == 1:
        # In this thread, so that a signal can interrupt a write to a pipe without a reader.
        pool.work(threading.Event())
        if pool.error:
            raise pool.error
        return
    ended = [threading.Event() for _ in range(max(1, min(wanted, _BUFFERS // buffer_size)))]
    threads = [
        threading.Thread(target=pool.work, args=(event,), name=f"worker-{number}", daemon=True)
        for number, event in enumerate(ended)
    ]
    try:
        with signals.shielded():  # a signal during `start` would leave a thread that never ends
            for thread in threads:
                thread.start()
        for event in ended:
            while not event.wait(0.1):  # some Pythons ignore signals in a wait without a timeout
                pass
    finally:
        pool.stopped = True
        for thread, event in zip(threads, ended, strict=True):
            if thread.ident:
                event.wait()  # after a signal, `join` alone may return before the thread has ended
                thread.join()
    if pool.error:
        raise pool.error


class _Pool(Generic[Step]):
    """What the threads of one call of `in_parallel` share."""

    def __init__(
        self, steps: Iterator[Step], take: Callable[[Step, memoryview], None], buffer_size: int
    ) -> None:
        self._steps = steps
        self._take = take
        self._buffer_size = buffer_size
        self._lock = threading.Lock()
        self.error: BaseException | None = None
        self.stopped = False

    def work(self, ended: threading.Event) -> None:
        try:
            buffer = files.buffer(self._buffer_size)
            while not self.stopped and (step := self._next()):
                self._take(step, buffer)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self.error = self.error or error
            self.stopped = True
        finally:
            ended.set()

    def _next(self) -> Step | None:
        with self._lock:
            return next(self._steps, None)
