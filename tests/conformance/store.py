"""What every store promises.  A store joins with a class of its own in a test module:

class TestMyStore(StoreSuite):
    make_store: ClassVar[StoreClass] = MyStore

    def damage(self, shelf: Shelf, revision: Revision, number: int) -> None:
        ...  # change a stored byte of block `number` of the revision's disk

A store that needs another file system than pytest's overrides the fixture `folder`, too.
"""

from abc import abstractmethod
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from backy.errors import DamagedError
from backy.model.extent import Kind
from backy.model.revision import Revision
from backy.stores.draft import draft_disk
from backy.system.files import PAGE
from backy.units import KiB, MiB
from tests.conformance.paging import LosingSuite
from tests.conformance.shelf import Shelf, digests
from tests.memory_source import BytesImage, changed, sample
from tests.memory_store import MemoryStore

ODD = 12_345  # bytes; no multiple of a block, a page or a sector
BLOCK_SIZES = [
    pytest.param(64 * KiB, id="64KiB"),
    pytest.param(MiB, id="1MiB"),
    pytest.param(4 * MiB, id="4MiB"),
]


class StoreSuite(LosingSuite):
    """One store in `folder`, at each of several block sizes, with one codec."""

    @abstractmethod
    def damage(self, shelf: Shelf, revision: Revision, number: int) -> None:
        """Change a stored byte of that block behind the store's back."""

    @pytest.fixture(params=BLOCK_SIZES)
    def shelf(self, folder: Path, request: pytest.FixtureRequest) -> Shelf:
        return self.new_shelf(folder, request.param)

    @pytest.fixture
    def small(self, folder: Path) -> Shelf:
        """For what has nothing to do with the block size."""
        return self.new_shelf(folder, 64 * KiB)

    @pytest.mark.parametrize(
        ("blocks", "more"),
        [
            pytest.param(3, 0, id="whole-blocks"),
            pytest.param(2, ODD, id="short-last-block"),
            pytest.param(2, 1, id="last-block-of-one-byte"),
            pytest.param(0, 4095, id="smaller-than-a-block"),
        ],
    )
    def test_gives_back_what_was_written(self, shelf: Shelf, blocks: int, more: int) -> None:
        content = sample(blocks * shelf.block_size + more)
        revision = shelf.publish(content)
        assert shelf.read(revision) == content

    def test_each_block_has_its_digest(self, shelf: Shelf) -> None:
        content = sample(2 * shelf.block_size + ODD)
        revision = shelf.publish(content)
        size = shelf.block_size
        plain = [content[start : start + size] for start in range(0, len(content), size)]
        assert digests(shelf, revision) == [self.digest(block) for block in plain]

    def test_keeps_through_a_history_what_the_memory_store_keeps(
        self, shelf: Shelf, tmp_path: Path
    ) -> None:
        memory = Shelf.new(tmp_path / "memory", MemoryStore, shelf.block_size, self.codec)
        random, content = Random(7), sample(2 * shelf.block_size + ODD)
        ours = theirs = None
        for step in range(3):
            ours = shelf.publish(content, ours)
            theirs = memory.publish(content, theirs)
            assert shelf.read(ours) == memory.read(theirs) == content
            assert digests(shelf, ours) == digests(memory, theirs)
            assert ours.disks["vda"].changed == theirs.disks["vda"].changed
            assert ours.disks["vda"].read == theirs.disks["vda"].read
            content = changed(content, random.randrange(len(content)), seed=step)
            start = random.randrange(len(content))
            content = (
                content[:start]
                + bytes(len(content[start : start + 5000]))
                + content[start + 5000 :]
            )

    def test_extents_are_zero_where_whole_blocks_are_zero(self, shelf: Shelf) -> None:
        size = shelf.block_size
        content = sample(size) + bytes(3 * size) + sample(size) + bytes(ODD)
        with shelf.open(shelf.publish(content)) as image:
            extents = list(image.extents())
        zeroes = {
            block
            for extent in extents
            if extent.kind is Kind.ZERO
            for block in range(extent.start // size, -(-extent.end // size))
        }
        assert zeroes == {1, 2, 3, 5}

    def test_nothing_is_stored_for_blocks_reported_as_unchanged(self, shelf: Shelf) -> None:
        content = sample(3 * shelf.block_size + ODD)
        parent = shelf.publish(content)
        revision = shelf.publish(BytesImage(content, parent=content), parent)
        disk = revision.disks["vda"]
        assert (disk.read, disk.changed, disk.stored) == (0, 0, 0)
        assert shelf.read(revision) == content

    def test_nothing_is_stored_for_blocks_that_were_read_and_did_not_change(
        self, shelf: Shelf
    ) -> None:
        content = sample(3 * shelf.block_size + ODD)
        parent = shelf.publish(content)
        disk = shelf.publish(content, parent).disks["vda"]
        assert (disk.changed, disk.stored) == (0, 0)

    def test_a_change_counts_the_blocks_that_it_touches(self, shelf: Shelf) -> None:
        size = shelf.block_size
        content = sample(4 * size + ODD)
        parent = shelf.publish(content)
        new = changed(content, size // 8, 4 * size + ODD - 1)
        disk = shelf.publish(new, parent).disks["vda"]
        assert disk.changed == size + ODD
        assert 0 < disk.stored <= 1.02 * (size + ODD) + 2 * 2 * PAGE  # both are padded to pages

    @pytest.mark.parametrize(
        "by", [ODD, 64 * KiB, 1, -1, -ODD, -64 * KiB, -150_001], ids=lambda by: f"by{by:+}"
    )
    @pytest.mark.parametrize("tail", ["data", "zeroes"])
    def test_a_disk_may_be_resized(self, small: Shelf, by: int, tail: str) -> None:
        content = sample(3 * small.block_size + ODD)
        parent = small.publish(content)
        more = sample(max(by, 0), seed=2) if tail == "data" else bytes(max(by, 0))
        new = content[: len(content) + by] if by < 0 else content + more
        revision = small.publish(new, parent)
        assert small.read(revision) == new
        assert small.read(small.publish(content, revision)) == content
        assert small.read(parent) == content

    def test_a_disk_may_become_zero_and_come_back(self, shelf: Shelf) -> None:
        content = sample(2 * shelf.block_size + ODD)
        first = shelf.publish(content)
        empty = shelf.publish(bytes(len(content)), first)
        again = shelf.publish(content, empty)
        assert [shelf.read(each) for each in (first, empty, again)] == [
            content,
            bytes(len(content)),
            content,
        ]

    def test_a_parent_that_is_removed_while_its_child_is_written_is_not_missed(
        self, shelf: Shelf
    ) -> None:
        content = sample(3 * shelf.block_size + ODD)
        parent = shelf.publish(content)
        new = changed(content, shelf.block_size + 5)
        folder = shelf.new_folder()
        with draft_disk(shelf.store, folder, "vda", len(new), parent) as draft:
            shelf.folder(parent).rename(shelf.root / "removed")
            start = shelf.block_size
            draft.write(start, memoryview(new)[start : 2 * start])
            disk = replace(parent.disks["vda"], index_hash=draft.finish())
        revision = shelf.rename(folder, disk, parent)
        assert shelf.read(revision) == new

    def test_a_draft_that_fails_leaves_what_was_published_as_it_was(self, small: Shelf) -> None:
        content = sample(3 * small.block_size + ODD)
        parent = small.publish(content)
        with suppress(KeyboardInterrupt), small.draft(len(content), parent) as draft:
            draft.write(0, memoryview(sample(2 * small.block_size, seed=9)))
            draft.zero(2 * small.block_size, small.block_size + ODD)
            raise KeyboardInterrupt
        assert small.read(parent) == content

    def test_a_draft_that_misses_a_block_is_not_given_a_hash(self, small: Shelf) -> None:
        with small.draft(3 * small.block_size) as draft:
            draft.write(0, memoryview(sample(small.block_size)))
            draft.zero(2 * small.block_size, small.block_size)
            with pytest.raises(DamagedError, match="block 1 was never written"):
                draft.finish()

    @pytest.mark.parametrize("by", [1, -1], ids=["grown", "shrunk"])
    def test_a_resized_disk_does_not_begin_with_the_short_last_block_of_its_parent(
        self, small: Shelf, by: int
    ) -> None:
        content = sample(2 * small.block_size + ODD)
        parent = small.publish(content)
        with small.draft(len(content) + by, parent) as draft:
            with pytest.raises(DamagedError, match="block 2 was never written"):
                draft.finish()
            draft.zero(2 * small.block_size, ODD + by)
            assert draft.finish()

    def test_any_revision_can_be_removed_without_the_others(self, small: Shelf) -> None:
        contents = [sample(4 * small.block_size + ODD)]
        revisions = [small.publish(contents[0])]
        for step in range(3):
            contents.append(changed(contents[-1], step * small.block_size, seed=step))
            revisions.append(small.publish(contents[-1], revisions[-1]))
        for number in (0, 2):
            for file in small.folder(revisions[number]).iterdir():
                file.unlink()
        small.collect(revisions[1], revisions[3])
        assert small.read(revisions[1]) == contents[1]
        assert small.read(revisions[3]) == contents[3]

    def test_the_path_for_scripts_exists(self, small: Shelf) -> None:
        revision = small.publish(sample(ODD))
        path = small.store.plain_path(revision, "vda").path
        assert path.is_file()
        assert path.parent == small.folder(revision)

    def test_a_damaged_block_is_named_and_the_others_are_given(self, shelf: Shelf) -> None:
        size = shelf.block_size
        content = sample(size) + sample(size, seed=1) + sample(size, seed=2) + sample(ODD, seed=3)
        revision = shelf.publish(content)
        self.damage(shelf, revision, 1)
        with pytest.raises(DamagedError, match=rf"\b{size}\b"):
            shelf.read(revision)
        with pytest.raises(DamagedError, match=rf"\b{size}\b"):
            shelf.read(revision, 2 * size - 1, 1)
        assert shelf.read(revision, 0, size) == content[:size]
        assert shelf.read(revision, 2 * size) == content[2 * size :]

    def test_a_damaged_short_last_block_is_named(self, small: Shelf) -> None:
        revision = small.publish(sample(small.block_size + ODD))
        self.damage(small, revision, 1)
        with pytest.raises(DamagedError, match=rf"\b{small.block_size}\b"):
            small.read(revision)
