"""A page that is lost in both copies is made again from its blocks; else just its range is lost."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from backy.errors import DamagedError
from backy.image.progress import SILENCE, Watcher
from backy.model.revision import Revision, Trust
from backy.operations import page_heal
from backy.operations.heal import Damage, StoredDisk
from backy.operations.origin import Origin
from backy.operations.restore import RestoredDisk, RestoreOptions, restore
from backy.operations.scrub import Limits, Scrub
from backy.operations.verify import verify
from backy.repository import quarantine_reports, trash
from tests.lab.disks import PAGE, THREE_PAGES
from tests.lab.losses import lose, spoil
from tests.lab.repositories import BLOCK, Made
from tests.memory_origin import Copy
from tests.memory_source import MemorySource, changed
from tests.operations.test_scrub import MONTH

DISK = THREE_PAGES
END = len(DISK) - 2 * PAGE  # the length of the last page's range
Read = Callable[[Made, Sequence[Origin], Watcher], list[Damage]]


def verified(
    made: Made, origins: Sequence[Origin] = (), watcher: Watcher = SILENCE
) -> list[Damage]:
    revisions = made.repository.history().revisions
    return list(verify(made.repository, revisions, origins=origins, watcher=watcher))


def scrubbed(
    made: Made, origins: Sequence[Origin] = (), watcher: Watcher = SILENCE
) -> list[Damage]:
    return list(Scrub(made.repository, MONTH).run(Limits(), origins=origins, watcher=watcher))


@pytest.fixture
def chunks(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def images(reflink_folder: Path) -> Made:
    return Made(reflink_folder, "images")


@pytest.fixture(params=["chunks", "images"])
def either(request: pytest.FixtureRequest) -> Made:
    made: Made = request.getfixturevalue(request.param)
    return made


by_both = pytest.mark.parametrize("read", [verified, scrubbed], ids=["verify", "scrub"])
in_both_ways = pytest.mark.parametrize("damage", [lose, spoil], ids=["missing", "flipped"])
Damaging = Callable[[Iterable[Path]], None]


class Listener:
    """A Watcher that keeps the warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, total: int) -> None:
        pass

    def advance(self, length: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.said.append(text)


def found_at(damages: Sequence[Damage]) -> list[tuple[str, str, int, int, str | None]]:
    return [(each.revision, each.disk, each.start, each.length, each.healed) for each in damages]


def restored(
    made: Made, revision: Revision, origins: Sequence[Origin] = (), *, keep_going: bool = False
) -> tuple[RestoredDisk, bytes]:
    path = made.base / "restored.img"
    done = restore(
        made.repository,
        revision,
        "vda",
        str(path),
        origins=origins,
        options=RestoreOptions(keep_going=keep_going),
    )
    return done, path.read_bytes()


@in_both_ways
@pytest.mark.parametrize("copy", [0, 1], ids=["page", "twin"])
@by_both
def test_one_bad_copy_is_replaced_by_the_other_and_said(
    either: Made, read: Read, copy: int, damage: Damaging
) -> None:
    revision = either.backup(DISK)
    copies = either.pages(revision)[1]
    whole = copies[0].read_bytes()
    damage([copies[copy]])
    listener = Listener()
    assert read(either, [], listener) == []
    assert listener.said == [f"{copies[copy]} was damaged; its other copy was good and replaced it"]
    assert [path.read_bytes() for path in copies] == [whole, whole]


@in_both_ways
@by_both
def test_a_lost_page_names_every_revision_disk_and_range_that_shares_it(
    chunks: Made, read: Read, damage: Damaging
) -> None:
    first = chunks.backup(vda=DISK, vdb=DISK[PAGE : 2 * PAGE] + DISK[:PAGE])
    second = chunks.backup(vda=changed(DISK, 5), vdb=b"another")
    third = chunks.backup(vda=changed(DISK, PAGE + 5), vdb=b"another")
    damage(chunks.pages(first)[1])
    assert sorted(found_at(read(chunks, [], SILENCE))) == [
        (first.id, "vda", PAGE, PAGE, None),
        (first.id, "vdb", 0, PAGE, None),
        (second.id, "vda", PAGE, PAGE, None),
    ]
    now = [chunks.again(each) for each in (first, second, third)]
    assert [each.damaged for each in now] == [
        {"vda": ((PAGE, PAGE),), "vdb": ((0, PAGE),)},
        {"vda": ((PAGE, PAGE),)},
        {},
    ]
    assert [each.trust is Trust.DISTRUSTED for each in now] == [True, True, False]


@by_both
def test_a_lost_last_page_ends_where_the_disk_ends(chunks: Made, read: Read) -> None:
    revision = chunks.backup(DISK)
    lose(chunks.pages(revision)[2])
    assert found_at(read(chunks, [], SILENCE)) == [(revision.id, "vda", 2 * PAGE, END, None)]


@in_both_ways
@by_both
def test_a_lost_page_comes_back_from_a_source_that_still_has_its_range(
    chunks: Made, read: Read, damage: Damaging
) -> None:
    revision = chunks.backup(DISK)
    copies = chunks.pages(revision)[1]
    whole = copies[0].read_bytes()
    damage(copies)
    origins = [Copy({"vda": changed(DISK, 5, 2 * PAGE + 5)})]
    assert found_at(read(chunks, origins, SILENCE)) == [(revision.id, "vda", PAGE, PAGE, "a copy")]
    assert [path.read_bytes() for path in copies] == [whole, whole]
    assert chunks.again(revision).trust is not Trust.DISTRUSTED
    assert read(chunks, [], SILENCE) == []


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(changed(DISK, PAGE + 5), id="other-content"),
        pytest.param(DISK[: 2 * PAGE - 1], id="shorter"),
        pytest.param(b"", id="nothing"),
    ],
)
@by_both
def test_a_range_that_changed_in_the_source_makes_no_page(
    chunks: Made, read: Read, other: bytes
) -> None:
    revision = chunks.backup(DISK)
    lose(chunks.pages(revision)[1])
    origins = [Copy({"vda": other})]
    assert found_at(read(chunks, origins, SILENCE)) == [(revision.id, "vda", PAGE, PAGE, None)]


