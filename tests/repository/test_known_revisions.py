"""A long history is not read again by whoever has read it, and yet any change is seen at once."""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from backy.model.revision import Revision, Trust, id_for
from backy.repository import known_revisions, repository, trash
from backy.repository.known_revisions import KnownRevisions
from backy.repository.records import encode_record
from backy.repository.repository import Repository
from backy.units import KiB
from tests.lab.repositories import Made

FEW = 6


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A repository with a history that counts as long and as old."""
    monkeypatch.setattr(repository, "_FEW", FEW)
    monkeypatch.setattr(known_revisions, "_SETTLED", 0)
    made = Made(tmp_path)
    add(made.repository, made.backup(), 2 * FEW)
    return made


def add(repository: Repository, like: Revision, count: int) -> None:
    """Publish copies of a revision, each a minute older."""
    for number in range(1, count + 1):
        older = like.time - timedelta(minutes=number)
        copy = replace(like, id=id_for(older, "copy"), time=older, tags=("minutely",))
        folder = repository.folder / "revisions" / copy.id
        shutil.copytree(repository.folder / "revisions" / like.id, folder)
        (folder / "revision.json").write_bytes(encode_record(copy))


def read_again(repository: Repository, known: KnownRevisions) -> int:
    """How many revisions are not those that a first look remembered."""
    first = {id(revision): revision for revision in repository.history(known).revisions}
    return sum(id(revision) not in first for revision in repository.history(known).revisions)


def test_a_long_history_is_read_once(made: Made) -> None:
    known = KnownRevisions()
    assert made.repository.history(known) == made.repository.history()
    assert read_again(made.repository, known) == 0


def test_a_short_history_is_not_remembered(made: Made) -> None:
    history = made.repository.history().revisions
    trash.remove(made.repository, history[FEW:])
    assert read_again(made.repository, KnownRevisions()) == FEW


def record(repository: Repository, revision: Revision) -> Path:
    return repository.folder / "revisions" / revision.id / "revision.json"


def distrust(repository: Repository, revision: Revision) -> None:
    repository.change(revision, lambda old: replace(old, trust=Trust.DISTRUSTED))


def distrust_by_hand(repository: Repository, revision: Revision) -> None:
    """In place, with as many bytes and the old time of modification."""
    path = record(repository, revision)
    before = path.stat()
    content = path.read_bytes().replace(b'"trusted"', b'"distrusted"').replace(b"  ", b" ", 9)
    path.write_bytes(content + b" " * (before.st_size - len(content)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def next_one(repository: Repository, revision: Revision) -> Revision:
    history = repository.history().revisions
    return history[history.index(revision) + 1]


def swap(repository: Repository, revision: Revision) -> None:
    """The record of the next one, as it is, under this name: it cannot be this revision's."""
    other = record(repository, next_one(repository, revision))
    shutil.copyfile(other, record(repository, revision))


def link(repository: Repository, revision: Revision) -> None:
    """The same, without a new file."""
    other = record(repository, next_one(repository, revision))
    record(repository, revision).unlink()
    record(repository, revision).hardlink_to(other)


def move(repository: Repository, revision: Revision) -> None:
    """Its folder lies elsewhere, and a link leads there: nobody follows it."""
    folder = record(repository, revision).parent
    folder.rename(repository.folder / "elsewhere")
    folder.symlink_to(repository.folder / "elsewhere")


CHANGES: dict[str, Callable[[Repository, Revision], object]] = {
    "distrusted": distrust,
    "distrusted-by-hand": distrust_by_hand,
    "removed": lambda repository, revision: trash.remove(repository, [revision]),
    "overwritten": swap,
    "a-hard-link-to-another": link,
    "behind-a-link": move,
    "unreadable": lambda repository, revision: record(repository, revision).write_bytes(b"{"),
    "without-a-record": lambda repository, revision: record(repository, revision).unlink(),
    "a-new-one": lambda repository, _: add(repository, repository.history().revisions[0], 1),
    "another-block-size": lambda repository, _: repository.change_settings(
        replace(repository.settings, block_size=128 * KiB)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen_at_once(
    made: Made, change: Callable[[Repository, Revision], object]
) -> None:
    known = KnownRevisions()
    before = made.repository.history(known).revisions
    change(made.repository, before[7])
    now, truth = made.repository.history(known), made.repository.history()
    assert now.revisions == truth.revisions != before
    assert now.problems == truth.problems


def test_a_record_that_was_written_a_moment_ago_may_be_so_again_and_is_not_remembered(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Within the same step of the file system's clock, by a file with the same number.
    monkeypatch.setattr(known_revisions, "_SETTLED", 3600 * 10**9)
    assert read_again(made.repository, KnownRevisions()) == 2 * FEW + 1


def test_a_record_from_the_future_is_not_remembered(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_hour_ago = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: an_hour_ago)  # the clock was set back
    assert read_again(made.repository, KnownRevisions()) == 2 * FEW + 1


def test_a_record_that_is_replaced_while_it_is_read_is_the_new_one_from_then_on(made: Made) -> None:
    known, revision = KnownRevisions(), made.repository.history().revisions[3]
    path = made.repository.folder_of(revision) / "revision.json"
    before = path.status()
    distrust(made.repository, revision)
    seen = [known.revision(path, status, 64 * KiB) for status in (before, path.status())]
    assert [each.trust for each in seen] == [Trust.DISTRUSTED, Trust.DISTRUSTED]


@pytest.mark.parametrize("most", [0, 5 * KiB], ids=["none", "some"])
def test_what_is_remembered_has_a_bound_and_all_of_it_is_told_beyond_it(
    made: Made, most: int
) -> None:
    known = KnownRevisions(most)
    for _ in range(3):
        assert made.repository.history(known) == made.repository.history()
    assert read_again(made.repository, known) > FEW


def test_threads_that_share_what_they_remember_see_the_same(made: Made) -> None:
    known, truth = KnownRevisions(5 * KiB), made.repository.history()
    with ThreadPoolExecutor(4) as pool:
        seen = [*pool.map(lambda _: made.repository.history(known), range(20))]
    assert all(each == truth for each in seen)
