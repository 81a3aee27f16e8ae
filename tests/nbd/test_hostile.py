"""A server that breaks the rules costs a clear SourceError, and neither memory nor time."""

import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest

from backy.errors import SourceError
from backy.nbd.remote_image import open_image
from backy.nbd.uri import parse_uri
from tests.conformance.image import read
from tests.lab.watchdog import ends
from tests.memory_source import sample
from tests.nbd.scripted import (
    ACK,
    CONTEXT,
    DATA,
    ERROR,
    EXTENTS,
    GO,
    GREETING,
    HOLE,
    INFO,
    NONE,
    SET_CONTEXT,
    STRUCTURED,
    UNSUPPORTED,
    Answer,
    Request,
    Script,
    block_sizes,
    everything,
    info,
    option_reply,
    scripted,
)

MIB = 1024**2
CONTENT = sample(64 * 1024)
GOOD = Script(CONTENT, contexts={"base:allocation": everything})
SECONDS = 60  # longer than any of these servers needs to be found out, on any machine
DONE = option_reply(GO, ACK)


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def limit(why: str) -> float:
    """How long a server may take: long enough to be connected to, where it is to time out."""
    return 2 if why == "timed out" else SECONDS


def read_all(script: Script, seconds: float = SECONDS) -> bytes:
    """Open the export, ask for all extents and read them."""
    with (
        scripted(script) as uri,
        ends(60),
        open_image(parse_uri(uri), timeout_seconds=seconds) as image,
    ):
        assert sum(each.length for each in image.extents()) == image.size
        return read(image, 0, image.size)


def refused(script: Script, seconds: float = SECONDS) -> str:
    """The message of the SourceError, which names the export; as little memory as that takes."""
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"^nbd\+unix:///\?socket=") as caught:
            read_all(script, seconds)
        assert tracemalloc.get_traced_memory()[1] < 12 * MIB
    finally:
        tracemalloc.stop()
    assert len(caught.value.message) < 600
    assert caught.value.message.isprintable()
    assert caught.value.hint
    return caught.value.message


def test_a_server_that_keeps_the_rules_is_read() -> None:
    assert read_all(GOOD) == CONTENT


@pytest.mark.parametrize(
    ("greeting", "why"),
    [
        pytest.param([b"SSH-2.0-OpenSSH_9.2p1 Debian"], "no NBD server", id="ssh"),
        pytest.param([bytes(200)], "no NBD server", id="zeroes"),
        pytest.param(
            [b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53" + bytes(200)], "old", id="oldstyle"
        ),
        pytest.param([GREETING[:16] + bytes(2)], "old", id="not-fixed-newstyle"),
        pytest.param([GREETING[:10]], "timed out", id="stops-in-the-middle"),
    ],
)
def test_what_greets_in_another_way_is_refused(greeting: Answer, why: str) -> None:
    assert why in refused(Script(greeting=greeting), limit(why))


@pytest.mark.parametrize(
    ("go", "why"),
    [
        pytest.param([DONE], "impossible size", id="says-nothing"),
        pytest.param([info(0), DONE], "size of 0 bytes", id="empty"),
        pytest.param([info(2**63), DONE], "impossible size", id="larger-than-any-file"),
        pytest.param([info(2**64 - 1), DONE], "impossible size", id="largest-number"),
        pytest.param([info(MIB), block_sizes(0, 4096, MIB), DONE], "block sizes", id="no-minimum"),
        pytest.param([info(MIB), block_sizes(3, 4096, MIB), DONE], "block sizes", id="odd-minimum"),
        pytest.param([info(MIB), block_sizes(2**17, 2**17, MIB)], "block sizes", id="huge-minimum"),
        pytest.param([info(MIB), block_sizes(4096, 4096, 512)], "block sizes", id="maximum-below"),
        pytest.param([info(MIB), block_sizes(1, 4096, 0), DONE], "block sizes", id="no-maximum"),
        pytest.param([option_reply(GO, INFO, b"")], "wrong length", id="info-of-nothing"),
        pytest.param([option_reply(GO, INFO, bytes(5))], "wrong length", id="info-cut-short"),
        pytest.param([option_reply(GO, INFO, bytes(13))], "wrong length", id="info-too-long"),
        pytest.param([option_reply(GO, CONTEXT, bytes(12))], "type 4", id="a-context"),
        pytest.param([option_reply(STRUCTURED, ACK)], "makes no sense", id="another-option"),
        pytest.param([b"x" * 20], "makes no sense", id="wrong-magic"),
        pytest.param([option_reply(GO, INFO, length=2**32 - 1)], "makes no sense", id="oversized"),
        pytest.param(
            [option_reply(GO, INFO, length=16_385)], "makes no sense", id="a-byte-too-long"
        ),
        pytest.param([option_reply(GO, UNSUPPORTED)], "says: not supported", id="refused"),
        pytest.param([option_reply(GO, 2**32 - 1)], "0xffffffff", id="unknown-refusal"),
        pytest.param([option_reply(GO, UNSUPPORTED, b"\x1b[2J\xff\n" * 2000)], "says", id="rude"),
        pytest.param(repeat(option_reply(GO, INFO, b"\0\1name")), "timed out", id="endless"),
    ],
)
def test_an_export_that_is_described_wrongly_is_refused(go: Answer, why: str) -> None:
    assert why in refused(Script(CONTENT, go=go), limit(why))


def context(number: int, name: str) -> bytes:
    return option_reply(SET_CONTEXT, CONTEXT, u32(number) + name.encode())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param([context(0, "base:other")], "unasked", id="not-asked-for"),
        pytest.param([context(0, "x" * 9000)], "unasked", id="long-name"),
        pytest.param([option_reply(SET_CONTEXT, CONTEXT, b"\xff" * 9)], "unasked", id="bytes"),
        pytest.param([option_reply(SET_CONTEXT, CONTEXT)], "unasked", id="no-name"),
        pytest.param([context(0, "base:allocation")] * 2, "unasked", id="twice"),
        pytest.param([option_reply(SET_CONTEXT, INFO, bytes(9))], "unasked", id="info"),
    ],
)
def test_contexts_that_were_never_asked_for_are_refused(answer: Answer, why: str) -> None:
    assert why in refused(Script(CONTENT, set_context=answer))