@by_both
def test_a_lost_page_comes_back_from_the_image(images: Made, read: Read) -> None:
    first, second = images.backup(DISK), images.backup(changed(DISK, 5))
    lose(images.pages(first)[1])
    assert found_at(read(images, [], SILENCE)) == [
        (each.id, "vda", PAGE, PAGE, f"revision {first.id}") for each in (first, second)
    ]
    assert images.intact()
    assert read(images, [], SILENCE) == []


def test_a_lost_page_comes_back_from_another_revision_whose_image_is_whole(images: Made) -> None:
    first = images.backup(DISK)
    second = images.backup(MemorySource({"vda": changed(DISK, 5)}).disks["vda"])
    path = images.repository.store.plain_path(first, "vda").path
    with path.open("r+b") as file:  # only here: the bytes of the clone are elsewhere then
        file.seek(PAGE)
        file.write(b"bad")
    lose(images.pages(first)[1])
    healed = {each.healed for each in verified(images) if each.length == PAGE}
    assert healed == {f"revision {second.id}"}
    assert images.intact()


@by_both
def test_a_healed_page_has_a_report_that_says_from_where(chunks: Made, read: Read) -> None:
    revision = chunks.backup(DISK)
    copies = chunks.pages(revision)[1]
    lose(copies)
    read(chunks, [Copy({"vda": DISK})], SILENCE)
    [report] = quarantine_reports.reports(chunks.repository)
    assert (report.digest, report.healed) == (copies[0].name, "a copy")
    assert [(each.disk, each.start, each.length) for each in report.occurrences] == [
        ("vda", PAGE, PAGE)
    ]


def test_a_lost_page_that_is_found_again_has_one_report(chunks: Made) -> None:
    lose(chunks.pages(chunks.backup(DISK))[1])
    for _ in range(3):
        assert len(verified(chunks)) == 1
    [report] = quarantine_reports.reports(chunks.repository)
    assert report.healed is None


