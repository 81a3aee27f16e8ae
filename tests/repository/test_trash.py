"""Removing frees nothing, undo brings back, purge frees what nobody names and nobody reads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from backy.errors import BusyError, NotFoundError
from backy.model.revision import Revision, time_of
from backy.repository import trash
from tests.lab.paged import place
from tests.lab.repositories import BLOCK, Made, names
from tests.memory_source import sample

READER = """
import sys
from pathlib import Path
from typing import Self
from backy.repository.repository import Repository
repository = Repository(Path(sys.argv[1]))
with repository.reading(repository.find(sys.argv[2])):
    print("reading", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture(params=["chunks", "images"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A repository in each of both stores."""
    base = tmp_path
    if request.param == "images":
        base = request.getfixturevalue("reflink_folder")
    return Made(base, request.param)


def age(made: Made, days: int = 400) -> None:
    """Have everything in the trash been removed on a day long ago."""
    for batch in sorted((made.root / "trash").iterdir()):
        year = int(batch.name[:4]) - days // 365
        batch.rename(batch.with_name(f"{year}{batch.name[4:]}"))


def test_removed_revisions_are_gone_from_the_history_and_come_back_whole(either: Made) -> None:
    first, second, third = (either.backup(sample(200_000, seed)) for seed in range(3))
    trash.remove(either.repository, [first, third])
    assert either.ids() == [second.id]
    assert set(trash.undo(either.repository)) == {first.id, third.id}
    assert either.ids() == [first.id, second.id, third.id]
    assert either.intact()


def test_undo_brings_back_one_batch_at_a_time_the_newest_first(made: Made) -> None:
    revisions = [made.backup(sample(1000, seed)) for seed in range(4)]
    trash.remove(made.repository, revisions[2:])
    trash.remove(made.repository, revisions[:1])
    trash.remove(made.repository, revisions[1:2])
    assert trash.undo(made.repository) == [revisions[1].id]
    assert trash.undo(made.repository) == [revisions[0].id]
    assert trash.undo(made.repository) == [revisions[2].id, revisions[3].id]
    with pytest.raises(NotFoundError, match="vm1: the trash is empty"):
        trash.undo(made.repository)


def test_the_trash_says_when_its_oldest_and_its_newest_revisions_were_removed(made: Made) -> None:
    revisions = [made.backup(sample(1000, seed)) for seed in range(3)]
    assert trash.removed(made.repository) is None
    for revision in revisions:
        trash.remove(made.repository, [revision])
    times = [time_of(name) for name in names(made.root / "trash")]
    assert trash.removed(made.repository) == (times[0], times[2])
    trash.undo(made.repository)  # which leaves an empty folder
    assert trash.removed(made.repository) == (times[0], times[1])
    trash.undo(made.repository)
    trash.undo(made.repository)
    assert trash.removed(made.repository) is None


def test_what_was_removed_twice_over_is_undone_as_one_batch_again(made: Made) -> None:
    revision = made.backup()
    for _ in range(3):
        trash.remove(made.repository, [revision])
        assert trash.undo(made.repository) == [revision.id]
    assert made.ids() == [revision.id]


def test_removing_what_is_gone_names_it(made: Made) -> None:
    revision = made.backup()
    trash.remove(made.repository, [revision])
    with pytest.raises(NotFoundError, match=f"vm1: revision {revision.id} was removed already"):
        trash.remove(made.repository, [revision])
    assert trash.undo(made.repository) == [revision.id]


def test_removing_frees_nothing(made: Made) -> None:
    revision = made.backup(sample(200_000))
    chunks = made.chunks()
    trash.remove(made.repository, [revision])
    made.backup(sample(200_000, seed=1))
    assert made.chunks() > chunks


def test_purge_drops_exactly_the_chunks_and_pages_that_no_revision_names(made: Made) -> None:
    shared, only_old = sample(BLOCK), sample(BLOCK, seed=1)
    old = made.backup(shared + only_old)
    new = made.backup(shared + sample(BLOCK, seed=2))
    unused = {made.chunk(old, 1), *made.pages(old)[0]}
    unused.add(place(made.root, "twins", old.disks["vda"].index_hash))
    size = sum(path.stat().st_size for path in unused)
    before = made.stored()
    trash.remove(made.repository, [old])
    purged = trash.purge(made.repository)
    assert (purged.revisions, purged.kept, purged.freed) == ((old.id,), (), size)
    assert before - made.stored() == unused
    assert (made.ids(), purged.unknown) == ([new.id], ())
    assert made.intact()


def test_purge_drops_what_failed_and_killed_backups_left(made: Made) -> None:
    revision = made.backup(sample(3 * BLOCK))
    named = made.stored()
    folder = made.chunk(revision, 0).parent
    for name in ("0" * 64 + ".zst", f".{'1' * 64}.zst.4711", f".{'1' * 64}.4711"):
        (folder / name).write_bytes(b"torn")
    for path in made.pages(revision)[0]:
        for name in ("0" * 64, f".{'1' * 64}.4711"):
            (path.parent / name).write_bytes(b"torn")
    purged = trash.purge(made.repository)
    assert (purged.freed, purged.foreign) == (28, ())
    assert made.stored() == named
    assert made.intact()


def test_purge_takes_all_that_was_removed_even_in_this_very_second(made: Made) -> None:
    revisions = [made.backup(sample(1000, seed)) for seed in range(4)]
    for revision in revisions:
        trash.remove(made.repository, [revision])
    assert set(trash.purge(made.repository).revisions) == {each.id for each in revisions}
    assert names(made.root / "trash") == []


def test_purge_leaves_what_was_removed_more_recently_than_asked(made: Made) -> None:
    old, young, kept = (made.backup(sample(BLOCK, seed)) for seed in range(3))
    trash.remove(made.repository, [old])
    age(made)
    trash.remove(made.repository, [young])
    purged = trash.purge(made.repository, older_than_seconds=3600)
    assert (purged.revisions, purged.kept) == ((old.id,), (young.id,))
    assert trash.undo(made.repository) == [young.id]
    assert made.ids() == [young.id, kept.id]
    assert made.intact()


def test_a_purge_cannot_be_undone(made: Made) -> None:
    trash.remove(made.repository, [made.backup()])
    age(made)
    trash.purge(made.repository)
    with pytest.raises(NotFoundError, match="the trash is empty") as caught:
        trash.undo(made.repository)
    assert "cannot be undone" in caught.value.hint


@pytest.fixture
def reader(made: Made) -> Iterator["Reader"]:
    with Reader(made) as reader:
        yield reader


class Reader:
    """Another process that reads a revision until it is told to stop."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def start(self, revision: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, self.made.root, revision],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == b"reading\n"

    def stop(self) -> None:
        if self.process:
            self.process.communicate()
            self.process = None

    def __exit__(self, *_: object) -> None:
        self.stop()


def test_purge_leaves_what_somebody_reads_until_they_are_done(made: Made, reader: Reader) -> None:
    revision = made.backup(sample(3 * BLOCK))
    chunks = made.chunks()
    reader.start(revision.id)
    trash.remove(made.repository, [revision])
    age(made)
    purged = trash.purge(made.repository)
    assert (purged.revisions, purged.kept, purged.freed) == ((), (revision.id,), 0)
    assert made.chunks() == chunks
    reader.stop()
    assert trash.purge(made.repository).revisions == (revision.id,)
    assert made.chunks() == set()


def test_a_purge_that_was_killed_is_finished_by_the_next(made: Made) -> None:
    revision = made.backup(sample(3 * BLOCK))
    trash.remove(made.repository, [revision])
    [batch] = (made.root / "trash").iterdir()
    (batch / revision.id).rename(made.root / "trash" / f".{revision.id}")
    assert trash.purge(made.repository).freed > 0
    assert names(made.root / "trash") == []
    assert made.chunks() == set()


def test_purge_waits_for_no_backup_but_says_who_runs_it(made: Made) -> None:
    busy = pytest.raises(BusyError, match=rf"purge skipped, held by backy\[{os.getpid()}\]")
    with made.repository.exclusive("backup"), busy:
        trash.purge(made.repository)


def spoil(made: Made, revision: Revision, what: str) -> None:
    """Cut a file that says what a revision uses, in all copies."""
    index = place(made.root, "twins", revision.disks["vda"].index_hash)
    paths = {
        "revision.json": [made.folder(revision) / "revision.json"],
        "index": [made.folder(revision) / "vda.blocks", index],
        "page": made.pages(revision)[0],
    }
    for path in paths[what]:
        path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("what", ["revision.json", "index", "page"])
@pytest.mark.parametrize("where", ["history", "trash"])
def test_purge_keeps_what_it_cannot_rule_out_and_deletes_the_revisions(
    made: Made, what: str, where: str
) -> None:
    damaged, other = made.backup(sample(3 * BLOCK)), made.backup(sample(3 * BLOCK, seed=1))
    third = made.backup(sample(3 * BLOCK, seed=2))
    spoil(made, damaged, what)
    trash.remove(made.repository, [other])
    purged = ({path: path.read_bytes() for path in made.stored()}, trash.purge(made.repository))
    assert purged[1].revisions == (other.id,)
    before = purged[0]
    if where == "trash":
        trash.remove(made.repository, [damaged])
    for result in (purged[1], trash.purge(made.repository, older_than_seconds=3600)):
        [unknown] = result.unknown
        assert str(made.root) in unknown
    gone = before.keys() - made.stored()
    # The pages and the index of the purged revision are used by nobody, if all indexes are known.
    assert {path.parent.parent.name for path in gone} <= {"pages", "twins"}
    assert bool(gone) is (what == "page")
    assert made.read(third) == made.contents[third.id]["vda"]


@pytest.mark.parametrize("what", ["revision.json", "index", "page"])
def test_once_what_cannot_be_read_is_purged_all_that_is_unused_is_freed(
    made: Made, what: str
) -> None:
    damaged, other = made.backup(sample(3 * BLOCK)), made.backup(sample(3 * BLOCK, seed=1))
    third = made.backup(sample(3 * BLOCK, seed=2))
    spoil(made, damaged, what)
    trash.remove(made.repository, [other])
    assert trash.purge(made.repository).unknown
    trash.remove(made.repository, [damaged])
    purged = trash.purge(made.repository)
    assert (purged.revisions, purged.unknown) == ((damaged.id,), ())
    index = place(made.root, "twins", third.disks["vda"].index_hash)
    chunks = {made.chunk(third, number) for number in range(3)}
    assert made.stored() == {index, *chunks, *made.pages(third)[0]}
    assert made.intact()


def test_purge_reads_a_page_of_which_one_copy_is_left(made: Made) -> None:
    revision, other = made.backup(sample(3 * BLOCK)), made.backup(sample(3 * BLOCK, seed=1))
    page, twin = made.pages(revision)[0]
    page.unlink()
    trash.remove(made.repository, [other])
    assert not trash.purge(made.repository).unknown
    assert page.read_bytes() == twin.read_bytes()
    assert len(made.chunks()) == 3


def test_purge_does_not_take_pages_that_others_of_another_disk_share(made: Made) -> None:
    content = sample(3 * BLOCK)
    old, new = made.backup(vda=content), made.backup(vdb=content)
    trash.remove(made.repository, [old])
    trash.purge(made.repository)
    assert made.read(new, "vdb") == content
    assert made.intact()


def test_revisions_in_the_trash_keep_their_chunks(made: Made) -> None:
    revision = made.backup(sample(3 * BLOCK))
    trash.remove(made.repository, [revision])
    trash.purge(made.repository, older_than_seconds=3600)
    trash.undo(made.repository)
    assert made.intact()
