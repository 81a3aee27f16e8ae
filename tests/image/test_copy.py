"""One loop copies any image into any draft, in threads that are bounded and outlive nothing."""

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.errors import CancelledError, SourceError, StoreError
from backy.image.copy import copy, is_zero
from backy.image.progress import Silence
from backy.image.workers import in_parallel
from backy.model.extent import Extent, Kind
from backy.system.signals import cancellable
from backy.units import KiB, MiB

DATA, ZERO, SAME = Kind.DATA, Kind.ZERO, Kind.SAME
PATIENCE = 60  # seconds after which a test that hangs fails


@dataclass
class MemoryImage:
    """Bytes, and what is said of them; to read what is not DATA is a failure."""

    content: bytes
    parts: list[Extent]
    failure: Exception | None = None

    @property
    def size(self) -> int:
        return len(self.content)

    def extents(self) -> Iterator[Extent]:
        yield from self.parts

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if self.failure:
            raise self.failure
        buffer[:] = self.content[offset : offset + len(buffer)]


@dataclass
class MemoryDraft:
    """Bytes that begin as the parent's, and what was done to them in which order."""

    content: bytearray
    block_size: int
    calls: list[tuple[str, int, int]] = field(default_factory=list)
    failure: Exception | None = None

    def write(self, offset: int, data: memoryview) -> None:
        self._note("write", offset, len(data))
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self._note("zero", offset, length)
        self.content[offset : offset + length] = bytes(length)

    def _note(self, call: str, offset: int, length: int) -> None:
        if self.failure:
            raise self.failure
        self.calls.append((call, offset, length))


@dataclass
class Counter(Silence):
    """A Watcher that keeps what it is told; any thread may tell it."""

    told: list[int] = field(default_factory=list)

    def advance(self, length: int) -> None:
        self.told.append(length)


def image_of(*parts: tuple[Kind, bytes]) -> MemoryImage:
    """An image that consists of these parts."""
    extents, start = [], 0
    for kind, content in parts:
        extents.append(Extent(start, len(content), kind))
        start += len(content)
    return MemoryImage(b"".join(content for _, content in parts), extents)


def steps(count: int) -> Iterator[Extent]:
    return (Extent(number, 1, DATA) for number in range(count))


def threads_of_pools() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("worker-")]


contents = st.one_of(st.binary(min_size=1, max_size=40), st.integers(1, 40).map(bytes))
parts_of_image = st.lists(
    st.one_of(
        st.tuples(st.just(DATA), contents),
        st.tuples(st.just(ZERO), st.integers(1, 60).map(bytes)),
        st.tuples(st.just(SAME), contents),
    ),
    min_size=1,
    max_size=8,
)


@given(parts=parts_of_image, block=st.integers(1, 48), workers=st.integers(1, 4))
def test_a_draft_that_began_as_the_parent_becomes_the_image(
    parts: list[tuple[Kind, bytes]], block: int, workers: int
) -> None:
    image = image_of(*parts)
    parent = b"".join(text if kind is SAME else b"\xff" * len(text) for kind, text in parts)
    draft = MemoryDraft(bytearray(parent), block)
    counter = Counter()
    read = copy(image, draft, watcher=counter, workers=workers)
    assert draft.content == image.content
    assert sum(counter.told) == image.size
    assert sum(len(text) for kind, text in parts if kind is DATA) <= read <= image.size
    for _, offset, length in draft.calls:
        assert offset % block == 0
        assert (offset + length) % block == 0 or offset + length == image.size


def test_what_is_the_same_as_in_the_parent_is_neither_read_nor_written() -> None:
    image = image_of((SAME, b"a" * 64), (ZERO, bytes(64)), (SAME, b"b" * 30))
    image.failure = AssertionError("nothing of this image is to be read")
    draft = MemoryDraft(bytearray(image.content), 16)
    assert copy(image, draft) == 0
    assert draft.calls == [("zero", 64, 64)]