def test_blocks_of_other_pages_are_verified_and_healed_beside_a_lost_page(chunks: Made) -> None:
    revision = chunks.backup(DISK)
    bad = chunks.chunk(revision, 0)
    lose([*chunks.pages(revision)[1], bad])
    origin = Copy({"vda": changed(DISK, PAGE + 5)})
    assert sorted(found_at(verified(chunks, [origin]))) == [
        (revision.id, "vda", 0, BLOCK, "a copy"),
        (revision.id, "vda", PAGE, PAGE, None),
    ]
    assert bad.exists()


def test_a_restore_names_the_range_of_a_lost_page(chunks: Made) -> None:
    revision = chunks.backup(DISK)
    lose(chunks.pages(revision)[1])
    with pytest.raises(DamagedError, match=f"bytes {PAGE} to {2 * PAGE}") as caught:
        restored(chunks, revision)
    assert "--keep-going" in caught.value.hint
    assert chunks.again(revision).damaged == {"vda": ((PAGE, PAGE),)}


def test_a_restore_that_keeps_going_gives_all_but_the_range_of_a_lost_page(chunks: Made) -> None:
    revision = chunks.backup(DISK)
    lose(chunks.pages(revision)[1])
    done, content = restored(chunks, revision, keep_going=True)
    assert content == DISK[:PAGE] + bytes(PAGE) + DISK[2 * PAGE :]
    assert (done.lost, done.healed) == (((PAGE, PAGE),), ())


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_restore_gives_the_whole_disk_and_heals_a_page_that_the_source_has(
    chunks: Made, *, keep_going: bool
) -> None:
    revision = chunks.backup(DISK)
    lose(chunks.pages(revision)[1])
    done, content = restored(chunks, revision, [Copy({"vda": DISK})], keep_going=keep_going)
    assert content == DISK
    assert done.lost == ()
    assert all(PAGE <= start < 2 * PAGE for start, _ in done.healed)
    assert done.healed
    assert verified(chunks) == []


def test_a_restore_of_a_plain_image_makes_a_lost_page_again(images: Made) -> None:
    revision = images.backup(DISK)
    lose(images.pages(revision)[1])
    assert restored(images, revision)[1] == DISK
    assert verified(images) == []


def test_the_other_revisions_are_restored_though_a_page_is_lost(chunks: Made) -> None:
    first, second = chunks.backup(DISK), chunks.backup(changed(DISK, PAGE + 5))
    lose(chunks.pages(first)[1])
    assert restored(chunks, second)[1] == changed(DISK, PAGE + 5)


def test_the_next_backup_writes_the_blocks_of_a_lost_page_though_they_are_called_unchanged(
    either: Made,
) -> None:
    lost = either.backup(DISK)
    lose(either.pages(lost)[1])
    new = either.backup(changed(DISK, 5))
    assert either.read(new) == changed(DISK, 5)
    assert verified(either) == []
    assert either.intact()


def test_a_purge_keeps_what_a_lost_page_may_use_and_all_is_freed_when_it_is_gone(
    chunks: Made,
) -> None:
    old, lost = chunks.backup(changed(DISK, 5, seed=3)), chunks.backup(DISK)
    kept = chunks.chunk(lost, 252)
    new = chunks.backup(changed(DISK, PAGE + 5))
    lose(chunks.pages(lost)[1])
    trash.remove(chunks.repository, [old])
    purged = trash.purge(chunks.repository)
    assert purged.revisions == (old.id,)
    assert [str(path) in text for path in chunks.pages(lost)[1][:1] for text in purged.unknown]
    assert kept.exists()
    purged = trash.purge(chunks.repository, only=[lost])
    assert purged.unknown == ()
    assert not kept.exists()
    assert chunks.read(new) == changed(DISK, PAGE + 5)


def test_many_lost_pages_are_looked_for_once(chunks: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search goes through all pages of all revisions, which may be millions."""
    chunks.backup(DISK)
    chunks.backup(changed(DISK, 0))
    searches: list[int] = []
    pages_of = page_heal.pages_of

    def counted(disks: Sequence[StoredDisk]) -> page_heal.PageMap:
        searches.append(len(disks))
        return pages_of(disks)

    monkeypatch.setattr(page_heal, "pages_of", counted)
    lose([*chunks.root.glob("pages/*/*"), *chunks.root.glob("twins/*/*")])
    damages = verified(chunks)
    assert searches == [2]
    assert sum(each.length for each in damages) == 2 * len(DISK)
