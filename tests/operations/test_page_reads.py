"""Whoever reads indexes compares pages first, and reads each page that it needs once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backy.image.copy import copy
from backy.model.extent import Extent, Kind
from backy.model.revision import Revision
from backy.operations.diff import diff
from backy.operations.origin import Origin
from backy.operations.scrub import Limits, Scrub
from backy.operations.tracking_check import TrackedImage
from backy.operations.verify import verify
from backy.repository import trash
from backy.repository.draft import draft_revision
from backy.stores.data import data_bytes
from backy.stores.draft import draft_disk
from tests.lab.disks import PAGE, THREE_PAGES, sparse
from tests.lab.losses import lose, pages_read
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import BytesImage, changed
from tests.operations.test_scrub import MONTH

DISK = THREE_PAGES
NO_ORIGINS: list[Origin] = []


@pytest.fixture(params=["chunks", "images"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    if request.param == "chunks":
        return Made(tmp_path)
    return Made(request.getfixturevalue("reflink_folder"), "images")


def names(made: Made, *revisions: Revision) -> set[str]:
    """The pages of these revisions."""
    return {page.name for each in revisions for page, _ in made.pages(each)}


def history(made: Made) -> list[Revision]:
    """Five revisions, which share all pages but a few."""
    contents = (DISK, DISK, changed(DISK, 5), changed(DISK, PAGE + 5), DISK)
    return [made.backup(each) for each in contents]


def test_a_diff_reads_only_the_pages_that_differ(made: Made) -> None:
    first, second = made.backup(DISK), made.backup(changed(DISK, PAGE + 5))
    with pages_read() as reads:
        found = list(diff(made.repository, first, second))
    assert found == [("vda", Extent(PAGE, BLOCK, Kind.DATA))]
    assert reads == {(made.pages(each)[1][0].name, False): 1 for each in (first, second)}


def test_a_diff_of_equal_revisions_reads_no_page(made: Made) -> None:
    first, second = made.backup(DISK), made.backup(DISK)
    with pages_read() as reads:
        assert list(diff(made.repository, first, second)) == []
    assert not reads


def test_a_page_that_is_lost_counts_as_different_and_the_rest_is_compared(made: Made) -> None:
    first, second = made.backup(DISK), made.backup(changed(DISK, 5, PAGE + 5))
    lose(made.pages(second)[1])
    assert list(diff(made.repository, first, second)) == [
        ("vda", Extent(0, BLOCK, Kind.DATA)),
        ("vda", Extent(PAGE, PAGE, Kind.DATA)),
    ]


def verifying(made: Made) -> Iterator[object]:
    return verify(made.repository, made.repository.history().revisions, origins=NO_ORIGINS)


def scrubbing(made: Made) -> Iterator[object]:
    return Scrub(made.repository, MONTH).run(Limits(), origins=NO_ORIGINS)


@pytest.mark.parametrize("read", [verifying, scrubbing], ids=["verify", "scrub"])
def test_both_copies_of_each_page_are_checked_once_however_many_revisions_share_it(
    made: Made, read: type[Iterator[object]]
) -> None:
    revisions = history(made)
    with pages_read() as reads:
        assert list(read(made)) == []  # type: ignore[call-arg]
    checks = {name: count for (name, is_checked), count in reads.items() if is_checked}
    assert checks == dict.fromkeys(names(made, *revisions), 1)


@pytest.mark.parametrize("read", [verifying, scrubbing], ids=["verify", "scrub"])
def test_more_revisions_of_the_same_pages_cost_no_more_reads(
    tmp_path: Path, read: type[Iterator[object]]
) -> None:
    made = Made(tmp_path)
    costs = []
    for count in (1, 9):
        for _ in range(count):
            made.backup(DISK)
        (made.root / "scrub.json").unlink(missing_ok=True)
        with pages_read() as reads:
            assert list(read(made)) == []  # type: ignore[call-arg]
        costs.append(reads.total())
    # Threads that read blocks of different pages in turn read a page again, but not for a revision.
    blocks = len(set(made.lines(made.repository.history().revisions[0])))
    assert costs[1] <= costs[0] + blocks < costs[0] + 9 * len(made.pages(made.repository.find("0")))


def test_a_purge_reads_each_page_once_and_none_of_plain_images(made: Made) -> None:
    revisions = history(made)
    with pages_read() as reads:
        trash.purge(made.repository)
    wanted = names(made, *revisions) if made.store == "chunks" else set()
    assert reads == {(name, False): 1 for name in wanted}


def test_a_search_in_several_indexes_reads_each_page_once(made: Made) -> None:
    revisions = history(made)
    wanted = made.lines(revisions[0])[0]
    found: list[int] = []
    with pages_read() as reads:
        known: dict[str, list[tuple[int, str]]] = {}
        for each in revisions:
            with made.repository.store.open_index(each, "vda") as index:
                found += (number for number, _ in index.find([wanted], known))
    assert found == [0] * 4
    assert reads == {(name, False): 1 for name in names(made, *revisions)}


def test_counting_data_reads_no_page_of_zeroes(made: Made) -> None:
    revision = made.backup(sparse(pages=1, rest=0) + bytes(3 * PAGE))
    with made.repository.store.open_index(revision, "vda") as index, pages_read() as reads:
        assert data_bytes(index) == 3 * BLOCK
    assert reads == {(made.pages(revision)[0][0].name, False): 1}


def test_a_backup_with_change_tracking_opens_only_the_pages_that_change(made: Made) -> None:
    parent = made.backup(DISK)
    new = changed(DISK, PAGE + 5, 2 * PAGE + 5)
    store = made.repository.store
    with (
        made.repository.exclusive("backup"),
        draft_revision(made.repository) as draft,
        pages_read() as reads,
        draft_disk(store, draft.folder, "vda", len(new), parent) as target,
    ):
        copy(TrackedImage(BytesImage(new, DISK), BLOCK), target, workers=1)
        target.finish()
    assert reads == {(page.name, False): 1 for page, _ in made.pages(parent)[1:]}


def test_a_backup_that_changes_nothing_writes_no_page(made: Made) -> None:
    first, second = made.backup(DISK), made.backup(DISK)
    lines = len(made.pages(first))
    assert second.disks["vda"].pages == lines * 65  # the index; its twin is there already


def test_a_changed_block_writes_both_copies_of_its_page_and_of_the_index(made: Made) -> None:
    made.backup(DISK)
    second = made.backup(changed(DISK, 5))
    assert second.disks["vda"].pages == 2 * (252 * 65 + len(made.pages(second)) * 65)