def test_data_that_turns_out_to_be_zero_is_not_written() -> None:
    image = image_of((DATA, b"a" * 16 + bytes(32) + b"b" * 8))
    draft = MemoryDraft(bytearray(56), 16)
    assert copy(image, draft) == 56
    assert sorted(draft.calls) == [
        ("write", 0, 16),
        ("write", 48, 8),
        ("zero", 16, 16),
        ("zero", 32, 16),
    ]


def test_one_byte_at_the_end_of_a_block_makes_it_data() -> None:
    image = image_of((DATA, bytes(15) + b"a"))
    draft = MemoryDraft(bytearray(16), 16)
    copy(image, draft)
    assert draft.calls == [("write", 0, 16)]


@pytest.mark.parametrize(
    ("block", "step"),
    [
        pytest.param(64 * KiB, MiB, id="small-blocks-are-read-a-mebibyte-at-a-time"),
        pytest.param(192 * KiB, 960 * KiB, id="a-step-is-whole-blocks"),
        pytest.param(2 * MiB, 2 * MiB, id="a-large-block-at-a-time"),
    ],
)
def test_reads_follow_the_block_size(block: int, step: int) -> None:
    reads: list[tuple[int, int]] = []

    class Image(MemoryImage):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            reads.append((offset, len(buffer)))
            super().readinto(offset, buffer)

    size = 2 * step + 5
    image = Image(b"x" * size, [Extent(0, size, DATA)])
    copy(image, MemoryDraft(bytearray(size), block), workers=1)
    assert sorted(reads) == [(0, step), (step, step), (2 * step, 5)]


def test_with_one_worker_everything_is_written_in_ascending_order() -> None:
    texts = [b"x" * 16, bytes(16), b"y" * 16, bytes(16)] * 16
    image = image_of(*((DATA if any(text) else ZERO, text) for text in texts))
    draft = MemoryDraft(bytearray(image.size), 16)
    copy(image, draft, workers=1)
    offsets = [offset for _, offset, _ in draft.calls]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(texts)


def test_one_worker_writes_in_the_thread_of_the_caller_while_others_read_ahead() -> None:
    """So that a signal interrupts a write to a pipe, and latency does not add up."""
    together = threading.Barrier(16)
    writers: set[threading.Thread] = set()

    class Image(MemoryImage):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            together.wait(PATIENCE)  # passes only if so many are read at once
            super().readinto(offset, buffer)

    class Draft(MemoryDraft):
        def write(self, offset: int, data: memoryview) -> None:
            writers.add(threading.current_thread())
            super().write(offset, data)

    size = 32 * MiB
    image = Image(b"x" * size, [Extent(0, size, DATA)])
    draft = Draft(bytearray(size), MiB)
    copy(image, draft, workers=1)
    assert draft.content == image.content
    assert writers == {threading.current_thread()}
    assert threads_of_pools() == []


@pytest.mark.parametrize("bad", [0, 5, 39])
def test_an_error_while_reading_ahead_reaches_the_caller(bad: int) -> None:
    class Image(MemoryImage):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            if offset == bad * MiB:
                raise SourceError("the source is broken")
            super().readinto(offset, buffer)

    size = 40 * MiB
    draft = MemoryDraft(bytearray(size), MiB)
    with pytest.raises(SourceError, match="the source is broken"):
        copy(Image(b"x" * size, [Extent(0, size, DATA)]), draft, workers=1)
    assert [offset for _, offset, _ in draft.calls] == [n * MiB for n in range(len(draft.calls))]
    assert len(draft.calls) <= bad
    assert threads_of_pools() == []


def test_a_signal_interrupts_a_write_in_order_that_would_take_for_ever() -> None:
    class Draft(MemoryDraft):
        def write(self, offset: int, data: memoryview) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(PATIENCE)

    size = 40 * MiB
    image = MemoryImage(b"x" * size, [Extent(0, size, DATA)])
    with pytest.raises(CancelledError, match="SIGTERM"), cancellable():
        copy(image, Draft(bytearray(size), MiB), workers=1)
    assert threads_of_pools() == []


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", [DATA, ZERO], ids=["data", "zero"])
def test_an_error_of_the_draft_reaches_the_caller(kind: Kind, workers: int) -> None:
    image = image_of((kind, (b"x" if kind is DATA else b"\0") * 64))
    draft = MemoryDraft(bytearray(64), 16, failure=StoreError("the store is broken"))
    with pytest.raises(StoreError, match="the store is broken"):
        copy(image, draft, workers=workers)


