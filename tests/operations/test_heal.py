"""A bad block comes back from wherever its content still is; else exactly who names it is told."""

import gc
import os
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pytest

from backy.errors import DamagedError, NotFoundError
from backy.image.progress import SILENCE, Watcher
from backy.model.revision import Revision, Trust
from backy.operations import heal
from backy.operations.backup import backup
from backy.operations.disk_backup import ReadBack
from backy.operations.heal import Damage, distrusted
from backy.operations.origin import LiveSource, Origin
from backy.operations.restore import RestoredDisk, RestoreOptions, restore
from backy.operations.verify import verify
from backy.repository import quarantine, quarantine_reports, trash
from backy.repository.quarantine import Occurrence
from backy.system.folders import locked
from tests.lab.handmade import digest_of
from tests.lab.repositories import BLOCK, Made
from tests.memory_origin import Copy
from tests.memory_source import MemorySource, changed, sample

SHORT = 12_345
DISK = sample(BLOCK) + sample(BLOCK, seed=1) + bytes(2 * BLOCK) + sample(SHORT, seed=2)
OTHER = sample(3 * BLOCK, seed=9)


@pytest.fixture(params=["chunks", "images"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    if request.param == "chunks":
        return Made(tmp_path)
    return Made(request.getfixturevalue("reflink_folder"), "images")


@pytest.fixture
def source(made: Made) -> Path:
    """The file that the repository remembers as its source, with DISK in it."""
    path = made.base / "source.img"
    path.write_bytes(DISK)
    made.repository.remember_source({"type": "file", "disks": {"vda": str(path)}})
    return path


def damage(made: Made, revision: Revision, number: int = 1, disk: str = "vda") -> None:
    """Change a stored byte of a block."""
    if made.store == "chunks":
        path, offset = made.chunk(revision, number, disk), 200
    else:
        path, offset = made.repository.store.plain_path(revision, disk).path, number * BLOCK + 200
    with path.open("r+b") as file:
        [byte] = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 0x10]), offset)


def unchanged(made: Made, content: bytes = DISK) -> Revision:
    """A backup whose source calls everything the same as in the parent, whichever that is."""
    known = {each: {"vda": content} for each in made.ids()}
    revision = backup(made.repository, MemorySource({"vda": content}, known))
    made.contents[revision.id] = {"vda": content}
    return revision


def nothing_read_back() -> AbstractContextManager[object]:
    """As if the bad blocks were not in the sample of a backup, which would heal them."""
    return patch.object(ReadBack, "run", lambda *_, **__: None)


def live(made: Made) -> list[Origin]:
    """The source that the repository remembers."""
    return [LiveSource(made.repository)]


def run(
    made: Made, origins: Sequence[Origin] | None = None, watcher: Watcher = SILENCE
) -> list[Damage]:
    """Verify all revisions, by default with the live source."""
    found = live(made) if origins is None else origins
    revisions = made.repository.history().revisions
    return list(verify(made.repository, revisions, origins=found, watcher=watcher))


def found_at(damages: Sequence[Damage]) -> list[tuple[str, int, int, str | None]]:
    return [(each.revision, each.start, each.length, each.healed) for each in damages]


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("number", [0, 1, 4], ids=["first", "middle", "short-last"])
def test_a_bad_block_comes_back_from_the_live_source(made: Made, number: int) -> None:
    revision = made.backup(DISK)
    damage(made, revision, number)
    length = SHORT if number == 4 else BLOCK
    assert found_at(run(made)) == [(revision.id, number * BLOCK, length, "the source")]
    assert made.read(revision) == DISK
    assert made.again(revision).trust is Trust.VERIFIED
    assert run(made) == []


def test_a_bad_block_comes_back_from_a_copy(made: Made) -> None:
    revision = made.backup(DISK)
    damage(made, revision)
    assert found_at(run(made, origins=[Copy({"vda": DISK})])) == [
        (revision.id, BLOCK, BLOCK, "a copy")
    ]
    assert made.read(revision) == DISK


def test_a_copy_is_not_asked_where_nothing_is_bad(made: Made) -> None:
    made.backup(DISK)
    copy = Copy({"vda": DISK})
    assert run(made, origins=[copy]) == []
    assert copy.asked == 0


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"vda": changed(DISK, BLOCK + 1)}, id="other-content"),
        pytest.param({"vda": DISK[:BLOCK]}, id="shorter"),
        pytest.param({"vdb": DISK}, id="another-disk"),
        pytest.param({}, id="nothing"),
    ],
)
def test_what_has_another_hash_is_never_taken_for_good(made: Made, other: dict[str, bytes]) -> None:
    revision = made.backup(DISK)
    damage(made, revision)
    assert found_at(run(made, origins=[Copy(other)])) == [(revision.id, BLOCK, BLOCK, None)]
    assert made.again(revision).trust is Trust.DISTRUSTED


