"""Do steps in threads, each with a buffer of its own: at once, or in order with read-ahead."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from itertools import count
from typing import Generic, TypeVar

from backy.system import files, process, signals
from backy.units import MiB

Step = TypeVar("Step")
Take = Callable[[Step, memoryview], None]
_BUFFERS = 32 * MiB  # bytes of all buffers together, unless one alone is larger
_MOST = 24  # threads; each has buffers in the stores, too
_LOOK_SECONDS = 0.1
_MOSTLY = 0.5  # the share of a thread's time below which it mostly waits


def few() -> int:
    """Two more than processors, at most 8: enough where nothing has to be waited for long."""
    return min(8, process.processors() + 2)


def in_parallel(
    steps: Iterator[Step], take: Take[Step], buffer_size: int, workers: int | None = None
) -> None:
    """Call `take(step, buffer)` for each step, from `workers` threads at once.

    By default it begins with `few`, and starts more, up to 24, while they mostly wait for a medium
    or a server. There are fewer if their buffers of `buffer_size` bytes would take more than
    32 MiB, or if few files may be open. Each thread fetches a step when it has finished the last
    one, so nothing queues up.

    The first exception stops all threads before their next step, and is raised here. So does a
    CancelledError that a signal raises meanwhile. No thread is left on return: it could use a
    descriptor that was closed and is now another file. If a thread cannot be stopped, since it is
    in a call to a file system that hangs, `signals.ends_in_time` ends the process.
    """
    pool = _Pool(steps, take, buffer_size, workers or _MOST)
    with pool:
        pool.start(workers or few())
        for ended in pool.ended:  # more may come meanwhile
            while not ended.wait(_LOOK_SECONDS):
                pool.grow()


def in_order(steps: Iterator[Step], fetch: Take[Step], take: Take[Step], buffer_size: int) -> None:
    """Call `take(step, buffer)` for each step in order, in this thread; see `in_parallel`.

    Before it, other threads called `fetch(step, buffer)`, for the next steps meanwhile. So a signal
    can interrupt what `take` waits for, such as a pipe without a reader.
    """
    filled: dict[int, tuple[Step, memoryview, threading.Event]] = {}

    def hand_over(numbered: tuple[int, Step], buffer: memoryview) -> None:
        number, step = numbered
        fetch(step, buffer)
        taken = threading.Event()
        filled[number] = step, buffer, taken
        arrived.set()
        while not taken.wait(_LOOK_SECONDS) and not pool.stopped:
            pass

    arrived = threading.Event()
    pool = _Pool(zip(count(), steps), hand_over, buffer_size, _MOST)
    with pool:
        pool.start(_MOST)
        for number in count():
            while number not in filled:
                if all(ended.is_set() for ended in pool.ended):
                    return
                arrived.wait(_LOOK_SECONDS)
                arrived.clear()
            step, buffer, taken = filled.pop(number)
            take(step, buffer)
            taken.set()


class _Pool(Generic[Step]):
    """Threads that take steps; a context manager that stops them. Raises the first exception."""

    def __init__(self, steps: Iterator[Step], take: Take[Step], size: int, most: int) -> None:
        self._steps = steps
        self._take = take
        self._size = size
        # Each opens up to four files at once, beside some ten of the command.
        self._most = max(1, min(most, _BUFFERS // size, process.most_open_files() // 10))
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._busy, self._looked_at = 0.0, time.monotonic()
        self._error: BaseException | None = None
        self.ended: list[threading.Event] = []
        self.stopped = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stopped = True
        # After a first signal others are ignored.
        with nullcontext() if signals.is_stopping() else signals.shielded():
            for thread, ended in zip(self._threads, self.ended, strict=True):
                # After a signal, `join` alone may return before the thread has ended.
                while not ended.wait(_LOOK_SECONDS):
                    pass
                thread.join()
        if self._error and not kind:
            raise self._error

    def start(self, wanted: int) -> None:
        """Have so many threads, or as many as there may be."""
        with signals.shielded():  # a signal during `start` would leave a thread that never ends
            for number in range(len(self._threads), min(wanted, self._most)):
                ended = threading.Event()
                thread = threading.Thread(
                    target=self._work, args=(ended,), name=f"worker-{number}", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # a limit of the service or of the user
                    if not number:
                        raise
                    self._most = number
                    return
                self.ended.append(ended)
                self._threads.append(thread)

    def grow(self) -> None:
        """If they mostly wait, start as many threads as keep the processors busy.

        At most twice as many as there are. A thread that waits for a processor does not count as
        waiting: more of them would not help.
        """
        threads = len(self._threads)
        if threads < self._most:
            with suppress(OSError):  # a thread has ended, or the kernel does not tell
                busy = sum(process.busy_seconds(thread.native_id) for thread in self._threads)
                now = time.monotonic()
                share = max((busy - self._busy) / (now - self._looked_at) / threads, 0.01)
                self._busy, self._looked_at = busy, now
                if share < _MOSTLY:
                    self.start(min(int(process.processors() / share) + 2, 2 * threads))

    def _work(self, ended: threading.Event) -> None:
        try:
            buffer = files.buffer(self._size)
            while not self.stopped and (step := self._next()):
                self._take(step, buffer)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = self._error or error
            self.stopped = True
        finally:
            ended.set()

    def _next(self) -> Step | None:
        with self._lock:
            return next(self._steps, None)
