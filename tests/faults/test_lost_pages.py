"""What is kept twice is lost in one place, in both, or whole folders of it: what is lost then.

A small disk and one of two pages, in three revisions; the first page of the latter is shared by two
of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backy.errors import DamagedError
from backy.model.revision import Trust
from backy.operations.backup import backup
from backy.operations.verify import verify
from backy.repository import trash
from backy.repository.repository import Repository
from tests.faults.damages import JOB, Whole, run
from tests.lab.indexes import COPIES, bad_lists, lists_of
from tests.lab.needs import need, no_mounts
from tests.lab.paged import LINES, page_names, place
from tests.lab.reflink import unmount
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import MemorySource

WIDE = LINES * BLOCK  # bytes of a page


@pytest.fixture
def whole(place: tuple[str, Path]) -> Whole:
    """The repository in each of both stores."""
    store, folder = place
    return Whole(folder, store)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where disks are restored to."""
    return tmp_path / "restored.img"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Three revisions of a disk of two pages in chunks; the first two share the first page."""
    repository = Made(tmp_path)
    for first, second in (("a", "b"), ("a", "c"), ("d", "e")):
        repository.backup(disk(first, second))
    return repository


def disk(first: str, second: str) -> bytes:
    """A disk of two pages, with a block of data in each."""
    return (first * BLOCK).encode().ljust(WIDE, b"\0") + (second * BLOCK).encode() + bytes(777)


def page(made: Made, revision: int, number: int) -> str:
    """The name of a page."""
    return page_names(made.root / "revisions" / made.ids()[revision], "vda")[number]


def lose(root: Path, name: str) -> None:
    """Damage both copies of a page."""
    for folder in COPIES:
        place(root, folder, name).write_bytes(b"torn")


def restores(whole: Whole, base: Path, target: Path) -> Iterator[tuple[str, str, bytes]]:
    """Each disk of each revision, with what a restore gives."""
    for revision, name in whole.lines:
        said = run(base, "restore", JOB, target, "-r", revision, "--disk", name)
        assert said.code == 0, said
        yield revision, name, target.read_bytes()
        target.unlink()


@pytest.mark.parametrize("first", ["verify", "scrub", "restore"])
@pytest.mark.parametrize("lost", COPIES)
def test_a_folder_with_one_copy_of_everything_comes_back_from_the_other(
    whole: Whole, target: Path, lost: str, first: str
) -> None:
    base = whole.copy()
    shutil.rmtree(base / JOB / lost)
    if first == "restore":
        for revision, name, content in restores(whole, base, target):
            assert content == whole.contents[revision][name]
    (base / JOB / "scrub.json").unlink()  # so that a scrub reads all of it
    said = run(base, "scrub" if first == "scrub" else "verify", JOB)
    assert said.code == 0, said
    assert [each for each in said.events if each["event"] == "damage"] == []
    assert lists_of(base / JOB) == lists_of(whole.root)
    assert bad_lists(base / JOB) == set()


def test_both_folders_and_all_indexes_lost_are_only_damage(whole: Whole, target: Path) -> None:
    base = whole.copy()
    for folder in COPIES:
        shutil.rmtree(base / JOB / folder)
    said = run(base, "verify", JOB)
    lost = {each["revision"] for each in said.events if each["event"] == "damage"}
    assert lost == set(whole.ids)
    assert said.code == (6 if whole.store == "chunks" else 0)
    if whole.store == "images":  # whose blocks say what was in the pages
        assert bad_lists(base / JOB) == set()
        for revision, name, content in restores(whole, base, target):
            assert content == whole.contents[revision][name]


def test_of_a_disk_with_a_lost_page_all_the_rest_is_restored(made: Made, target: Path) -> None:
    lose(made.root, page(made, 0, 0))
    for revision, content in made.contents.items():
        said = run(made.base, "restore", JOB, target, "-r", revision, "--keep-going")
        is_lost = revision in made.ids()[:2]
        assert said.code == (6 if is_lost else 0), said
        expected = content["vda"]
        assert target.read_bytes() == (bytes(WIDE) + expected[WIDE:] if is_lost else expected)
        target.unlink()
    damaged = [each.damaged.get("vda") for each in made.repository.history().revisions]
    assert damaged == [((0, WIDE),), ((0, WIDE),), None]


def test_a_lost_page_is_made_again_from_the_source_if_that_still_has_its_range(
    made: Made, tmp_path: Path
) -> None:
    lose(made.root, page(made, 0, 0))
    lose(made.root, page(made, 0, 1))
    source = tmp_path / "source.img"
    source.write_bytes(disk("a", "x"))
    made.repository.remember_source({"type": "file", "disks": {"vda": str(source)}})
    said = run(made.base, "verify", JOB)
    assert said.code == 6
    found = {
        (each["revision"], each["start"], each["healed"])
        for each in said.events
        if each["event"] == "damage"
    }
    first, second, _ = made.ids()
    assert found == {
        (first, 0, "the source"), (second, 0, "the source"), (first, WIDE, None),
    }  # fmt: skip
    trust = {each.id: each.trust for each in made.repository.history().revisions}
    assert [each for each in trust if trust[each] is Trust.DISTRUSTED] == [first]


# Purge.


def test_a_purge_keeps_the_blocks_that_a_lost_page_may_name_until_its_revisions_are_gone(
    made: Made,
) -> None:
    lost = page(made, 0, 1)
    path = place(made.root, "pages", lost)
    blocks = path.read_text().split()
    lose(made.root, lost)
    first, second, third = made.repository.history().revisions
    trash.remove(made.repository, [third])
    before = made.chunks()
    unused = place(made.root, "pages", page_names_in_trash(made.root, third.id)[0])
    purged = trash.purge(made.repository)
    assert purged.revisions == (third.id,)
    assert len(purged.unknown) == 1
    assert lost in purged.unknown[0]
    assert made.chunks() == before
    assert not unused.exists()  # which index names it is known for sure
    trash.remove(made.repository, [first])
    purged = trash.purge(made.repository)
    assert purged.unknown == ()
    used = {line for name in page_names(made.root / "revisions" / second.id, "vda")
            for line in place(made.root, "pages", name).read_text().split()}  # fmt: skip
    assert {name.partition(".")[0] for name in made.chunks()} == used
    assert not used.issuperset(blocks)
    assert made.intact()


def page_names_in_trash(root: Path, revision: str) -> list[str]:
    """The pages of a revision that was removed."""
    [folder] = (root / "trash").glob(f"*/{revision}")
    return page_names(folder, "vda")


def test_a_purge_keeps_every_page_that_a_lost_index_may_name_until_its_revision_is_gone(
    made: Made,
) -> None:
    first, _, third = made.repository.history().revisions
    index = first.disks["vda"].index_hash
    for path in (made.root / f"revisions/{first.id}/vda.blocks",
                 place(made.root, "twins", index)):  # fmt: skip
        path.write_bytes(b"torn")
    trash.remove(made.repository, [third])
    pages = {path.name for path in made.root.glob("pages/*/*")}
    chunks = made.chunks()
    purged = trash.purge(made.repository)
    assert purged.revisions == (third.id,)
    assert [first.id in text for text in purged.unknown] == [True]
    assert {path.name for path in made.root.glob("pages/*/*")} == pages
    assert made.chunks() == chunks
    trash.remove(made.repository, [first])
    assert trash.purge(made.repository).unknown == ()
    assert {f"pages/{path.name[:2]}/{path.name}" for path in made.root.glob("pages/*/*")} == {
        each for each in lists_of(made.root) if each.startswith("pages")
    }
    assert made.intact()


# Backups over lost pages.


@pytest.mark.parametrize("damage", [b"torn", None], ids=["torn", "missing"])
@pytest.mark.parametrize("knows", [True, False], ids=["with-hints", "without"])
def test_a_backup_reads_again_what_a_lost_page_of_its_parent_had(
    made: Made, damage: bytes | None, knows: bool
) -> None:
    for number in (0, 1):
        for folder in COPIES:
            path = place(made.root, folder, page(made, 2, number))
            path.unlink()
            if damage:
                path.write_bytes(damage)
    content = disk("d", "f")
    source = MemorySource({"vda": content}, made.contents if knows else {})
    revision = backup(made.repository, source)
    assert made.read(revision) == content
    assert made.repository.find(made.ids()[2]).trust is not Trust.DISTRUSTED
    assert made.read(made.repository.history().revisions[0]) == disk("a", "b")
    assert [each.revision for each in verify(made.repository, [revision], origins=[])] == []


def test_a_backup_never_builds_upon_a_torn_page_that_a_killed_one_left(made: Made) -> None:
    content = disk("new", "newer")
    other = Made(made.base / "other")
    revision = other.backup(content)
    names = page_names(other.root / "revisions" / revision.id, "vda")
    for name in names:
        for folder in COPIES:
            path = place(made.root, folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(place(other.root, "pages", name).read_bytes()[:4096])
    made.backup(content)
    assert made.intact()
    assert bad_lists(made.root) == set()


# Repairs where something is in their way.


@contextmanager
def read_only(base: Path, mounted: Path) -> Iterator[None]:
    """In the body `mounted` is `base`, and cannot be written to, not even by root."""
    need(no_mounts())
    mounted.mkdir()
    subprocess.run(["mount", "--bind", base, mounted], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        yield
    finally:
        unmount(mounted)


def test_a_repository_that_is_read_only_is_restored_from_the_good_copies(
    whole: Whole, target: Path, tmp_path: Path
) -> None:
    base, mounted = whole.copy(), tmp_path / "mounted"
    shutil.rmtree(base / JOB / "pages")
    (base / JOB / "revisions" / whole.ids[0] / "vda.blocks").unlink()
    with read_only(base, mounted):
        for revision, name, content in restores(whole, mounted, target):
            assert content == whole.contents[revision][name]


def test_two_that_mend_the_same_files_at_once_mend_them(whole: Whole) -> None:
    for _ in range(5):
        base = whole.copy()
        for path in (base / JOB / "pages").glob("*/*"):
            path.write_bytes(b"torn")
        for path in (base / JOB / "revisions").glob("*/*.blocks"):
            path.write_bytes(b"torn")
        found: list[object] = []

        def look(base: Path = base, found: list[object] = found) -> None:
            repository = Repository(base / JOB)
            found.append(list(verify(repository, repository.history().revisions, origins=[])))

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [[], []]
        assert bad_lists(base / JOB) == set()
        assert not list((base / JOB).rglob(".*[0-9]"))


def test_a_revision_that_was_removed_meanwhile_is_not_made_again_from_the_twin_of_its_index(
    made: Made,
) -> None:
    revision = made.repository.history().revisions[0]
    trash.remove(made.repository, [revision])
    with (
        pytest.raises(DamagedError, match="No such file"),
        made.repository.store.open_index(revision, "vda"),
    ):
        pass
    assert list(verify(made.repository, [revision], origins=[])) == []
    assert not (made.root / "revisions" / revision.id).exists()
    assert trash.undo(made.repository) == [revision.id]
    assert made.intact()


def test_a_record_with_another_number_of_blocks_costs_no_other_revision_a_page(made: Made) -> None:
    first, second, _ = made.repository.history().revisions
    made.backup(disk("a", "b"))
    path = made.root / "revisions" / first.id / "revision.json"
    record = json.loads(path.read_text())
    record["disks"]["vda"]["size"] -= BLOCK
    path.write_text(json.dumps(record))
    found = list(verify(made.repository, made.repository.history().revisions, origins=[]))
    assert {each.revision for each in found} == {first.id}
    assert second.id not in {each.revision for each in found}
