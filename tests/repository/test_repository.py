"""One VM's folder: who waits for whom, what publishes a revision, and what order they have."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backy.errors import (
    BackyError,
    BusyError,
    ConfigError,
    DamagedError,
    FullError,
    NotFoundError,
    SourceError,
    StoreError,
)
from backy.model.names import check_job
from backy.model.revision import Trust
from backy.operations.backup import backup
from backy.operations.restore import restore
from backy.operations.verify import verify
from backy.repository import repository, trash
from backy.repository.base import jobs
from backy.repository.create import create
from backy.repository.draft import draft_revision
from backy.repository.records import Settings, encode_record
from backy.repository.repository import Repository
from backy.repository.tags import retag
from backy.system import files, folders
from tests.lab.repositories import BLOCK, Made, names
from tests.memory_source import FailingSource, sample

HOLDER = """
import sys
from pathlib import Path
from backy.repository.repository import Repository
with Repository(Path(sys.argv[1])).exclusive("backup"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@contextmanager
def held_by_another_process(made: Made) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody who is backing up until the context ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, made.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


# Locks.


def test_the_second_of_two_backups_names_the_holder_and_since_when(made: Made) -> None:
    with held_by_another_process(made) as process:
        with pytest.raises(BusyError) as caught:
            made.backup()
        today = f"{datetime.now(UTC):%Y-}"
        expected = f"vm1: backup skipped, held by backy[{process.pid}] (backup) since {today}"
        assert caught.value.message.startswith(expected)


def test_a_lock_ends_with_a_process_that_was_killed(made: Made) -> None:
    with held_by_another_process(made) as process:
        process.kill()
        process.wait()
        made.backup()
    assert len(made.ids()) == 1


def test_a_lock_is_free_again_after_a_failure(made: Made) -> None:
    with pytest.raises(KeyboardInterrupt), made.repository.exclusive("backup"):
        raise KeyboardInterrupt
    made.backup()


Verb = Callable[[Made], object]
VERBS: dict[str, Verb] = {
    "backup": lambda made: made.backup(b"more"),
    "purge": lambda made: trash.purge(made.repository),
    "remove": lambda made: trash.remove(made.repository, made.repository.history().revisions[:1]),
    "undo": lambda made: trash.undo(made.repository),
    "tag": lambda made: retag(
        made.repository, made.repository.history().revisions[:1], add={"x"}, drop=set()
    ),
    "verify": lambda made: list(
        verify(made.repository, made.repository.history().revisions[:1], origins=[])
    ),
    "restore": lambda made: restore(
        made.repository,
        made.repository.history().revisions[0],
        "vda",
        str(made.base.parent / "target"),
        origins=[],
    ),
    "list": lambda made: made.repository.history().revisions,
}
Lock = Callable[[Made], AbstractContextManager[object]]
LOCKS: dict[str, Lock] = {
    "backup or purge": lambda made: made.repository.exclusive("backup"),
    "history": lambda made: made.repository.history_lock(),
    "being read": lambda made: made.repository.reading(made.repository.history().revisions[0]),
    "being purged": lambda made: folders.locked(
        made.repository.folder_of(made.repository.history().revisions[0]).path
    ),
}
WAITS = {
    "backup or purge": {"backup", "purge"},
    "history": {"backup", "purge", "remove", "undo", "tag", "verify"},
    "being read": set[str](),
    "being purged": {"verify", "restore"},
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("lock", LOCKS)
def test_who_waits_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str, verb: str
) -> None:
    """With no patience, whoever would have to wait gives up; nobody else notices the lock."""
    monkeypatch.setattr(repository, "PATIENCE", 0)
    made = Made(tmp_path / "base")
    for content in (b"one", b"two", b"three"):
        made.backup(content)
    trash.remove(made.repository, made.repository.history().revisions[-1:])
    before = made.ids()
    with LOCKS[lock](made):
        if verb in WAITS[lock]:
            with pytest.raises((BusyError, NotFoundError)):
                VERBS[verb](made)
            assert made.ids() == before
        else:
            VERBS[verb](made)


def test_who_waits_goes_on_when_it_is_their_turn(made: Made) -> None:
    first, second = made.backup(b"one"), made.backup(b"two")
    with made.repository.history_lock():
        waiting = threading.Thread(target=trash.remove, args=(made.repository, [first]))
        waiting.start()
        assert made.ids() == [first.id, second.id]
        assert waiting.is_alive()
    waiting.join()
    assert made.ids() == [second.id]


def test_reading_what_was_removed_says_so_and_makes_nothing(made: Made) -> None:
    revision = made.backup()
    trash.remove(made.repository, [revision])
    gone = pytest.raises(NotFoundError, match=f"revision {revision.id} is gone")
    with gone, made.repository.reading(revision):
        pytest.fail("it was read")
    assert names(made.root / "revisions") == []
    assert trash.undo(made.repository) == [revision.id]


# Publishing.


STEPS = [
    (files.File, "barrier"),
    (folders, "write_file"),
    (folders, "rename"),
    (folders, "sync_folder"),
]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is asked of the disk from now on: the step, and the name of the file or folder."""
    steps: list[tuple[str, str]] = []

    def record(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def step(first: files.File | Path, *rest: object) -> object:
            path = first.path if isinstance(first, files.File) else first
            steps.append((name, path.name))
            return real(first, *rest)

        monkeypatch.setattr(owner, name, step)

    for owner, name in STEPS:
        record(owner, name)
    return steps


def test_a_revision_is_published_last_and_in_an_order_that_survives_a_power_cut(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made.repository.exclusive("backup"):
        pass
    steps = recorded(monkeypatch)
    revision = made.backup(sample(3 * BLOCK))
    begin = steps.index(("barrier", "lock"))
    recorded_success = ("write_file", "status.json")
    assert steps[begin : steps.index(recorded_success)] == [
        ("barrier", "lock"),
        ("write_file", "revision.json"),
        ("rename", ".revision.json.new"),
        ("sync_folder", f".{revision.id}"),
        ("rename", f".{revision.id}"),
        ("sync_folder", "revisions"),
    ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(errno.EIO, StoreError, id="EIO"),
        pytest.param(errno.ENOSPC, FullError, id="ENOSPC"),
    ],
)
@pytest.mark.parametrize(("owner", "step"), STEPS[:3], ids=["barrier", "revision.json", "rename"])
def test_a_step_of_publishing_that_fails_leaves_the_history_as_it_was(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    step: str,
    error: int,
    kind: type[BackyError],
) -> None:
    before = made.backup(sample(3 * BLOCK))

    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, fail)
        with pytest.raises(kind, match="vm1: publishing"):
            made.backup(sample(3 * BLOCK, seed=1))
    assert names(made.root / "revisions") == [before.id]
    after = made.backup(sample(3 * BLOCK, seed=1))
    assert made.ids() == [before.id, after.id]
    assert made.intact()


def test_a_source_that_fails_leaves_the_history_as_it_was(made: Made) -> None:
    before = made.backup(sample(3 * BLOCK))
    with pytest.raises(SourceError, match="input/output error"):
        backup(made.repository, FailingSource({"vda": sample(3 * BLOCK, seed=1), "vdb": b"x"}))
    assert names(made.root / "revisions") == [before.id]
    assert made.intact()


def test_what_a_killed_backup_left_vanishes_at_the_next(made: Made) -> None:
    before = made.backup()
    draft = made.root / "revisions" / ".20261123T004938Z-x7k2"
    draft.mkdir()
    (draft / "vda.blocks").write_bytes(bytes(65))
    assert made.ids() == [before.id]
    after = made.backup(b"more")
    assert names(made.root / "revisions") == [before.id, after.id]


def test_a_draft_is_no_revision_until_it_is_published(made: Made) -> None:
    with made.repository.exclusive("backup"), draft_revision(made.repository) as draft:
        assert draft.folder.is_folder()
        assert made.ids() == []


# Order.


def rename_to(made: Made, time: datetime) -> str:
    """Have the only revision been made at another time."""
    [revision] = made.repository.history().revisions
    new = replace(revision, id=f"{time:%Y%m%dT%H%M%SZ}{revision.id[16:]}", time=time)
    folder = made.repository.folder_of(revision).path
    made.contents[new.id] = made.contents[revision.id]
    folder.rename(folder.with_name(new.id))
    (folder.with_name(new.id) / "revision.json").write_bytes(encode_record(new))
    return new.id


def test_the_history_has_the_order_of_backups_even_if_the_clock_goes_back(made: Made) -> None:
    made.backup(b"0")
    tomorrow = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    order = [rename_to(made, tomorrow)]
    order += [made.backup(content).id for content in (b"1", b"2", b"3")]
    assert made.ids() == order
    times = [each.time for each in made.repository.history().revisions]
    assert times[0] == tomorrow
    for time in times[1:]:
        assert tomorrow - timedelta(days=1) <= time <= datetime.now(UTC), "the true time"
    assert names(made.root / "revisions") == order


def test_backups_within_a_second_keep_their_order(made: Made) -> None:
    order = [made.backup(bytes([number])).id for number in range(5)]
    assert made.ids() == order
    assert len({each[:16] for each in order}) == 5


def test_what_comes_back_from_the_trash_is_older_than_what_was_backed_up_since(made: Made) -> None:
    made.backup(b"first")
    first = rename_to(made, datetime.now(UTC).replace(microsecond=0) + timedelta(days=1))
    trash.remove(made.repository, made.repository.history().revisions)
    second = made.backup(b"second")
    trash.undo(made.repository)
    assert made.ids() == [first, second.id]


# Settings, history, changes.


def test_a_repository_that_was_made_is_opened_with_its_settings(tmp_path: Path) -> None:
    settings = Settings("chunks", 4 * BLOCK, 3, {"type": "file", "disks": {"vda": "/images/ä b"}})
    create(tmp_path, "vm1", settings)
    assert Repository(tmp_path / "vm1").settings == settings
    assert jobs(tmp_path) == ["vm1"]
    assert jobs(tmp_path, known={"vm1", "vm2"}) == []
    assert os.access(tmp_path / "vm1" / "restore.sh", os.X_OK)


def test_a_source_is_remembered(made: Made) -> None:
    source: dict[str, object] = {"type": "file", "disks": {"vda": "/images/vm1.img"}}
    made.repository.remember_source(source)
    assert Repository(made.root).settings == replace(made.repository.settings, source=source)


def test_auto_is_chunks_where_extents_cannot_be_shared(tmpfs: Path) -> None:
    assert create(tmpfs, "vm1", Settings("auto", BLOCK)).settings.store == "chunks"


@pytest.mark.parametrize("reflink_folder", ["xfs", "btrfs"], indirect=True)
def test_auto_is_images_where_extents_can_be_shared(reflink_folder: Path) -> None:
    assert create(reflink_folder, "vm1", Settings("auto", BLOCK)).settings.store == "images"


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    folder = Path("/dev/shm") / f"backy-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-r", folder], check=True)


@pytest.mark.parametrize("block_size", [0, 4096, BLOCK + 1, 16 * 1024 * 1024 + BLOCK])
def test_an_impossible_block_size_is_refused(tmp_path: Path, block_size: int) -> None:
    with pytest.raises(ConfigError, match=str(block_size)):
        create(tmp_path, "vm1", Settings("chunks", block_size))
    assert not (tmp_path / "vm1").exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", ".x", "-x", "a\nb", "a b", "a\0b", "x" * 129, "a\u0308"]
)
def test_a_name_that_is_no_safe_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a job"):
        check_job(name)


@pytest.mark.parametrize("name", ["vm1", "web.example.org", "a_b-c@d+e", "größe", "x" * 128])
def test_a_name_that_is_a_safe_folder_is_taken(name: str) -> None:
    assert check_job(name) == name


def test_a_missing_repository_is_named_with_the_way_to_the_others(made: Made) -> None:
    with pytest.raises(NotFoundError, match="vm2") as caught:
        Repository(made.base / "vm2")
    assert "backy list" in caught.value.hint


def test_a_damaged_revision_is_told_apart_and_hides_no_other(made: Made) -> None:
    bad, good = made.backup(b"one"), made.backup(b"two")
    (made.repository.folder_of(bad).path / "revision.json").write_text("{")
    assert made.ids() == [good.id]
    [error] = made.repository.history().unreadable.values()
    assert bad.id in error.message


def test_a_change_keeps_what_another_process_changed_meanwhile(made: Made) -> None:
    revision = made.backup()
    retag(made.repository, [revision], add={"daily", "weekly"}, drop=set())
    Repository(made.root).change(revision, lambda old: replace(old, trust=Trust.DISTRUSTED))
    assert made.again(revision).tags == ("daily", "weekly")
    retag(made.repository, [made.again(revision)], add=set(), drop={"daily"})
    assert made.again(revision).tags == ("weekly",)
    assert made.again(revision).trust is Trust.DISTRUSTED


def test_tags_that_two_commands_add_at_once_are_both_kept(made: Made) -> None:
    revision = made.backup()
    for tag in ("daily", "weekly"):
        retag(made.repository, [revision], add={tag}, drop=set())
    assert made.again(revision).tags == ("daily", "weekly")


def test_a_bad_tag_changes_nothing(made: Made) -> None:
    revision = made.backup()
    with pytest.raises(ConfigError, match="cannot be a tag"):
        retag(made.repository, [revision], add={"good", "bad tag"}, drop=set())
    assert made.again(revision).tags == ()


def test_changing_what_was_removed_says_so(made: Made) -> None:
    revision = made.backup()
    trash.remove(made.repository, [revision])
    with pytest.raises(NotFoundError, match=f"{revision.id} was removed"):
        made.repository.change(revision, lambda old: replace(old, trust=Trust.VERIFIED))


def test_changing_what_is_damaged_says_so(made: Made) -> None:
    revision = made.backup()
    (made.repository.folder_of(revision).path / "revision.json").write_text("{}")
    with pytest.raises(DamagedError, match=revision.id):
        made.repository.change(revision, lambda old: replace(old, trust=Trust.VERIFIED))