def test_two_contexts_of_one_number_are_refused() -> None:
    both = [context(7, "base:allocation"), context(7, "qemu:dirty-bitmap:b")]
    with (
        scripted(Script(CONTENT, set_context=both)) as uri,
        pytest.raises(SourceError, match=r"context 7, .* unasked"),
        open_image(parse_uri(uri), bitmap="b", timeout_seconds=SECONDS),
    ):
        pytest.fail("it was opened")


def test_an_option_that_is_answered_with_more_than_yes_is_refused() -> None:
    answer = [option_reply(STRUCTURED, INFO), option_reply(STRUCTURED, ACK)]
    assert "option 8" in refused(Script(CONTENT, structured=answer))


HALF = len(CONTENT) // 2
READS: dict[str, tuple[Callable[[Request], Answer], str]] = {
    "nothing-at-all": (lambda r: [r.chunk(NONE)], "of a read are missing"),
    "wrong-magic": (lambda r: [r.simple(magic=0x12345678)], "does not belong to our request"),
    "another-request": (lambda r: [r.simple(cookie=99)], "does not belong to our request"),
    "another-request-in-a-chunk": (
        lambda r: [Request(99, r.offset, r.length).data(0, CONTENT)],
        "does not belong to our request",
    ),
    "half": (lambda r: [r.data(0, CONTENT[:HALF])], "of a read are missing"),
    "a-gap": (
        lambda r: [r.data(0, CONTENT[:100], last=False), r.data(200, CONTENT[200:])],
        "out of order",
    ),
    "the-same-twice": (
        lambda r: [r.data(0, CONTENT[:HALF], last=False), r.data(0, CONTENT[:HALF])],
        "out of order",
    ),
    "overlapping": (
        lambda r: [r.data(0, CONTENT[: HALF + 1], last=False), r.data(HALF, CONTENT[HALF:])],
        "out of order",
    ),
    "beyond-the-end": (lambda r: [r.data(1, CONTENT)], "out of order"),
    "far-away": (lambda r: [r.data(2**64 - 1, CONTENT)], "out of order"),
    "too-much": (lambda r: [r.data(0, CONTENT + b"x")], "out of order"),
    "huge": (lambda r: [r.chunk(DATA, bytes(8), length=2**32 - 1)], "out of order"),
    "no-bytes": (lambda r: [r.data(0, b"")], "type 1 and 8 bytes"),
    "no-offset": (lambda r: [r.chunk(DATA, b"x")], "type 1 and 1 bytes"),
    "hole-of-nothing": (lambda r: [r.hole(0, 0)], "out of order"),
    "hole-beyond-the-end": (lambda r: [r.hole(0, len(CONTENT) + 1)], "out of order"),
    "huge-hole": (lambda r: [r.hole(0, 2**32 - 1)], "out of order"),
    "short-hole": (lambda r: [r.chunk(HOLE, bytes(11))], "type 2 and 11 bytes"),
    "long-hole": (lambda r: [r.chunk(HOLE, length=2**32 - 1)], "type 2 and"),
    "extents": (lambda r: [r.extents(0, [(r.length, 0)])], "type 5"),
    "unknown-type": (lambda r: [r.chunk(77, b"x")], "type 77"),
    "nothing-with-bytes": (lambda r: [r.chunk(NONE, b"x")], "of a read are missing"),
    "huge-error": (lambda r: [r.chunk(ERROR, length=2**32 - 1)], "an error has 4294967295"),
    "short-error": (lambda r: [r.chunk(ERROR, b"x")], "an error has 1 bytes"),
    "hang-up": (lambda r: [r.data(0, CONTENT)[:-1], hang_up()], "closed the connection"),
    "error-of-nothing": (lambda r: [r.error(5, b"\x1b[31mred", last=True)], "?[31mred"),
    "endless-nothing": (lambda r: repeat(r.chunk(NONE, last=False)), "timed out"),
    "endless-errors": (lambda r: repeat(r.error(5, last=False)), "timed out"),
    "trickle": (lambda r: trickle(r.data(0, CONTENT)), "timed out"),
    "silence": (lambda r: [], "timed out"),
}


