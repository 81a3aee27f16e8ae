"""Every stored byte is read again, what is damaged is named wherever it is, and trust says so."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backy.errors import BackyError
from backy.image.progress import Watcher
from backy.model.extent import Extent
from backy.model.revision import Revision, Trust
from backy.operations.heal import Damage
from backy.operations.verify import verify
from backy.repository import repository, trash
from backy.stores import Store
from backy.stores.blocks import Blocks, StoredImage
from backy.stores.index import Index
from backy.stores.used import Used
from backy.system.files import Cache
from backy.system.folders import locked
from backy.system.place import Place
from tests.lab.losses import index_copies, lose, spoil
from tests.lab.repositories import BLOCK, Made, names
from tests.memory_source import changed, sample

SHORT = 12_345  # bytes in a last block
DISK = (
    sample(BLOCK) + sample(BLOCK, seed=1) + bytes(3 * BLOCK) + sample(BLOCK, seed=2) + bytes(SHORT)
)
DATA, FIRST_ZERO, END_ZERO, LAST = 1, 2, 5, 6  # numbers of blocks in it


class CountingStore:
    """A Store around a Store, which counts how often each block is read."""

    def __init__(self, store: Store) -> None:
        self.shares_blocks = store.shares_blocks
        self.pages = store.pages
        self.block_size = store.block_size
        self.reads: Counter[tuple[str, int]] = Counter()
        self.caches: set[Cache] = set()
        self._store = store

    @contextmanager
    def open(
        self, revision: Revision, disk: str, cache: Cache = Cache.SPARE, *, may_be_cut: bool = False
    ) -> Iterator[StoredImage]:
        self.caches.add(cache)
        with self._store.open(revision, disk, cache) as image:
            yield StoredImage(image.index, CountingBlocks(image.blocks, self.reads))

    def new_blocks(
        self, folder: Place, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[Blocks]:
        return self._store.new_blocks(folder, disk, size, parent)

    def open_index(
        self, revision: Revision, disk: str, folder: Place | None = None
    ) -> AbstractContextManager[Index]:
        return self._store.open_index(revision, disk, folder)

    def plain_path(self, revision: Revision, disk: str) -> Place:
        return self._store.plain_path(revision, disk)

    def collect(self, used: Used, leave: Callable[[Place], None] = lambda _: None) -> int:
        return self._store.collect(used, leave)


class CountingBlocks:
    """Blocks around Blocks."""

    def __init__(self, blocks: Blocks, reads: Counter[tuple[str, int]]) -> None:
        self._blocks = blocks
        self._reads = reads

    def get(self, number: int, digest: str, block: memoryview) -> None:
        self._reads[digest, number] += 1
        self._blocks.get(number, digest, block)

    def put(self, number: int, digest: str, block: memoryview) -> int:
        return self._blocks.put(number, digest, block)

    def clear(self, first: int, count: int, length: int) -> int:
        return self._blocks.clear(first, count, length)

    def locations(self, first: int, count: int) -> Sequence[bytes | None]:
        return self._blocks.locations(first, count)

    def read_stored(self, number: int, digest: str, length: int) -> bytes:
        return self._blocks.read_stored(number, digest, length)

    def repair(self, number: int, digest: str, block: memoryview) -> None:
        self._blocks.repair(number, digest, block)

    def extents(self, index: Index) -> Iterator[Extent]:
        return self._blocks.extents(index)

    def is_stored(self, digest: str) -> bool | None:
        return self._blocks.is_stored(digest)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def images(reflink_folder: Path) -> Made:
    return Made(reflink_folder, "images")


@pytest.fixture(params=["chunks", "images"])
def either(request: pytest.FixtureRequest) -> Made:
    """A repository in each of both stores."""
    name = "made" if request.param == "chunks" else "images"
    found: Made = request.getfixturevalue(name)
    return found


def run(made: Made) -> list[Damage]:
    return list(verify(made.repository, made.repository.history().revisions, origins=[]))


def ranges(found: list[Damage]) -> list[tuple[str, str, int, int]]:
    return [(each.revision, each.disk, each.start, each.length) for each in found]


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        [byte] = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 0xFF]), offset)


def test_what_is_whole_becomes_verified_with_the_time(either: Made) -> None:
    first = either.backup(DISK)
    second = either.backup(changed(DISK, BLOCK))
    begin = datetime.now(UTC).replace(microsecond=0)
    assert run(either) == []
    for revision in (first, second):
        now = either.again(revision)
        assert now.trust is Trust.VERIFIED
        assert now.verified
        assert begin <= now.verified <= datetime.now(UTC)


def test_what_revisions_share_is_read_once_and_past_the_page_cache(made: Made) -> None:
    for content in (DISK, DISK, changed(DISK, DATA * BLOCK), DISK + sample(BLOCK)):
        made.backup(content)
    store = made.repository.store = CountingStore(made.repository.store)
    assert run(made) == []
    named = {
        line for revision in made.repository.history().revisions for line in made.lines(revision)
    }
    assert {digest for digest, _ in store.reads} == named
    assert set(store.reads.values()) == {1}
    assert store.caches == {Cache.AVOID}


def test_a_run_of_zero_blocks_is_read_once(made: Made) -> None:
    made.backup(bytes(100 * BLOCK) + sample(BLOCK))
    store = made.repository.store = CountingStore(made.repository.store)
    assert run(made) == []
    assert sum(store.reads.values()) == 2


def test_extents_that_images_share_are_read_once_and_all_others_each(images: Made) -> None:
    first = images.backup(DISK)
    images.backup(DISK)
    images.backup(changed(DISK, DATA * BLOCK))
    images.backup(DISK)  # the same again, but written anew
    store = images.repository.store = CountingStore(images.repository.store)
    assert run(images) == []
    lines = images.lines(first)
    assert store.reads[lines[0], 0] == 1
    assert store.reads[lines[DATA], DATA] == 2
    assert store.reads[images.lines(images.repository.history().revisions[2])[DATA], DATA] == 1
    assert store.reads[lines[FIRST_ZERO], FIRST_ZERO] == 0


def test_damage_is_named_for_every_revision_that_shares_it_and_for_no_other(made: Made) -> None:
    first = made.backup(DISK)
    same = made.backup(DISK)
    other = made.backup(changed(DISK, DATA * BLOCK))
    again = made.backup(DISK)
    flip(made.chunk(first, DATA), 100)
    found = run(made)
    assert ranges(found) == [
        (revision.id, "vda", DATA * BLOCK, BLOCK) for revision in (first, same, again)
    ]
    assert [made.again(each).trust for each in (first, same, other, again)] == [
        Trust.DISTRUSTED,
        Trust.DISTRUSTED,
        Trust.VERIFIED,
        Trust.DISTRUSTED,
    ]


def test_damage_is_named_where_the_block_lies_elsewhere_in_another_revision(made: Made) -> None:
    block = sample(BLOCK)
    first = made.backup(block + sample(BLOCK, seed=1))
    second = made.backup(sample(BLOCK, seed=2) + block)
    flip(made.chunk(first, 0), 100)
    assert ranges(run(made)) == [(first.id, "vda", 0, BLOCK), (second.id, "vda", BLOCK, BLOCK)]


def test_verify_never_stops_at_the_first_damage(made: Made) -> None:
    disks = {"vda": DISK, "vdb": sample(3 * BLOCK, seed=5)}
    revision = made.backup(**disks)
    for disk, number in (("vda", 0), ("vda", END_ZERO), ("vdb", 0), ("vdb", 2)):
        flip(made.chunk(revision, number, disk), 100)
    assert sorted(ranges(run(made))) == [
        (revision.id, "vda", 0, BLOCK),
        (revision.id, "vda", END_ZERO * BLOCK, BLOCK),
        (revision.id, "vdb", 0, BLOCK),
        (revision.id, "vdb", 2 * BLOCK, BLOCK),
    ]


def test_damaged_neighbours_are_one_range(made: Made) -> None:
    revision = made.backup(DISK)
    for number in (0, DATA):
        made.chunk(revision, number).unlink()
    [damage] = run(made)
    assert (damage.start, damage.length) == (0, 2 * BLOCK)
    assert "missing" in damage.reason


def test_a_missing_zero_chunk_names_all_blocks_that_are_zero(made: Made) -> None:
    revision = made.backup(DISK)
    made.chunk(revision, FIRST_ZERO).unlink()
    assert ranges(run(made)) == [(revision.id, "vda", FIRST_ZERO * BLOCK, 3 * BLOCK)]


def test_a_damaged_short_last_block_is_named_with_its_own_length(either: Made) -> None:
    revision = either.backup(DISK)
    if either.repository.settings.store == "chunks":
        either.chunk(revision, LAST).unlink()
    else:
        flip(either.repository.store.plain_path(revision, "vda").path, len(DISK) - 1)
    assert ranges(run(either)) == [(revision.id, "vda", LAST * BLOCK, SHORT)]


@pytest.mark.parametrize("damage", [lose, spoil], ids=["missing", "flipped"])
@pytest.mark.parametrize("copy", [0, 1], ids=["index", "twin"])
def test_an_index_with_one_bad_copy_is_repaired_by_the_other(
    either: Made, damage: Callable[[list[Path]], None], copy: int
) -> None:
    first, second = either.backup(DISK), either.backup(changed(DISK, BLOCK))
    copies = index_copies(either.root, either.repository.folder_of(first).path)
    whole = copies[0].read_bytes()
    damage([copies[copy]])
    assert run(either) == []
    assert [path.read_bytes() for path in copies] == [whole, whole]
    assert [either.again(each).trust for each in (first, second)] == [Trust.VERIFIED] * 2


@pytest.mark.parametrize("damage", [lose, spoil], ids=["missing", "flipped"])
def test_an_index_with_two_bad_copies_makes_its_whole_disk_damaged_and_no_other(
    either: Made, damage: Callable[[list[Path]], None]
) -> None:
    contents = (DISK, changed(DISK, 5), DISK)
    first, second, third = (either.backup(vda=each, vdb=b"x") for each in contents)
    damage(index_copies(either.root, either.repository.folder_of(second).path))
    [found] = run(either)
    assert ranges([found]) == [(second.id, "vda", 0, len(DISK))]
    assert "vda.blocks" in found.reason
    assert [either.again(each).trust for each in (first, second, third)] == [
        Trust.VERIFIED,
        Trust.DISTRUSTED,
        Trust.VERIFIED,
    ]


def test_damage_is_carried_on_past_a_revision_whose_index_is_gone(made: Made) -> None:
    first, second, third = (made.backup(each) for each in (DISK, changed(DISK, 5), DISK))
    flip(made.chunk(first, DATA), 100)
    lose(index_copies(made.root, made.repository.folder_of(second).path))
    assert sorted(ranges(run(made))) == [
        (first.id, "vda", DATA * BLOCK, BLOCK),
        (second.id, "vda", 0, len(DISK)),
        (third.id, "vda", DATA * BLOCK, BLOCK),
    ]


@pytest.mark.parametrize(
    ("number", "offset", "trust"),
    [
        pytest.param(DATA, DATA * BLOCK + 7, Trust.DISTRUSTED, id="in-data"),
        pytest.param(
            FIRST_ZERO + 1, (FIRST_ZERO + 1) * BLOCK + 4097, Trust.VERIFIED, id="in-a-hole"
        ),
    ],
)
def test_a_damaged_image_is_named_and_its_clones_are_not(
    images: Made, number: int, offset: int, trust: Trust
) -> None:
    first, second = images.backup(DISK), images.backup(changed(DISK, 3, offset))
    flip(images.repository.store.plain_path(first, "vda").path, offset)
    assert ranges(run(images)) == [(first.id, "vda", number * BLOCK, BLOCK)]
    assert images.again(first).trust is trust
    assert images.again(second).trust is Trust.VERIFIED


def test_a_missing_image_is_damaged_whole(images: Made) -> None:
    revision = images.backup(DISK)
    images.repository.store.plain_path(revision, "vda").path.unlink()
    assert ranges(run(images)) == [(revision.id, "vda", 0, len(DISK))]


@pytest.mark.parametrize("by", [-1, -BLOCK, -SHORT - BLOCK, 1, BLOCK])
@pytest.mark.parametrize("short", [0, SHORT], ids=["whole-blocks", "short-last-block"])
def test_an_image_of_another_size_is_damaged_since_cp_would_not_give_the_disk_back(
    images: Made, by: int, short: int
) -> None:
    content = sample(BLOCK) + bytes(5 * BLOCK + short)
    revision = images.backup(content)
    os.truncate(images.repository.store.plain_path(revision, "vda").path, len(content) + by)
    assert {each.revision for each in run(images)} == {revision.id}


def test_what_was_mended_is_trusted_again(made: Made) -> None:
    revision = made.backup(DISK)
    flip(made.chunk(revision, DATA), 100)
    assert len(run(made)) == 1
    flip(made.chunk(revision, DATA), 100)
    assert run(made) == []
    assert made.again(revision).trust is Trust.VERIFIED


def test_the_next_backup_stores_anew_what_is_damaged(either: Made) -> None:
    revision = either.backup(DISK)
    if either.repository.settings.store == "chunks":
        flip(either.chunk(revision, DATA), 100)
    else:
        flip(either.repository.store.plain_path(revision, "vda").path, DATA * BLOCK)
    assert len(run(either)) == 1
    healed = either.backup(DISK)
    assert healed.parent == revision.id
    assert healed.disks["vda"].changed == BLOCK
    assert either.read(healed) == DISK


def test_a_revision_removed_meanwhile_is_not_called_damaged_and_the_others_are_verified(
    made: Made,
) -> None:
    first, second, third = (made.backup(sample(BLOCK, seed)) for seed in range(3))
    revisions = made.repository.history().revisions
    trash.remove(made.repository, [second])
    assert list(verify(made.repository, revisions, origins=[])) == []
    assert [made.again(each).trust for each in (first, third)] == [Trust.VERIFIED] * 2
    assert names(made.root / "revisions") == [first.id, third.id]


def test_a_revision_that_could_not_be_read_is_not_called_verified(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "PATIENCE", 0)
    revision = made.backup(DISK)
    with locked(made.repository.folder_of(revision).path), suppress(BackyError):
        run(made)
    assert made.again(revision).trust is not Trust.VERIFIED


def test_all_bytes_are_announced_and_then_reported(made: Made) -> None:
    class Total(Watcher):
        begun = 0
        done = 0

        def begin(self, total: int) -> None:
            self.begun += total

        def advance(self, length: int) -> None:
            self.done += length

        def warn(self, text: str) -> None:
            pytest.fail(text)

        def note(self, text: str) -> None:
            pytest.fail(text)

    made.backup(vda=DISK, vdb=b"x")
    bad = made.backup(vda=DISK, vdb=b"y")
    lose(index_copies(made.root, made.repository.folder_of(bad).path, "vdb"))
    total = Total()
    assert (
        len(
            list(
                verify(
                    made.repository, made.repository.history().revisions, origins=[], watcher=total
                )
            )
        )
        == 1
    )
    assert total.begun == total.done == 2 * (len(DISK) + 1)
