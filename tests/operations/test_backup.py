"""What a backup asks of its source, and what it says of disks that came, went or lost track."""

import errno
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backy.config.settings import Hook, Hooks
from backy.errors import SourceError
from backy.model.revision import Revision, Trust, id_for, time_of
from backy.operations import revision_backup
from backy.operations.backup import backup, backup_job
from backy.operations.hooks import Runner
from backy.operations.site import Site
from backy.repository import repository, status, trash
from backy.repository.records import encode_record, read_revision
from backy.repository.repository import Repository
from backy.sources import TakenSnapshot
from backy.sources.file import FileSource
from backy.sources.snapshot_data import SnapshotData
from backy.system.place import Place
from tests.daemon.machine import Server
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import BytesImage, FailingSource, MemorySource, changed, sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from backy.sources import Request
    from tests.memory_source import MemorySnapshot

DISKS = {"vda": sample(5 * BLOCK), "vdb": sample(3 * BLOCK, seed=1)}


def test_checkpoints_but_the_parents_go_before_and_all_but_the_new_one_after(
    tmp_path: Path,
) -> None:
    made = Made(tmp_path)
    first = made.backup(**DISKS)
    source = MemorySource(DISKS)
    second = backup(made.repository, source)
    assert source.kept_only == [[first.id], [second.id]]
    assert source.kept == 1


def spoil(made: Made, *revisions: Revision) -> None:
    for revision in revisions:
        (made.folder(revision) / "revision.json").write_bytes(b"no record")


def test_a_backup_reads_the_record_of_no_revision_older_than_its_parent(tmp_path: Path) -> None:
    made = Made(tmp_path)
    revisions = [made.backup(**DISKS) for _ in range(4)]
    spoil(made, *revisions[:3])
    new = made.backup(**DISKS)
    assert (new.parent, new.warnings) == (revisions[3].id, ())


def test_a_backup_by_hand_reads_the_history_as_far_as_the_tags_of_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path)
    server.configure({"rare": {tag: {"interval": "365d", "keep": 9} for tag in ("one", "two")}})
    server.job("vm1", schedule="rare")
    for tag in ("one", "two", "one", "one"):
        server.ok("backup", "vm1", "--tag", tag)
    made = Repository(server.base / "vm1")
    oldest, *wanted = server.revisions("vm1")
    aged = id_for(time_of(oldest) - timedelta(days=800), "aged")
    changed = replace(made.revision(oldest), id=aged, time=time_of(aged))
    (made.folder / "revisions" / oldest).rename(made.folder / "revisions" / aged)
    (made.folder / "revisions" / aged / "revision.json").write_bytes(encode_record(changed))
    read = set[str]()

    def noted(path: Place, block_size: int | None = None) -> Revision:
        read.add(path.parent.name)
        return read_revision(path, block_size)

    monkeypatch.setattr(repository, "read_revision", noted)
    new = backup_job(Site(path=server.path), "vm1")
    assert read == {*wanted}
    trash.remove(made, [made.revision(wanted[0]), new])
    read.clear()
    assert backup_job(Site(path=server.path), "vm1").tags == ("two",)  # which no revision has
    assert aged in read


def test_each_newer_revision_that_cannot_be_the_parent_is_told(tmp_path: Path) -> None:
    made = Made(tmp_path)
    revisions = [made.backup(**DISKS) for _ in range(4)]
    spoil(made, revisions[3])
    made.repository.change(revisions[2], lambda old: replace(old, trust=Trust.DISTRUSTED))
    new = made.backup(**DISKS)
    assert new.parent == revisions[1].id
    unreadable, distrusted = new.warnings
    assert unreadable.startswith(f"revision {revisions[3].id} is not used as parent: ")
    assert "is cut short or was not written by backy" in unreadable
    assert distrusted == f"revision {revisions[2].id} is not used as parent: it is distrusted"


def test_a_history_of_which_nothing_can_be_the_parent_does_not_make_a_record_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision_backup, "_MOST_TRIED", 2)
    made = Made(tmp_path)
    spoil(made, *[made.backup(**DISKS) for _ in range(4)])
    new = made.backup(**DISKS)
    assert (new.parent, len(new.warnings)) == (None, 2)
    assert made.read(new) == DISKS["vda"]