def test_the_source_that_is_configured_is_asked_and_not_the_one_that_is_remembered(
    made: Made, tmp_path: Path
) -> None:
    (tmp_path / "vda.img").write_bytes(DISK)
    settings = {"type": "file", "disks": {"vda": str(tmp_path / "vda.img")}}
    made.repository.remember_source({"type": "file", "disks": {"vda": "/nowhere/vda.img"}})
    revision = made.backup(DISK)
    damage(made, revision)
    configured = LiveSource(made.repository, lambda: settings)
    assert found_at(run(made, [configured])) == [(revision.id, BLOCK, BLOCK, "the source")]


def test_who_could_not_be_asked_for_a_lost_block_is_named_once(made: Made) -> None:
    made.repository.remember_source({"type": "file", "disks": {"vda": "/nowhere/vda.img"}})
    revision = made.backup(DISK)
    for number in (0, 4):
        damage(made, revision, number)
    said: list[str] = []
    origins = [*live(made), Copy(failure="no route to host")]
    assert [each.healed for each in run(made, origins, _Listener(said))] == [None, None]
    why = "opening the source /nowhere/vda.img: No such file or directory"
    assert [text for text in said if "could not be asked" in text] == [
        f"The source could not be asked: {why}",
        "A copy could not be asked: no route to host",
    ]


def test_who_could_not_be_asked_is_not_named_where_somebody_else_had_the_block(made: Made) -> None:
    made.repository.remember_source({"type": "file", "disks": {"vda": "/nowhere/vda.img"}})
    damage(made, made.backup(DISK))
    said: list[str] = []
    run(made, [*live(made), Copy({"vda": DISK})], _Listener(said))
    assert said == []


def test_the_next_origin_is_asked_where_one_fails(made: Made) -> None:
    damage(made, made.backup(DISK))
    both = [Copy(failure="no route to host"), Copy({"vda": DISK})]
    assert [each.healed for each in run(made, both)] == ["a copy"]


def test_origins_are_closed_at_the_end_and_where_nothing_was_asked(made: Made) -> None:
    revision = made.backup(DISK)
    copy = Copy({"vda": DISK})
    run(made, [copy])
    damage(made, revision)
    run(made, [copy])
    assert (copy.asked, copy.closed) == (1, 2)


class TestImages:
    """On images each revision has bytes of its own, unless it shares them."""

    @pytest.fixture
    def made(self, reflink_folder: Path) -> Made:
        return Made(reflink_folder, "images")

    def test_another_revision_gives_back_what_one_lost(self, made: Made) -> None:
        first, second = made.backup(DISK), made.backup(DISK)
        damage(made, first)
        assert found_at(run(made)) == [(first.id, BLOCK, BLOCK, f"revision {second.id}")]
        assert made.intact()
        assert {each.trust for each in made.repository.history().revisions} == {Trust.VERIFIED}

    def test_a_healed_image_is_read_only_again(self, made: Made) -> None:
        first, _ = made.backup(DISK), made.backup(DISK)
        damage(made, first)
        run(made)
        path = made.repository.store.plain_path(first, "vda").path
        assert path.stat().st_mode & 0o222 == 0

    @pytest.mark.usefixtures("source")
    def test_bytes_that_revisions_share_are_healed_in_all_of_them(self, made: Made) -> None:
        revisions = [made.backup(DISK)]
        damage(made, revisions[0])
        with nothing_read_back():
            revisions += [unchanged(made) for _ in range(2)]
        assert found_at(run(made)) == [(each.id, BLOCK, BLOCK, "the source") for each in revisions]
        assert made.intact()

    def test_shared_bytes_that_cannot_be_healed_distrust_who_shares_them(self, made: Made) -> None:
        first = made.backup(DISK)
        damage(made, first)
        with nothing_read_back():
            second = unchanged(made)
            third = made.backup(changed(DISK, BLOCK + 5))
        assert [each.revision for each in run(made)] == [first.id, second.id]
        assert made.again(third).trust is Trust.VERIFIED