def test_an_error_of_the_image_reaches_the_caller_and_nothing_is_written() -> None:
    image = image_of((DATA, b"x" * 64))
    image.failure = SourceError("the source is broken")
    draft = MemoryDraft(bytearray(64), 16)
    with pytest.raises(SourceError, match="the source is broken"):
        copy(image, draft)
    assert draft.calls == []


def test_an_error_while_extents_are_listed_reaches_the_caller() -> None:
    class Image(MemoryImage):
        def extents(self) -> Iterator[Extent]:
            yield Extent(0, 16, DATA)
            raise SourceError("no more extents")

    with pytest.raises(SourceError, match="no more extents"):
        copy(Image(b"x" * 32, []), MemoryDraft(bytearray(32), 16))


@given(st.binary(max_size=5000), st.integers(0, 5000))
def test_zero_means_that_every_byte_is(content: bytes, length: int) -> None:
    assert is_zero(memoryview(content)) == (not any(content))
    assert is_zero(memoryview(bytes(length)))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_error_stops_all_threads_at_their_next_step(workers: int) -> None:
    def endless() -> Iterator[Extent]:
        while True:
            yield Extent(0, 1, DATA)

    begun: list[str] = []
    failed = threading.Event()

    def take(_step: Extent, _buffer: memoryview) -> None:
        begun.append(threading.current_thread().name)
        if failed.is_set() or len(begun) < 10:
            return
        failed.set()
        raise StoreError("the tenth step fails")

    with pytest.raises(StoreError, match="the tenth step fails"):
        in_parallel(endless(), take, 4096, workers)
    assert threads_of_pools() == []


def test_the_first_error_is_the_one_that_is_raised() -> None:
    together = threading.Barrier(2)
    second_may_fail = threading.Event()

    def take(step: Extent, _buffer: memoryview) -> None:
        together.wait(PATIENCE)
        if step.start == 0:
            raise StoreError("first")
        # The other thread has ended, and so has noted its error, when this one is the last.
        while len(threads_of_pools()) > 1:
            second_may_fail.wait(0.001)
        raise StoreError("second")

    with pytest.raises(StoreError, match="first"):
        in_parallel(steps(2), take, 4096, 2)


def test_a_bug_in_a_thread_is_raised_too() -> None:
    def take(_step: Extent, _buffer: memoryview) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_parallel(steps(3), take, 4096)


def test_no_memory_for_a_buffer_is_an_error_and_not_a_copy_of_nothing() -> None:
    taken: list[Extent] = []
    with pytest.raises((OSError, MemoryError)):
        in_parallel(steps(3), lambda step, _: taken.append(step), 1 << 60)
    assert taken == []


@pytest.mark.parametrize(
    ("buffer_size", "workers", "expected"),
    [
        pytest.param(4096, 3, 3, id="as-many-as-asked-for"),
        pytest.param(4096, 1, 1, id="one"),
        pytest.param(16 * MiB, 4, 2, id="no-more-than-32-MiB-hold"),
        pytest.param(20 * MiB, 4, 1, id="two-would-be-over-32-MiB"),
        pytest.param(64 * MiB, 4, 1, id="one-buffer-of-any-size"),
    ],
)
def test_buffers_are_bounded(buffer_size: int, workers: int, expected: int) -> None:
    together = threading.Barrier(expected)
    buffers: dict[str, memoryview] = {}

    def take(_step: Extent, buffer: memoryview) -> None:
        assert len(buffer) == buffer_size
        name = threading.current_thread().name
        assert buffers.setdefault(name, buffer) is buffer
        # Passes only if so many are here at once.
        together.wait(PATIENCE)

    in_parallel(steps(6), take, buffer_size, workers)
    assert len(buffers) == expected


