"""A repository of format 1 is listed, read, verified, restored, compared and extended for ever."""

import json
from collections.abc import Mapping
from datetime import timedelta
from itertools import groupby
from pathlib import Path

import pytest

from backy.model.extent import Extent, Kind
from backy.model.revision import Revision, Trust
from backy.operations.backup import backup
from backy.operations.diff import diff
from backy.operations.restore import restore
from backy.operations.scrub import Limits, Scrub
from backy.operations.verify import verify
from backy.repository import trash
from backy.repository.repository import Repository
from backy.repository.tags import retag
from tests.golden.format_1 import BLOCK, JOB, disks, unpacked
from tests.lab.paged import hashes_of, index_of, page_names, stored
from tests.memory_source import MemorySource


@pytest.fixture(params=["chunks", "images"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """Revisions 1 and 2, and revision 0 in the trash."""
    base = request.getfixturevalue("reflink_folder") if request.param == "images" else tmp_path
    return Repository(unpacked(request.param, base) / JOB)


def revisions(repository: Repository) -> list[Revision]:
    return repository.history().revisions


def content_of(repository: Repository, revision: Revision) -> dict[str, bytes]:
    contents = {}
    for name, disk in revision.disks.items():
        content = bytearray(disk.size)
        with repository.store.open(revision, name) as image:
            image.readinto(0, memoryview(content))
        contents[name] = bytes(content)
    return contents


def records(repository: Repository) -> list[int]:
    """The formats of the repository, and of its revisions, as the files say."""
    paths = [repository.folder / "repository.json"]
    paths += sorted(repository.folder.glob("revisions/*/revision.json"))
    return [json.loads(path.read_text())["format"] for path in paths]


def expected_diff(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> list[tuple[str, int, int]]:
    """The ranges of `new` that differ, in whole blocks, as (disk, start, end)."""
    ranges = []
    for name, content in new.items():
        starts = range(0, len(content), BLOCK)
        differ = [
            (start, min(start + BLOCK, len(content)))
            for start in starts
            if content[start : start + BLOCK] != old[name][start : start + BLOCK]
        ]
        for _, group in groupby(enumerate(differ), lambda each: each[1][0] - each[0] * BLOCK):
            parts = [part for _, part in group]
            ranges.append((name, parts[0][0], parts[-1][1]))
    return ranges


def joined(extents: list[tuple[str, Extent]]) -> list[tuple[str, int, int]]:
    """Ranges of any kind that touch, as one."""
    found: list[tuple[str, int, int]] = []
    for name, extent in extents:
        if found and found[-1][0] == name and found[-1][2] == extent.start:
            found[-1] = (name, found[-1][1], extent.end)
        else:
            found.append((name, extent.start, extent.end))
    return sorted(found)


def test_it_is_listed_and_read(old: Repository) -> None:
    first, second = revisions(old)
    assert (first.format, second.format, old.settings.format) == (1, 1, 1)
    assert first.tags == ("daily", "kept")
    assert content_of(old, first) == disks(1)
    assert content_of(old, second) == disks(2)


def test_it_is_restored(old: Repository, tmp_path: Path) -> None:
    for number, revision in enumerate(revisions(old), 1):
        for name, content in disks(number).items():
            target = tmp_path / f"{number}-{name}.img"
            restore(old, revision, name, str(target), origins=[])
            assert target.read_bytes() == content


def test_it_is_verified_and_scrubbed_and_tagged_and_keeps_its_format(old: Repository) -> None:
    before = sorted(str(path.relative_to(old.folder)) for path in old.folder.rglob("*"))
    assert list(verify(old, revisions(old), origins=[])) == []
    assert all(each.trust is Trust.VERIFIED for each in revisions(old))
    scrub = Scrub(old, timedelta(days=7))
    assert list(scrub.run(Limits(), origins=[])) == []
    assert scrub.coverage().share == 1
    retag(old, revisions(old)[:1], add={"more"}, drop=set())
    assert records(old) == [1, 1, 1]
    after = {str(path.relative_to(old.folder)) for path in old.folder.rglob("*")}
    assert after - set(before) <= {"scrub.json", "quarantine"}


def test_its_revisions_are_compared(old: Repository) -> None:
    first, second = revisions(old)
    found = joined(list(diff(old, first, second)))
    assert found == sorted(expected_diff(disks(1), disks(2)))


def test_its_trash_is_brought_back_and_purged(old: Repository) -> None:
    trash.undo(old)
    first, *others = revisions(old)
    assert content_of(old, first) == disks(0)
    trash.remove(old, [first])
    purged = trash.purge(old)
    assert (purged.revisions, purged.unknown, purged.foreign) == ((first.id,), (), ())
    assert [content_of(old, each) for each in others] == [disks(1), disks(2)]


@pytest.mark.parametrize("is_tracked", [True, False], ids=["delta", "read-in-full"])
def test_the_next_backup_writes_format_2_and_leaves_what_there_is(
    old: Repository, is_tracked: bool
) -> None:
    parent = revisions(old)[-1]
    known = {parent.id: disks(2)} if is_tracked else {}
    new = dict(disks(2))
    new["vda"] = new["vda"][: 100 * BLOCK] + b"x" * BLOCK + new["vda"][101 * BLOCK :]
    revision = backup(old, MemorySource(new, known))
    assert (revision.parent, revision.format, revision.disks["vda"].changed) == (
        parent.id,
        2,
        BLOCK,
    )
    if is_tracked:
        assert revision.disks["vda"].read - revision.disks["vda"].compared == BLOCK
    assert records(old) == [2, 1, 1, 2]
    assert [content_of(old, each) for each in revisions(old)] == [disks(1), disks(2), new]
    folder = old.folder_of(revision).path
    for name, content in new.items():
        assert (folder / f"{name}.blocks").read_bytes() == index_of(hashes_of(content, BLOCK))
        names = page_names(folder, name)
        assert {f"pages/{each[:2]}/{each}" for each in names} <= dict(stored(old.folder)).keys()
    assert joined(list(diff(old, parent, revision))) == [("vda", 100 * BLOCK, 101 * BLOCK)]
    assert joined(list(diff(old, revision, parent))) == [("vda", 100 * BLOCK, 101 * BLOCK)]
    assert list(verify(old, revisions(old), origins=[])) == []
    assert records(old) == [2, 1, 1, 2]


def test_that_the_format_is_new_is_said_once(old: Repository) -> None:
    texts = [" ".join(backup(old, MemorySource(disks(2))).warnings) for _ in range(2)]
    assert ["format 2" in text for text in texts] == [True, False]


def test_revisions_of_both_formats_are_purged_in_any_order(old: Repository) -> None:
    new = backup(old, MemorySource(disks(3)))
    first, second, _ = revisions(old)
    for gone, left in (([second], {first.id: 1, new.id: 3}), ([first], {new.id: 3})):
        trash.remove(old, gone)
        assert trash.purge(old).unknown == ()
        assert {each.id: content_of(old, each) for each in revisions(old)} == {
            each: disks(number) for each, number in left.items()
        }


def test_kinds_of_a_comparison_with_format_2_are_those_of_the_content(old: Repository) -> None:
    parent = revisions(old)[-1]
    content = disks(2)
    revision = backup(old, MemorySource({**content, "vda": bytes(len(content["vda"]))}))
    found = [extent.kind for name, extent in diff(old, parent, revision) if name == "vda"]
    assert set(found) == {Kind.ZERO}
