"""What changed between two revisions is told in whole blocks, from the indexes alone."""

from pathlib import Path
from random import Random

import pytest

from backy.errors import DamagedError
from backy.model.extent import Extent, Kind
from backy.model.revision import Revision
from backy.operations.diff import diff
from tests.lab.losses import index_copies, spoil
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import changed, sample

SHORT = 12_345
DISK = sample(5 * BLOCK + SHORT)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def between(made: Made, old: Revision, new: Revision) -> list[tuple[str, Extent]]:
    return list(diff(made.repository, old, new))


def test_a_revision_does_not_differ_from_itself_nor_from_an_equal_one(made: Made) -> None:
    first, second = made.backup(DISK), made.backup(DISK)
    assert between(made, first, first) == []
    assert between(made, first, second) == []


def test_ranges_are_whole_blocks_with_neighbours_joined(made: Made) -> None:
    first = made.backup(DISK)
    second = made.backup(changed(DISK, 5, BLOCK + 5, 3 * BLOCK - 1, length=1))
    assert between(made, first, second) == [("vda", Extent(0, 3 * BLOCK, Kind.DATA))]


def test_the_short_last_block_ends_where_the_disk_ends(made: Made) -> None:
    first = made.backup(DISK)
    second = made.backup(changed(DISK, len(DISK) - 1))
    assert between(made, first, second) == [("vda", Extent(5 * BLOCK, SHORT, Kind.DATA))]


def test_a_range_that_became_zero_is_reported_as_zero(made: Made) -> None:
    first = made.backup(DISK)
    second = made.backup(DISK[: 2 * BLOCK] + bytes(BLOCK) + DISK[3 * BLOCK :])
    assert between(made, first, second) == [("vda", Extent(2 * BLOCK, BLOCK, Kind.ZERO))]
    assert between(made, second, first) == [("vda", Extent(2 * BLOCK, BLOCK, Kind.DATA))]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param(len(DISK) + 1, (5 * BLOCK, SHORT + 1), id="grown"),
        pytest.param(len(DISK) - 1, (5 * BLOCK, SHORT - 1), id="shrunk"),
        pytest.param(5 * BLOCK, None, id="cut-at-a-block"),
        pytest.param(7 * BLOCK, (5 * BLOCK, 2 * BLOCK), id="grown-by-blocks"),
    ],
)
def test_a_resized_disk_differs_where_it_was_resized(
    made: Made, size: int, expected: tuple[int, int] | None
) -> None:
    first = made.backup(DISK)
    second = made.backup((DISK + sample(2 * BLOCK, seed=3))[:size])
    found = between(made, first, second)
    assert found == ([("vda", Extent(*expected, Kind.DATA))] if expected else [])


def test_a_new_disk_is_listed_whole_and_a_lost_one_not_at_all(made: Made) -> None:
    first = made.backup(vda=DISK)
    second = made.backup(vda=DISK, vdb=b"new")
    assert between(made, first, second) == [("vdb", Extent(0, 3, Kind.DATA))]
    assert between(made, second, first) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_diff_is_what_a_comparison_of_all_bytes_finds(made: Made, seed: int) -> None:
    random = Random(seed)
    old = sample(random.randrange(1, 8 * BLOCK), seed)
    new = (old + sample(BLOCK, seed))[: random.randrange(1, 8 * BLOCK)]
    new = changed(new, *(random.randrange(len(new)) for _ in range(3)), seed=seed)
    first, second = made.backup(old), made.backup(new)
    told = {
        block
        for _, extent in between(made, first, second)
        for block in range(extent.start // BLOCK, -(-extent.end // BLOCK))
    }
    assert told == {
        start // BLOCK
        for start in range(0, len(new), BLOCK)
        if old[start : start + BLOCK] != new[start : start + BLOCK]
    }


def test_no_block_is_read(made: Made) -> None:
    first, second = made.backup(DISK), made.backup(changed(DISK, 5))
    for chunk in made.root.glob("chunks/*/*"):
        chunk.unlink()
    assert between(made, first, second) == [("vda", Extent(0, BLOCK, Kind.DATA))]


@pytest.mark.parametrize("which", [0, 1], ids=["older", "newer"])
def test_a_damaged_index_is_an_error_that_names_it(made: Made, which: int) -> None:
    revisions = [made.backup(DISK), made.backup(changed(DISK, 5))]
    copies = index_copies(made.root, made.repository.folder_of(revisions[which]).path)
    spoil(copies)
    with pytest.raises(DamagedError, match=str(copies[0])):
        between(made, *revisions)