def test_after_a_failed_backup_the_source_keeps_what_the_parent_needs(tmp_path: Path) -> None:
    made = Made(tmp_path)
    first = made.backup(**DISKS)
    source = FailingSource(DISKS)
    with pytest.raises(SourceError):
        backup(made.repository, source)
    assert source.kept_only == [[first.id]]
    assert source.kept == 0


class Stubborn(MemorySource):
    """Cannot remove anything once a snapshot was taken."""

    def remove_all_except(self, revisions: "Collection[str]") -> None:
        super().remove_all_except(revisions)
        if self.kept:
            raise SourceError("the storage does not answer")


def test_a_source_that_cannot_remove_its_checkpoints_does_not_undo_a_backup(tmp_path: Path) -> None:
    made = Made(tmp_path)
    revision = backup(made.repository, Stubborn(DISKS))
    assert made.ids() == [revision.id]


class Asking(MemorySource):
    """Remembers what it was asked."""

    request: "Request"

    @contextmanager
    def snapshot(self, request: "Request") -> "Iterator[TakenSnapshot]":
        self.request = request
        with super().snapshot(request) as taken:
            yield taken


def test_a_source_hears_which_revision_is_made_and_of_which_parent(tmp_path: Path) -> None:
    made = Made(tmp_path)
    first = made.backup(**DISKS)
    source = Asking(DISKS)
    second = backup(made.repository, source)
    assert (source.request.revision, source.request.parent) == (second.id, first)
    assert not source.request.is_frozen
    assert source.request.parent_has("vda", 5 * BLOCK)
    assert not source.request.parent_has("vda", 4 * BLOCK)
    assert not source.request.parent_has("vdc", 5 * BLOCK)


def test_a_source_is_opened_after_the_guest_was_thawed(tmp_path: Path) -> None:
    """The hook that thaws sees which files this process has open, and what it could write to."""
    disk, seen = tmp_path / "vda.img", tmp_path / "seen"
    disk.write_bytes(DISKS["vda"])
    script = 'ls -l /proc/$PPID/fd >"$1"'
    thaw = Hook(command=("/bin/sh", "-c", script, "sh", str(seen)))
    hooks = Runner(Hooks(after_snapshot=(thaw,)), "vm1", tmp_path / "vm1", print)
    made = Made(tmp_path / "base")
    revision = backup(made.repository, FileSource(disks={"vda": str(disk)}), hooks=hooks)
    assert str(tmp_path / "base") in seen.read_text()
    assert str(disk) not in seen.read_text()
    assert made.read(revision) == DISKS["vda"]


class Thawing(MemorySource):
    """Notes when it is opened, beside what the hooks note."""

    def __init__(self, notes: Path) -> None:
        super().__init__(DISKS)
        self.notes = notes

    @contextmanager
    def snapshot(self, request: "Request") -> "Iterator[TakenSnapshot]":
        with super().snapshot(request) as taken:
            note(self.notes, "taken")
            yield taken

    @contextmanager
    def opened(
        self, request: "Request", disks: "Mapping[str, bytes]"
    ) -> "Iterator[MemorySnapshot]":
        note(self.notes, "opened")
        with super().opened(request, disks) as snapshot:
            yield snapshot


def note(path: Path, word: str) -> None:
    with path.open("a") as file:
        file.write(f"{word}\n")


def test_a_snapshot_is_taken_while_frozen_and_opened_when_thawed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    hooks = {
        event: (Hook(command=("/bin/sh", "-c", f"echo {event} >>{notes}")),)
        for event in ("before_snapshot", "after_snapshot")
    }
    made = Made(tmp_path / "base")
    runner = Runner(Hooks(**hooks), "vm1", made.root, print)
    backup(made.repository, Thawing(notes), hooks=runner)
    assert notes.read_text().split() == ["before_snapshot", "taken", "after_snapshot", "opened"]