def test_by_default_there_are_few_threads() -> None:
    names: set[str] = set()
    in_parallel(steps(500), lambda *_: names.add(threading.current_thread().name), 4096)
    assert 1 <= len(names) <= 8


def test_threads_that_mostly_wait_get_more_beside_them() -> None:
    most, waiting = 0, 0
    lock = threading.Lock()

    def take(_step: Extent, _buffer: memoryview) -> None:
        nonlocal most, waiting
        with lock:
            waiting += 1
            most = max(most, waiting)
        time.sleep(0.05)  # as a read from a slow medium
        with lock:
            waiting -= 1

    in_parallel(steps(1000), take, 4096)
    assert 16 <= most <= 24
    assert threads_of_pools() == []


def test_threads_that_compute_get_no_more_beside_them() -> None:
    names: set[str] = set()
    block = bytes(MiB)

    def take(_step: Extent, _buffer: memoryview) -> None:
        names.add(threading.current_thread().name)
        blake2b(block)

    in_parallel(steps(1000), take, 4096)
    assert len(names) < 16  # a machine that does much else can look like waiting for a moment


def test_nothing_queues_up() -> None:
    fetched, finished = 0, 0
    waiting: list[int] = []
    lock = threading.Lock()

    def counted() -> Iterator[Extent]:
        nonlocal fetched
        for step in steps(200):
            fetched += 1
            with lock:
                waiting.append(fetched - finished)
            yield step

    def take(_step: Extent, _buffer: memoryview) -> None:
        nonlocal finished
        with lock:
            finished += 1

    in_parallel(counted(), take, 4096, 3)
    assert finished == 200
    assert max(waiting) <= 3


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_every_step_is_taken_once(count: int) -> None:
    taken: list[int] = []
    in_parallel(steps(count), lambda step, _: taken.append(step.start), 4096, 4)
    assert sorted(taken) == list(range(count))
    assert threads_of_pools() == []


def test_a_cancel_ends_an_endless_pool() -> None:
    def endless() -> Iterator[Extent]:
        while True:
            yield Extent(0, 1, DATA)

    sent = threading.Event()

    def take(_step: Extent, _buffer: memoryview) -> None:
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(CancelledError, match="SIGTERM"), cancellable():
        in_parallel(endless(), take, 4096, 2)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_cancel_waits_for_the_step_that_each_thread_is_at(workers: int) -> None:
    """Else a thread would still write to files that the caller has closed by then."""
    begun, obeyed, finished = threading.Barrier(workers + 1), threading.Event(), []

    def take(step: Extent, _buffer: memoryview) -> None:
        begun.wait(PATIENCE)
        obeyed.wait(PATIENCE)
        # Long enough for a pool that does not wait to return before this; the thread that is
        # waited for first is the slowest.
        threading.Event().wait(0.5 / (step.start + 1))
        finished.append(step.start)

    def interrupt() -> None:
        begun.wait(PATIENCE)
        threading.Event().wait(0.2)  # the main thread waits for the others by now
        os.kill(os.getpid(), signal.SIGUSR1)

    def stop(_number: int, _frame: FrameType | None) -> None:
        obeyed.set()
        raise CancelledError("stopped")

    before = signal.signal(signal.SIGUSR1, stop)
    interrupter = threading.Thread(target=interrupt)
    try:
        interrupter.start()
        with pytest.raises(CancelledError, match="stopped"):
            in_parallel(steps(100), take, 4096, workers)
        in_time = sorted(finished)
    finally:
        signal.signal(signal.SIGUSR1, before)
        interrupter.join()
        while threads_of_pools():  # a thread that was left alone must not disturb the next test
            threading.Event().wait(0.01)
    assert in_time == list(range(workers))


@pytest.mark.parametrize(("files", "most"), [(5, 1), (20, 2), (30, 3)])
def test_few_files_that_may_be_open_mean_few_workers(files: int, most: int) -> None:
    seen = set()

    def take(_: int, _buffer: memoryview) -> None:
        seen.add(threading.get_ident())
        time.sleep(0.001)  # the others get their turn

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, limits[1]))
    try:
        in_parallel(iter(range(1, 200)), take, KiB)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(seen) <= most
