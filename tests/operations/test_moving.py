"""A repository of format 1 is used for ever, and the next backup takes it to format 2."""

import json
from pathlib import Path

import pytest

from backy.errors import ConfigError
from backy.model.revision import Revision, Trust
from backy.operations.backup import backup
from backy.operations.diff import diff
from backy.operations.scrub import Limits, Scrub
from backy.operations.verify import verify
from backy.repository import trash
from backy.repository.repository import Repository
from backy.repository.tags import retag
from tests.lab.disks import PAGE, THREE_PAGES
from tests.lab.indexes import bad_lists, format_of, turn_back
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import MemorySource, changed
from tests.operations.test_lost_page import Listener
from tests.operations.test_scrub import MONTH

DISK, LATER = THREE_PAGES, changed(THREE_PAGES, PAGE + 5)


@pytest.fixture(params=["chunks", "images"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A repository of format 1 with two revisions."""
    is_chunks = request.param == "chunks"
    base = tmp_path if is_chunks else request.getfixturevalue("reflink_folder")
    made = Made(base, request.param)
    made.backup(DISK)
    made.backup(LATER)
    turn_back(made.root)
    made.repository = Repository(made.root)
    return made


def revisions(made: Made) -> list[Revision]:
    return made.repository.history().revisions


def format_of_repository(made: Made) -> int:
    version: int = json.loads((made.root / "repository.json").read_text())["format"]
    return version


def formats(made: Made) -> list[int]:
    return [format_of(made.folder(each)) for each in revisions(made)]


def moved(made: Made, content: bytes) -> list[str]:
    """Back up; give the warnings."""
    listener = Listener()
    revision = backup(made.repository, MemorySource({"vda": content}), watcher=listener)
    made.contents[revision.id] = {"vda": content}
    assert list(revision.warnings) == listener.said
    return listener.said


def test_what_only_reads_leaves_a_repository_of_format_1_as_it_is(made: Made) -> None:
    first, second = revisions(made)
    assert [extent.start for _, extent in diff(made.repository, first, second)] == [PAGE]
    assert made.intact()
    assert format_of_repository(made) == 1
    assert formats(made) == [1, 1]
    assert not (made.root / "pages").exists()


def test_verify_scrub_and_tags_keep_the_format_of_a_revision(made: Made) -> None:
    assert list(verify(made.repository, revisions(made), origins=[])) == []
    assert list(Scrub(made.repository, MONTH).run(Limits(), origins=[])) == []
    retag(made.repository, revisions(made), add={"kept"}, drop=set())
    trash.purge(made.repository)
    assert formats(made) == [1, 1]
    assert format_of_repository(made) == 1
    assert {(each.trust, each.tags) for each in revisions(made)} == {(Trust.VERIFIED, ("kept",))}
    assert made.intact()


def test_the_next_backup_has_format_2_and_says_once_who_can_read_it(made: Made) -> None:
    [said] = moved(made, changed(LATER, 5))
    assert said.startswith("the repository has format 2 from now on; versions of backy that know")
    assert format_of_repository(made) == 2
    assert formats(made) == [1, 1, 2]
    assert moved(made, DISK) == []
    assert formats(made) == [1, 1, 2, 2]
    assert made.intact()
    assert list(verify(made.repository, revisions(made), origins=[])) == []


def test_the_next_backup_stores_only_what_changed_since_a_revision_of_format_1(made: Made) -> None:
    moved(made, changed(LATER, 5))
    old, new = revisions(made)[1:]
    assert new.parent == old.id
    assert new.disks["vda"].changed == BLOCK
    assert [extent.start for _, extent in diff(made.repository, old, new)] == [0]
    assert [extent.start for _, extent in diff(made.repository, new, old)] == [0]


def test_a_purge_of_revisions_of_both_formats_keeps_what_either_uses(made: Made) -> None:
    moved(made, changed(LATER, 5))
    first, second, third = revisions(made)
    trash.purge(made.repository, only=[second])
    assert made.intact()
    trash.purge(made.repository, only=[first])
    assert made.intact()
    assert [each.id for each in revisions(made)] == [third.id]
    assert list(verify(made.repository, revisions(made), origins=[])) == []


def test_a_repository_of_a_newer_format_is_refused_with_what_to_do(made: Made) -> None:
    path = made.root / "repository.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 3'))
    with pytest.raises(ConfigError, match="has format 3; this version of backy") as caught:
        Repository(made.root)
    assert caught.value.hint == "Update backy."


def test_a_revision_of_a_newer_format_is_left_alone_and_named(made: Made) -> None:
    record = made.folder(revisions(made)[0]) / "revision.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 3'))
    history = made.repository.history()
    [error] = history.unreadable.values()
    assert "has format 3" in error.message
    assert error.hint == "Update backy."
    assert len(history.revisions) == 1


def test_a_page_is_checked_although_an_index_of_format_1_has_the_same_lines(made: Made) -> None:
    made.backup(LATER)
    [lost, *_] = sorted(made.root.glob("twins/*/*"))
    lost.unlink()
    assert list(verify(made.repository, revisions(made), origins=())) == []
    assert bad_lists(made.root) == set()


def test_an_index_of_format_1_heals_a_page_that_is_lost(made: Made) -> None:
    made.backup(LATER)
    for path in made.root.glob("pages/*/*"):
        path.unlink()
        (made.root / "twins" / path.parent.name / path.name).unlink()
    damages = list(verify(made.repository, revisions(made), origins=()))
    assert damages
    assert all(damage.healed for damage in damages)
    assert bad_lists(made.root) == set()


def test_purge_keeps_no_pages_that_only_an_index_of_format_1_has_the_lines_of(made: Made) -> None:
    moved = made.backup(LATER)
    trash.remove(made.repository, [moved])
    trash.purge(made.repository)
    assert not [*made.root.glob("pages/*/*"), *made.root.glob("twins/*/*")]
    assert made.intact()