def test_disks_that_lost_track_are_named_in_the_revision_and_counted(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.backup(**DISKS)
    source = MemorySource(DISKS)
    source.full_read_reasons = {"vdb": "its bitmap is gone"}
    revision = backup(made.repository, source)
    assert "all of disk vdb was read: its bitmap is gone" in revision.warnings
    assert revision.disks["vdb"].whole == "its bitmap is gone"
    assert not revision.disks["vda"].whole
    assert status.read_status(made.root).full_reads == 1


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param({"vda": DISKS["vda"]}, {"disk vdb is gone"}, id="vanished"),
        pytest.param(
            {**DISKS, "vdc": sample(BLOCK)}, {"disk vdc is new; all of it was read"}, id="new"
        ),
        pytest.param(
            {"vda": DISKS["vda"], "vdc": DISKS["vdb"]},
            {"disk vdb is gone", "disk vdc is new; all of it was read"},
            id="renamed",
        ),
    ],
)
def test_a_disk_that_came_or_went_is_said_and_all_that_is_there_is_stored(
    now: dict[str, bytes], expected: set[str], tmp_path: Path
) -> None:
    made = Made(tmp_path)
    first = made.backup(**DISKS)
    revision = backup(made.repository, MemorySource(now, {first.id: DISKS}))
    assert set(revision.warnings) == expected
    assert {name: made.read(revision, name) for name in now} == now


@pytest.mark.parametrize("known", [True, False], ids=["delta", "full-scan"])
def test_a_delta_says_how_much_it_read_of_what_was_called_unchanged(
    known: bool, tmp_path: Path
) -> None:
    made = Made(tmp_path)
    first = made.backup(**DISKS)
    now = {**DISKS, "vda": changed(DISKS["vda"], 10)}
    source = MemorySource(now, {first.id: DISKS} if known else {})
    revision = backup(made.repository, source)
    compared = {name: disk.compared for name, disk in revision.disks.items()}
    assert {name: made.read(revision, name) for name in now} == now
    if not known:
        assert compared == {"vda": 0, "vdb": 0}
    else:
        assert all(compared.values())
        assert revision.disks["vda"].changed == BLOCK


def test_a_backup_by_the_function_ends_a_row_of_failures(tmp_path: Path) -> None:
    made = Made(tmp_path)
    for count in (1, 2):
        with pytest.raises(SourceError):
            backup(made.repository, FailingSource(DISKS))
        assert status.read_status(made.root).errors == count
    backup(made.repository, MemorySource(DISKS))
    known = status.read_status(made.root)
    assert (known.errors, known.failures) == (0, 2)


class RawImage(BytesImage):
    """An image of a plug-in with a bug: it does not say what failed, but raises as it comes."""

    def __init__(self, error: OSError) -> None:
        super().__init__(DISKS["vda"])
        self._error = error

    def readinto(self, offset: int, buffer: memoryview) -> None:
        raise self._error


class Buggy(MemorySource):
    """A source whose disk is such an image."""

    error = OSError()

    @contextmanager
    def opened(
        self, request: "Request", disks: "Mapping[str, bytes]"
    ) -> "Iterator[MemorySnapshot]":
        with super().opened(request, disks) as snapshot:
            snapshot.disks["vda"] = RawImage(self.error)
            yield snapshot


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_raw_error_of_a_source_is_a_bug_of_that_source_and_not_a_full_store(
    tmp_path: Path, number: int
) -> None:
    made = Made(tmp_path)
    source = Buggy(DISKS)
    source.error = OSError(number, "what a plug-in did not translate")
    with pytest.raises(RuntimeError, match=r"the source of disk vda, reading .* at byte 0: "):
        backup(made.repository, source)
    assert made.ids() == []


class Huge(BytesImage):
    """Claims more bytes than any disk has."""

    def __init__(self, size: int) -> None:
        super().__init__(b"")
        self.size = size


class Claiming(MemorySource):
    """A small disk, and one that only claims its size."""

    def __init__(self, size: int) -> None:
        super().__init__({})
        self.images = {"vda": BytesImage(b"x"), "vdb": Huge(size)}

    @contextmanager
    def snapshot(self, request: "Request") -> "Iterator[TakenSnapshot]":
        data = SnapshotData(request, disks=dict(self.images))
        yield TakenSnapshot(lambda: nullcontext(data))


@pytest.mark.parametrize("size", [(64 << 40) + 1, 8 << 60])
def test_a_disk_larger_than_any_is_refused_before_anything_is_written(
    tmp_path: Path, size: int
) -> None:
    made = Made(tmp_path)
    with pytest.raises(SourceError, match="disk vdb has ") as caught:
        backup(made.repository, Claiming(size))
    assert "64 TiB" in caught.value.hint
    assert not list(tmp_path.rglob("*.blocks"))
    assert not made.repository.history().revisions