def test_a_block_comes_back_from_where_it_lies_in_the_source_by_now(
    made: Made, source: Path
) -> None:
    made.backup(DISK)
    lost = made.repository.history().revisions[0]
    moved = DISK[BLOCK : 2 * BLOCK] + DISK[:BLOCK] + DISK[2 * BLOCK :]
    made.backup(moved)
    source.write_bytes(moved)
    damage(made, lost, 1)
    assert {each.healed for each in run(made)} <= {
        "the source",
        f"revision {made.ids()[1]}",
    }
    assert made.intact()


def test_zeroes_need_no_source(made: Made) -> None:
    revision = made.backup(DISK)
    if made.store == "chunks":
        made.chunk(revision, 2).unlink()
    else:
        damage(made, revision, 2)
    assert {each.healed for each in run(made)} == {"its hash, which is that of zeroes"}
    assert made.intact()


def test_what_cannot_be_healed_distrusts_exactly_who_names_it_also_unasked(
    tmp_path: Path,
) -> None:
    made = Made(tmp_path)
    revisions = [made.backup(each) for each in (DISK, DISK, changed(DISK, BLOCK), DISK)]
    damage(made, revisions[0])
    found = list(verify(made.repository, [revisions[3]], origins=[]))
    assert [each.revision for each in found] == [revisions[n].id for n in (0, 1, 3)]
    now = [made.again(each) for each in revisions]
    assert [each.trust is Trust.DISTRUSTED for each in now] == [True, True, False, True]
    assert [each.damaged for each in now] == [
        {"vda": ((BLOCK, BLOCK),)},
        {"vda": ((BLOCK, BLOCK),)},
        {},
        {"vda": ((BLOCK, BLOCK),)},
    ]


def test_the_next_backup_writes_a_lost_block_anew_though_the_source_calls_it_the_same(
    made: Made,
) -> None:
    lost = made.backup(DISK)
    damage(made, lost)
    assert [each.healed for each in run(made)] == [None]
    new = unchanged(made)
    assert new.parent == lost.id
    assert new.disks["vda"].read == BLOCK + new.disks["vda"].compared
    assert made.read(new) == DISK
    assert new.trust is Trust.TRUSTED
    assert new.damaged == {}


@pytest.mark.parametrize("number", [1, 4], ids=["middle", "short-last"])
@pytest.mark.parametrize("by", [BLOCK, 100, -100, -SHORT, -SHORT - 2 * BLOCK - 5, -4 * BLOCK])
def test_a_lost_block_is_written_anew_when_the_disk_was_resized(
    made: Made, number: int, by: int
) -> None:
    lost = made.backup(DISK)
    damage(made, lost, number)
    assert [each.healed for each in run(made)] == [None]
    content = DISK + sample(by, seed=9) if by > 0 else DISK[:by]
    new = made.backup(content)
    assert made.read(new) == content
    run(made)
    assert made.again(new).trust is Trust.VERIFIED


def test_a_lost_block_of_one_disk_leaves_the_others_as_they_are(made: Made) -> None:
    lost = made.backup(vda=DISK, vdb=OTHER)
    damage(made, lost, 1, "vdb")
    assert [(each.disk, each.healed) for each in run(made)] == [("vdb", None)]
    new = made.backup(vda=DISK, vdb=OTHER)
    assert {name: disk.changed for name, disk in new.disks.items()} == {"vda": 0, "vdb": BLOCK}
    assert made.read(new, "vdb") == OTHER


def test_a_distrusted_revision_that_does_not_say_what_is_bad_is_not_built_upon(
    made: Made,
) -> None:
    lost = made.backup(DISK)
    made.repository.change(lost, lambda old: replace(old, trust=Trust.DISTRUSTED))
    assert made.backup(DISK).parent is None


def test_what_was_healed_by_the_next_backup_is_found_whole(made: Made) -> None:
    lost = made.backup(DISK)
    damage(made, lost)
    run(made)
    made.backup(DISK)
    assert [each.healed for each in run(made)] in ([], [f"revision {made.ids()[-1]}"])
    assert {each.trust for each in made.repository.history().revisions} == {Trust.VERIFIED}
    assert all(each.damaged == {} for each in made.repository.history().revisions)
    assert made.intact()


