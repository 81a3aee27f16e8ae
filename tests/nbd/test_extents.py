"""Extents are what the server says, however it cuts its answers; and they always end."""

import struct
import tracemalloc
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.model.extent import Extent, Kind, merge
from backy.nbd import remote_image as nbd_image
from backy.nbd.remote_image import open_image
from backy.nbd.uri import parse_uri
from tests.nbd.scripted import (
    ACK,
    GO,
    Extents,
    Request,
    Script,
    block_sizes,
    everything,
    info,
    option_reply,
    scripted,
)

KIB, GIB, TIB = 1 << 10, 1 << 30, 1 << 40
ALLOCATION, BITMAP = "base:allocation", "qemu:dirty-bitmap:backy-1"
Runs = list[tuple[int, int]]

# Lengths of a KiB to 3 GiB, so that runs end within a question of 1 GiB and lie across several.
runs = st.lists(
    st.tuples(st.integers(1, 3 * GIB // KIB).map(lambda n: n * KIB), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)
cuts = st.lists(st.integers(1, 4), min_size=1, max_size=5)


class Model:
    """What one context says, in answers of as many extents as `counts` tells."""

    def __init__(self, runs: Runs, size: int, counts: list[int]) -> None:
        self.counts, self.asked = counts, 0
        self.runs: list[tuple[int, int, int]] = []  # start, end, flags
        position = 0
        for length, flags in runs:
            self.runs.append((position, min(position + length, size), flags))
            position = self.runs[-1][1]
        self.runs.append((position, size, 0))
        self.runs = [each for each in self.runs if each[0] < each[1]]

    def __call__(self, request: Request) -> Extents:
        self.asked += 1
        start, end = request.offset, request.offset + request.length
        found = [
            # The last extent may go on beyond what was asked for.
            (min(high, 2**32 - KIB + start) - max(low, start), flags)
            for low, high, flags in self.runs
            if low < end and high > start
        ]
        return found[: self.counts[self.asked % len(self.counts)]]

    def flags(self, offset: int) -> int:
        return next(flags for low, high, flags in self.runs if low <= offset < high)

    def edges(self) -> set[int]:
        return {edge for low, high, _ in self.runs for edge in (low, high)}


@given(runs, runs, cuts, cuts)
def test_extents_are_those_of_the_server_however_it_cuts_them(
    allocation: Runs, dirty: Runs, cuts: list[int], other_cuts: list[int]
) -> None:
    size = sum(length for length, _ in allocation)
    content, changes = Model(allocation, size, cuts), Model(dirty, size, other_cuts)
    go = (info(size), option_reply(GO, ACK))
    script = Script(go=go, contexts={ALLOCATION: content, BITMAP: changes})
    with (
        scripted(script) as uri,
        open_image(parse_uri(uri), bitmap="backy-1", timeout_seconds=60) as image,
    ):
        assert image.tracks_changes
        found = list(merge(image.extents()))
    edges = sorted(content.edges() | changes.edges())
    expected = [
        Extent(start, end - start, kind_of(content.flags(start), changes.flags(start)))
        for start, end in pairwise(edges)
    ]
    assert found == list(merge(expected))


def kind_of(allocation: int, dirty: int) -> Kind:
    if not dirty & 1:
        return Kind.SAME
    return Kind.ZERO if allocation & 2 else Kind.DATA


def extents_of(script: Script, bitmap: str | None = None, most: int = 100) -> list[Extent]:
    with (
        scripted(script) as uri,
        open_image(parse_uri(uri), bitmap=bitmap, timeout_seconds=60) as image,
    ):
        return list(islice(image.extents(), most))


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        pytest.param(0, Kind.DATA, id="data"),
        pytest.param(1, Kind.DATA, id="a-hole-that-may-read-as-anything"),
        pytest.param(2, Kind.ZERO, id="allocated-zeroes"),
        pytest.param(3, Kind.ZERO, id="a-hole-of-zeroes"),
        pytest.param(4, Kind.DATA, id="a-flag-that-nobody-knows"),
    ],
)
def test_only_what_reads_as_zeroes_is_zero(flags: int, kind: Kind) -> None:
    script = Script(bytes(1000), contexts={ALLOCATION: lambda r: [(r.length, flags)]})
    assert extents_of(script) == [Extent(0, 1000, kind)]


def test_without_block_status_all_is_data() -> None:
    assert extents_of(Script(bytes(1000)), "backy-1") == [Extent(0, 1000, Kind.DATA)]


def test_a_bitmap_is_believed_without_allocation_too() -> None:
    script = Script(bytes(1000), contexts={BITMAP: lambda r: [(100, 1), (r.length - 100, 0)]})
    assert extents_of(script, "backy-1") == [
        Extent(0, 100, Kind.DATA),
        Extent(100, 900, Kind.SAME),
    ]


def test_a_bitmap_of_another_name_is_not_asked_for() -> None:
    script = Script(bytes(1000), contexts={BITMAP: lambda r: [(r.length, 0)]})
    assert extents_of(script, "backy-2") == [Extent(0, 1000, Kind.DATA)]
    assert extents_of(script) == [Extent(0, 1000, Kind.DATA)]


def test_at_most_a_gibibyte_is_asked_about_at_once() -> None:
    asked = []

    def note(request: Request) -> Extents:
        asked.append((request.offset, request.length))
        return everything(request)

    go = (info(2 * GIB + 5), option_reply(GO, ACK))
    extents_of(Script(go=go, contexts={ALLOCATION: note}))
    assert asked == [(0, GIB), (GIB, GIB), (2 * GIB, 5)]


def test_whole_blocks_are_asked_about_and_the_rest_is_data() -> None:
    asked = []

    def note(request: Request) -> Extents:
        asked.append((request.offset, request.length))
        return [(request.length, 3)]

    go = (info(10_000), block_sizes(4096, 4096, 65536), option_reply(GO, ACK))
    found = extents_of(Script(go=go, contexts={ALLOCATION: note}))
    assert asked == [(0, 8192)]
    assert found == [Extent(0, 8192, Kind.ZERO), Extent(8192, 1808, Kind.DATA)]


def test_extents_come_while_the_server_still_tells_them() -> None:
    """The largest disk, of which each answer tells 512 bytes: who reads does not wait for all."""
    go = (info(2**63 - 1), option_reply(GO, ACK))
    script = Script(go=go, contexts={ALLOCATION: lambda r: [(512, 2 * (r.offset // 512 % 2))]})
    found = extents_of(script, most=50)
    assert found == [
        Extent(start * 512, 512, Kind.ZERO if start % 2 else Kind.DATA) for start in range(50)
    ]


def test_a_server_that_tells_extents_without_end_is_read_whole_from_there_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbd_image, "_MOST_EXTENTS", 30)
    go = (info(2**63 - 1), option_reply(GO, ACK))
    script = Script(go=go, contexts={ALLOCATION: lambda r: [(512, 2)] * 9})
    *first, last = extents_of(script)
    assert first == [Extent(start * 512, 512, Kind.ZERO) for start in range(27)]
    assert last == Extent(27 * 512, 2**63 - 1 - 27 * 512, Kind.DATA)


def test_a_fragmented_disk_takes_no_memory_but_that_of_an_answer() -> None:
    """Extents that were all made at once would take 25 MiB here."""
    count = 1 << 18
    answer = bytes(4) + b"".join(struct.pack(">II", 512, each % 2 * 2) for each in range(count))
    go = (info(count * 512), option_reply(GO, ACK))
    script = Script(go=go, contexts={ALLOCATION: everything}, status=lambda r: [r.chunk(5, answer)])
    with scripted(script) as uri, open_image(parse_uri(uri), timeout_seconds=60) as image:
        tracemalloc.start()
        try:
            assert sum(1 for _ in image.extents()) == count
            assert tracemalloc.get_traced_memory()[1] < 4 * len(answer)
        finally:
            tracemalloc.stop()
