"""Removing frees nothing, undo brings back, purge frees what nobody names and nobody reads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from backy.errors import BusyError, DamagedError, NotFoundError
from backy.repository import trash
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


def test_purge_drops_exactly_the_chunks_that_no_revision_names(made: Made) -> None:
    shared, only_old = sample(BLOCK), sample(BLOCK, seed=1)
    old = made.backup(shared + only_old)
    new = made.backup(shared + sample(BLOCK, seed=2))
    gone = made.chunk(old, 1)
    size = gone.stat().st_size
    before = made.chunks()
    trash.remove(made.repository, [old])
    purged = trash.purge(made.repository)
    assert (purged.revisions, purged.kept, purged.freed) == ((old.id,), (), size)
    assert before - made.chunks() == {gone.name}
    assert made.ids() == [new.id]
    assert made.intact()


def test_purge_drops_what_failed_and_killed_backups_left(made: Made) -> None:
    revision = made.backup(sample(3 * BLOCK))
    named = made.chunks()
    folder = made.chunk(revision, 0).parent
    for name in ("0" * 64 + ".zst", f".{'1' * 64}.zst.4711", f".{'1' * 64}.4711"):
        (folder / name).write_bytes(b"torn")
    purged = trash.purge(made.repository)
    assert purged.freed == 12
    assert made.chunks() == named
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


@pytest.mark.parametrize("file", ["revision.json", "vda.blocks"])
@pytest.mark.parametrize("place", ["history", "trash"])
def test_purge_touches_no_chunk_while_it_cannot_tell_what_is_named(
    made: Made, file: str, place: str
) -> None:
    damaged, other = made.backup(sample(3 * BLOCK)), made.backup(sample(3 * BLOCK, seed=1))
    path = made.repository.folder_of(damaged).path / file
    path.write_bytes(path.read_bytes()[:-70])
    if place == "trash":
        trash.remove(made.repository, [damaged])
    trash.remove(made.repository, [other])
    chunks = made.chunks()
    with pytest.raises(DamagedError, match=damaged.id):
        trash.purge(made.repository, older_than_seconds=3600)
    assert made.chunks() == chunks


def test_revisions_in_the_trash_keep_their_chunks(made: Made) -> None:
    revision = made.backup(sample(3 * BLOCK))
    trash.remove(made.repository, [revision])
    trash.purge(made.repository, older_than_seconds=3600)
    trash.undo(made.repository)
    assert made.intact()