def test_a_report_keeps_the_damaged_bytes_but_none_of_the_source(made: Made, source: Path) -> None:
    revision = made.backup(DISK)
    damage(made, revision)
    source.write_bytes(changed(DISK, BLOCK))
    run(made)
    [report] = quarantine_reports.reports(made.repository)
    kept = {
        path.name: path.read_bytes() for path in quarantine_reports.files(made.repository, report)
    }
    assert kept.keys() == {"stored"}  # what a source has there now may be anybody's
    if made.store == "images":
        bad = bytearray(DISK[BLOCK : 2 * BLOCK])
        bad[200] ^= 0x10
        assert kept["stored"] == bad
    else:
        assert kept["stored"] == made.chunk(revision, 1).read_bytes()
    assert report.digest == digest_of(DISK[BLOCK : 2 * BLOCK])
    assert report.revisions == (revision.id,)
    assert report.occurrences == (Occurrence(revision.id, "vda", BLOCK, BLOCK),)
    assert (report.verb, report.healed) == ("verify", None)


@pytest.mark.usefixtures("source")
def test_a_report_of_what_was_healed_says_from_where(made: Made) -> None:
    revision = made.backup(DISK)
    damage(made, revision)
    run(made)
    [report] = quarantine_reports.reports(made.repository)
    assert report.healed == "the source"


def test_finding_the_same_block_again_replaces_its_report(made: Made) -> None:
    damage(made, made.backup(DISK))
    for _ in range(3):
        assert len(run(made)) == 1
    assert len(list(quarantine_reports.reports(made.repository))) == 1


