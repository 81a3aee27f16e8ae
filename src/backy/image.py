"""Images and drafts: the shape that sources, stores and targets share, and the one copy loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

from backy import disk, process
from backy.extent import Extent, Kind, align, chop
from backy.units import MiB

Step = TypeVar("Step")
_BUFFERS = 32 * MiB  # bytes that all workers' buffers may take together


class Watcher(Protocol):
    """Hears how far a verb is. `advance` is called from any thread, often, and must be quick."""

    def begin(self, total: int) -> None:
        """So many bytes of images lie ahead."""

    def advance(self, length: int) -> None:
        """So many more are dealt with: read, skipped or known."""

    def warn(self, text: str) -> None:
        """Something that the user should know."""


class Silence:
    """A Watcher that does nothing."""

    def begin(self, total: int) -> None:
        """See Watcher."""

    def advance(self, length: int) -> None:
        """See Watcher."""

    def warn(self, text: str) -> None:
        """See Watcher."""


SILENCE = Silence()


class Image(Protocol):
    """The readable content of one disk, of a snapshot or of a revision alike."""

    @property
    def size(self) -> int:
        """Bytes; never 0."""

    def extents(self) -> Iterator[Extent]:
        """Cover [0, size), ascending and without gaps; SAME means "as in the parent"."""

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer` with the bytes from `offset` on; safe to call from several threads.

        Raises SourceError, StoreError or DamagedError where it cannot; `buffer` is undefined then.
        """


class Draft(Protocol):
    """An image while it is written. It starts as its parent, so what is the same costs nothing."""

    @property
    def block_size(self) -> int:
        """Bytes. Writes start at a multiple of it and end at one, or where the image ends."""

    def write(self, offset: int, data: memoryview) -> None:
        """Take these bytes; `data` may be reused on return. Safe to call from several threads."""

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeroes, at a cost that follows what is not yet zero."""


def is_zero(data: memoryview) -> bool:
    """Whether all bytes are zero; stops at the first that is not."""
    # bytearray's comparison is memcmp; memoryview's goes item by item and is 100 times slower.
    return _zeroes(len(data)) == data


@lru_cache(maxsize=8)
def _zeroes(length: int) -> bytearray:
    return bytearray(length)


def copy(
    image: Image, draft: Draft, *, watcher: Watcher = SILENCE, workers: int | None = None
) -> int:
    """Write to `draft` what `image` does not report as unchanged; give the bytes that were read.

    Reads and writes one block (or 1 MiB, where blocks are smaller) at a time, as many at once
    as there are `workers`: the processors and two more by default, so that reads, hashes and
    writes overlap. All buffers together take at most 32 MiB, or one block each. With one worker
    everything happens in ascending order.

    Raises what `image` and `draft` raise. The draft is of no use then; begin with a new one.
    """
    block = draft.block_size
    step = max(block, MiB // block * block)
    lock = threading.Lock()
    read = 0

    def take(extent: Extent, buffer: memoryview) -> None:
        nonlocal read
        if extent.kind is Kind.ZERO:
            draft.zero(extent.start, extent.length)
        elif extent.kind is Kind.DATA:
            data = buffer[: extent.length]
            image.readinto(extent.start, data)
            for start in range(0, extent.length, block):
                piece = data[start : start + block]
                if is_zero(piece):
                    draft.zero(extent.start + start, len(piece))
                else:
                    draft.write(extent.start + start, piece)
            with lock:
                read += extent.length
        watcher.advance(extent.length)

    in_parallel(chop(align(image.extents(), block, image.size), step), take, step, workers)
    return read


def in_parallel(
    steps: Iterator[Step],
    take: Callable[[Step, memoryview], None],
    buffer_size: int,
    workers: int | None = None,
) -> None:
    """Call `take(step, buffer)` for each step, from a bounded pool of threads.

    Each thread has one buffer of `buffer_size` bytes and fetches its next step when it is done
    with the last: nothing queues up. The first exception stops all threads at their next step
    and is raised here; so does a CancelledError that a signal raises while this waits.
    """
    wanted = workers or min(8, process.processors() + 2)
    pool = _Pool(steps, take, buffer_size)
    if wanted == 1:
        # In this thread, so that a signal can interrupt a write to a pipe that nobody reads.
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
        with process.shielded():  # a signal within `start` would leave a thread that never ends
            for thread in threads:
                thread.start()
        for event in ended:
            while not event.wait(0.1):  # a wait without end is deaf to signals in some Pythons
                pass
    finally:
        pool.stopped = True
        for thread, event in zip(threads, ended, strict=True):
            if thread.ident:
                event.wait()  # a `join` that a signal interrupted takes its thread for ended
                thread.join()
    if pool.error:
        raise pool.error


class _Pool(Generic[Step]):
    """What the threads of one `in_parallel` share."""

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
            buffer = disk.buffer(self._buffer_size)
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