def hang_up() -> bytes:
    raise OSError


def trickle(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]
        time.sleep(0.2)


@pytest.mark.parametrize(("answer", "why"), READS.values(), ids=READS.keys())
def test_a_read_that_is_answered_wrongly_is_refused(
    answer: Callable[[Request], Answer], why: str
) -> None:
    message = refused(Script(CONTENT, read=answer), limit(why))
    assert why in message
    assert f"reading {len(CONTENT)} bytes at byte 0" in message


def test_a_server_that_trickles_through_the_handshake_is_given_up() -> None:
    assert "opening it: timed out" in refused(Script(greeting=trickle(GREETING)), 1)


ALLOCATION = {"base:allocation": everything}
STATUS: dict[str, tuple[Callable[[Request], Answer], str]] = {
    "nothing": (lambda r: [r.chunk(NONE)], "is missing"),
    "no-extents": (lambda r: [r.extents(0, [])], "4 bytes"),
    "an-empty-extent": (lambda r: [r.extents(0, [(0, 0)])], "empty extent"),
    "an-empty-extent-at-the-end": (lambda r: [r.extents(0, [(100, 0), (0, 0)])], "empty extent"),
    "too-far": (lambda r: [r.extents(0, [(r.length, 0), (1, 0)])], "beyond our request"),
    "half-an-extent": (lambda r: [r.chunk(EXTENTS, bytes(10))], "10 bytes"),
    "oversized": (lambda r: [r.chunk(EXTENTS, length=2**32 - 4)], "4294967292 bytes"),
    "another-context": (lambda r: [r.extents(1, [(r.length, 0)])], "we did not ask for"),
    "twice": (lambda r: [r.extents(0, [(9, 0)], last=False)] * 2, "we did not ask for"),
    "data": (lambda r: [r.data(0, CONTENT)], "type 1"),
    "simple": (lambda r: [r.simple()], "a block status has type"),
    "an-error": (lambda r: [r.error(28, b"what?")], "says: what?; No space left on device"),
    "a-simple-error": (lambda r: [r.simple(22)], "Invalid argument"),
    "a-large-error": (lambda r: [r.error(2**32 - 1)], "the server says"),
    "as-many-as-there-may-be": (
        lambda r: chain([r.chunk(EXTENTS, bytes(4), length=4 + 8 * MIB)], repeat(bytes(MIB))),
        "empty extent",
    ),
}


@pytest.mark.parametrize(("answer", "why"), STATUS.values(), ids=STATUS.keys())
def test_extents_that_are_answered_wrongly_are_refused(
    answer: Callable[[Request], Answer], why: str
) -> None:
    script = Script(CONTENT, contexts=ALLOCATION, status=answer)
    message = refused(script)
    assert why in message
    assert "asking for the extents at byte 0" in message


class InTurn:
    """One answer for the first who asks, another for the second."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = iter(answers)

    def __iter__(self) -> Iterator[bytes]:
        return iter(next(self.answers))


def test_an_export_that_was_replaced_under_the_same_name_is_not_read_on() -> None:
    """The second connection, for a second thread, finds a disk of another size."""
    go = InTurn((info(len(CONTENT)), DONE), (info(2 * len(CONTENT)), DONE))
    begun, stop = threading.Event(), threading.Event()

    def slowly(request: Request) -> Iterator[bytes]:
        begun.set()
        stop.wait(60)
        yield request.data(request.offset, CONTENT[: request.length])

    with (
        scripted(Script(CONTENT, go=go, read=slowly)) as uri,
        open_image(parse_uri(uri), timeout_seconds=60) as image,
    ):
        first = threading.Thread(target=read, args=(image, 0, 512))
        first.start()
        begun.wait(60)
        with pytest.raises(SourceError, match="the export has changed"):
            read(image, 512, 512)
        stop.set()
        first.join()