@pytest.mark.usefixtures("source")
def test_healing_does_without_a_report_where_there_are_too_many(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MOST", 0)
    revision = made.backup(DISK)
    damage(made, revision)
    said: list[str] = []
    assert [each.healed for each in run(made, watcher=_Listener(said))] == ["the source"]
    assert made.read(revision) == DISK
    assert any("no report was kept" in text for text in said)


@dataclass
class _Listener(Watcher):
    said: list[str]

    def begin(self, total: int) -> None:
        pass

    def advance(self, length: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.usefixtures("source")
def test_a_revision_that_is_being_purged_does_not_stop_the_healing_of_others(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backy.repository.repository.PATIENCE", 0)
    purged, kept = made.backup(changed(DISK, 5)), made.backup(DISK)
    damage(made, kept)
    with locked(made.repository.folder_of(purged).path):
        assert [each.healed for each in verify(made.repository, [kept], origins=live(made))] == [
            "the source"
        ]


def test_a_revision_in_the_trash_is_not_distrusted_but_comes_back_healed(tmp_path: Path) -> None:
    made = Made(tmp_path)
    first, second = made.backup(DISK), made.backup(DISK)
    damage(made, first)
    trash.remove(made.repository, [first])
    assert [each.healed for each in run(made, origins=[Copy({"vda": DISK})])] == ["a copy"]
    trash.undo(made.repository)
    assert made.read(first) == made.read(second) == DISK


class TestRestore:
    def target(
        self, made: Made, revision: Revision, *, keep_going: bool = False
    ) -> tuple[RestoredDisk, bytes]:
        path = made.base / "restored.img"
        done = restore(
            made.repository,
            revision,
            "vda",
            str(path),
            origins=live(made),
            options=RestoreOptions(keep_going=keep_going),
        )
        return done, path.read_bytes()

    @pytest.mark.usefixtures("source")
    def test_takes_a_bad_block_from_the_source_and_heals_it(self, made: Made) -> None:
        revision = made.backup(DISK)
        damage(made, revision)
        done, content = self.target(made, revision)
        assert content == DISK
        assert (done.healed, done.lost) == (((BLOCK, BLOCK),), ())
        assert run(made) == []

    def test_keeps_going_over_what_is_lost_where_it_is_told_to(self, made: Made) -> None:
        revision = made.backup(DISK)
        for number in (0, 4):
            damage(made, revision, number)
        done, content = self.target(made, revision, keep_going=True)
        assert content == bytes(BLOCK) + DISK[BLOCK : 4 * BLOCK] + bytes(SHORT)
        assert done.lost == ((0, BLOCK), (4 * BLOCK, SHORT))
        assert made.again(revision).trust is Trust.DISTRUSTED

    def test_names_the_source_that_could_not_be_asked(self, made: Made, source: Path) -> None:
        revision = made.backup(DISK)
        damage(made, revision)
        source.unlink()
        with pytest.raises(DamagedError) as caught:
            self.target(made, revision)
        assert caught.value.hint.startswith(
            f"The source could not be asked: opening the source {source}: "
            "No such file or directory. Try an older revision;"
        )

    def test_keeps_going_beyond_the_end_of_an_image_that_was_cut(
        self, reflink_folder: Path
    ) -> None:
        made = Made(reflink_folder, "images")
        revision = made.backup(DISK)
        os.truncate(made.repository.store.plain_path(revision, "vda").path, BLOCK + 10)
        done, content = self.target(made, revision, keep_going=True)
        assert content == DISK[:BLOCK] + bytes(len(DISK) - BLOCK)
        assert done.lost == ((BLOCK, BLOCK), (4 * BLOCK, SHORT))
        assert done.healed == ((2 * BLOCK, 2 * BLOCK),)

    @pytest.mark.usefixtures("source")
    def test_a_block_is_right_in_the_target_even_where_it_cannot_be_kept(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        revision = made.backup(DISK)
        damage(made, revision)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("backy.system.files.open_protected", refuse)
        monkeypatch.setattr("backy.system.files.create", refuse)
        monkeypatch.setattr("backy.system.folders.write_file", refuse)
        with (
            made.repository.store.open(revision, "vda") as image,
            heal.healing(made.repository, "restore", live(made)) as healer,
        ):
            stored = heal.StoredDisk(revision, "vda", image)
            block, [found] = healer.recover(heal.BadBlock(stored, 1, "bad"))
        assert block == DISK[BLOCK : 2 * BLOCK]
        assert found.healed is None


def test_ranges_beyond_counting_are_the_whole_disk(tmp_path: Path) -> None:
    made = Made(tmp_path)
    revision = made.backup(DISK)
    many = [Occurrence(revision.id, "vda", number * 2, 1) for number in range(1001)]
    assert len(distrusted(revision, many[:1000]).damaged["vda"]) == 1000
    assert distrusted(revision, many).damaged == {"vda": ((0, len(DISK)),)}


def test_damaged_ranges_that_touch_or_overlap_are_one(tmp_path: Path) -> None:
    revision = Made(tmp_path).backup(DISK)
    found = [Occurrence(revision.id, "vda", *each) for each in ((9, 1), (4, 5), (20, 5), (22, 1))]
    assert distrusted(revision, found).damaged == {"vda": ((4, 6), (20, 5))}
    assert distrusted(distrusted(revision, found), found).damaged == {"vda": ((4, 6), (20, 5))}


class TestReports:
    def test_are_found_by_their_id(self, made: Made) -> None:
        damage(made, made.backup(DISK))
        run(made)
        [report] = quarantine_reports.reports(made.repository)
        assert quarantine_reports.find(made.repository, report.id) == report

    @pytest.mark.parametrize(
        "name", ["", "..", "../revisions", "20261123T004938Z-x7k2", "no\nid"], ids=ascii
    )
    def test_are_not_found_where_there_is_none(self, made: Made, name: str) -> None:
        with pytest.raises(NotFoundError):
            quarantine_reports.find(made.repository, name)

    def test_go_with_what_they_keep(self, made: Made) -> None:
        damage(made, made.backup(DISK))
        run(made)
        quarantine_reports.delete(
            made.repository, [each.id for each in quarantine_reports.reports(made.repository)]
        )
        assert list((made.root / "quarantine").iterdir()) == []

    def test_deleting_one_does_not_make_its_revision_whole(self, made: Made) -> None:
        revision = made.backup(DISK)
        damage(made, revision)
        run(made)
        quarantine_reports.delete(
            made.repository, [each.id for each in quarantine_reports.reports(made.repository)]
        )
        assert made.again(revision).damaged == {"vda": ((BLOCK, BLOCK),)}
        assert made.read(unchanged(made)) == DISK

    def test_an_unreadable_one_hides_no_other(self, made: Made) -> None:
        damage(made, made.backup(DISK))
        run(made)
        broken = made.root / "quarantine" / "20261123T004938Z-x7k2"
        broken.mkdir()
        (broken / "report.json").write_text("{")
        assert len(list(quarantine_reports.reports(made.repository))) == 1


def test_what_a_bad_block_was_read_into_is_free_as_soon_as_it_is_done_with(made: Made) -> None:
    revision = made.backup(DISK)
    damage(made, revision)

    def read(stored: heal.StoredDisk) -> weakref.ref[memoryview]:
        buffer = memoryview(bytearray(BLOCK))
        error = stored.damage(BLOCK, buffer)  # whoever heals keeps it beside the buffer
        assert error
        return weakref.ref(buffer)

    gc.disable()  # which would free it much later, after as much again for each block
    try:
        with made.repository.store.open(revision, "vda") as image:
            assert read(heal.StoredDisk(revision, "vda", image))() is None
    finally:
        gc.enable()
