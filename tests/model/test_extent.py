"""Extent algebra against a model that has one entry a byte."""

from collections.abc import Iterable, Iterator
from itertools import count, cycle, pairwise, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.model.extent import Extent, Kind, align, chop, cover, merge, overlay

DATA, ZERO, SAME = Kind.DATA, Kind.ZERO, Kind.SAME


def laid_out(parts: Iterable[tuple[int, Kind]], start: int = 0) -> list[Extent]:
    """Extents of these lengths and kinds, one after the other."""
    extents = []
    for length, kind in parts:
        extents.append(Extent(start, length, kind))
        start += length
    return extents


def model(extents: Iterable[Extent]) -> dict[int, Kind]:
    """The kind of every byte. Fails where two extents have one byte, or come out of order."""
    kinds: dict[int, Kind] = {}
    for extent in extents:
        assert extent.length > 0
        assert extent.start >= max(kinds, default=-1) + 1
        kinds.update(zip(range(extent.start, extent.end), repeat(extent.kind), strict=False))
    return kinds


kinds = st.sampled_from(Kind)
covers = st.lists(st.tuples(st.integers(1, 40), kinds), min_size=1, max_size=12).map(laid_out)
gappy = st.lists(st.tuples(st.integers(0, 10), st.integers(1, 20), kinds), max_size=12).map(
    lambda parts: list(with_gaps(parts))
)


def with_gaps(parts: Iterable[tuple[int, int, Kind]]) -> Iterator[Extent]:
    start = 0
    for gap, length, kind in parts:
        yield Extent(start + gap, length, kind)
        start += gap + length


@given(gappy)
def test_merging_changes_no_byte_and_leaves_no_equal_neighbours(extents: list[Extent]) -> None:
    merged = list(merge(extents))
    assert model(merged) == model(extents)
    for left, right in pairwise(merged):
        assert left.end < right.start or left.kind is not right.kind


@given(gappy, st.integers(1, 30))
def test_chopping_changes_no_byte_and_cuts_data_at_multiples(
    extents: list[Extent], length: int
) -> None:
    chopped = list(chop(extents, length))
    assert model(chopped) == model(extents)
    for extent in chopped:
        if extent.kind is DATA:
            assert extent.start // length == (extent.end - 1) // length


@pytest.mark.parametrize("kind", [ZERO, SAME], ids=["zero", "same"])
def test_zero_and_same_are_cut_at_65536_times_the_length(kind: Kind) -> None:
    large = 65536 * 100
    assert list(chop([Extent(large - 7, large + 14, kind)], 100)) == [
        Extent(large - 7, 7, kind),
        Extent(large, large, kind),
        Extent(2 * large, 7, kind),
    ]


@given(covers)
def test_covering_fills_what_is_missing_and_nothing_else(extents: list[Extent]) -> None:
    size = extents[-1].end
    kept = [each for each in extents if each.kind is not SAME]
    assert model(cover(kept, size, SAME)) == model(extents)


@pytest.mark.parametrize(
    "ranges",
    [
        pytest.param([(0, 10), (5, 10)], id="overlap"),
        pytest.param([(50, 10), (10, 10)], id="backwards"),
        pytest.param([(95, 10)], id="after-the-end"),
        pytest.param([(-1, 10)], id="before-the-start"),
        pytest.param([(10, 0)], id="empty"),
        pytest.param([(10, -5)], id="negative"),
    ],
)
def test_impossible_ranges_are_refused(ranges: list[tuple[int, int]]) -> None:
    extents = [Extent(start, length, DATA) for start, length in ranges]
    with pytest.raises(ValueError, match="overlaps"):
        list(cover(extents, 100, SAME))


@given(covers, st.data())
def test_an_overlay_is_the_content_where_it_changed(
    content: list[Extent], data: st.DataObject
) -> None:
    size = content[-1].end
    cuts = sorted(data.draw(st.sets(st.integers(1, size))) | {size})
    kinds = data.draw(st.lists(st.sampled_from([SAME, DATA]), min_size=len(cuts)))
    starts = [0, *cuts]
    changes = [
        Extent(start, end - start, kind)
        for start, end, kind in zip(starts, cuts, kinds, strict=False)
    ]
    says = model(changes)
    expected = {at: SAME if says[at] is SAME else kind for at, kind in model(content).items()}
    assert model(overlay(content, changes)) == expected


@given(covers, st.integers(1, 50))
def test_a_block_has_the_kind_that_all_its_bytes_have_or_is_data(
    extents: list[Extent], block: int
) -> None:
    size = extents[-1].end
    before = model(extents)
    expected: dict[int, Kind] = {}
    for start in range(0, size, block):
        inside = range(start, min(start + block, size))
        found = {before[at] for at in inside}
        expected.update(zip(inside, repeat(found.pop() if len(found) == 1 else DATA), strict=False))
    aligned = list(align(extents, block, size))
    assert model(aligned) == expected
    assert all(extent.start % block == 0 for extent in aligned)
    assert all(left.kind is not right.kind for left, right in pairwise(aligned))


@pytest.mark.parametrize(
    ("parts", "size", "expected"),
    [
        pytest.param([(10, ZERO)], 10, [(10, ZERO)], id="less-than-a-block"),
        pytest.param([(16, ZERO)], 16, [(16, ZERO)], id="one-block"),
        pytest.param([(5, ZERO), (11, SAME)], 16, [(16, DATA)], id="a-mixed-block"),
        pytest.param([(5, SAME), (6, SAME), (5, SAME)], 16, [(16, SAME)], id="three-in-a-block"),
        pytest.param(
            [(20, ZERO), (3, DATA), (41, ZERO)],
            64,
            [(16, ZERO), (16, DATA), (32, ZERO)],
            id="a-little-data-in-a-hole",
        ),
        pytest.param([(32, SAME), (5, ZERO)], 37, [(32, SAME), (5, ZERO)], id="a-short-last-block"),
        pytest.param(
            [(34, SAME), (3, ZERO)], 37, [(32, SAME), (5, DATA)], id="a-mixed-short-last-block"
        ),
    ],
)
def test_blocks_of_sixteen_bytes(
    parts: list[tuple[int, Kind]], size: int, expected: list[tuple[int, Kind]]
) -> None:
    assert list(align(laid_out(parts), 16, size)) == laid_out(expected)


def endless_change() -> Iterator[Extent]:
    return (Extent(1000 * number, 1000, DATA) for number in count())


def test_everything_is_lazy() -> None:
    kinds = cycle([DATA, ZERO, SAME])
    endless = (Extent(100 * number, 100, next(kinds)) for number in count())
    chopped = chop(align(merge(overlay(endless, endless_change())), 50, 10**30), 25)
    assert [next(chopped) for _ in range(6)] == [
        *(Extent(start, 25, DATA) for start in range(0, 100, 25)),
        Extent(100, 100, ZERO),
        Extent(200, 100, SAME),
    ]


@pytest.mark.parametrize("transform", [merge, lambda each: chop(each, 7)], ids=["merge", "chop"])
def test_no_extents_give_no_extents(transform: object) -> None:
    assert callable(transform)
    assert list(transform([])) == []
