"""Any order of commands leaves a repository with exactly what a bytearray a revision says.

The model knows nothing of blocks, indexes or files: a revision is the bytes of its disks.
"""

import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from backy.errors import NotFoundError, SourceError
from backy.model.revision import Revision, Trust
from backy.operations.backup import backup
from backy.operations.heal import Damage
from backy.operations.restore import restore
from backy.operations.verify import verify
from backy.repository import trash
from backy.repository.create import create
from backy.repository.manifest import Settings
from backy.repository.repository import Repository
from backy.repository.tags import retag
from backy.stores.codec import Codec
from backy.stores.zstd import ZstdCodec
from backy.units import KiB
from tests.keyed_codec import KeyedCodec
from tests.lab.handmade import frame_length
from tests.lab.indexes import COPIES, format_of, turn_back
from tests.lab.paged import block_hashes, page_names, place
from tests.lab.repositories import names
from tests.memory_source import FailingSource, MemorySource, changed, sample

BLOCK = 64 * KiB
SIZES = st.sampled_from(
    [1, 511, 4096, BLOCK - 1, BLOCK, 3 * BLOCK, 3 * BLOCK + 12_345]
) | st.integers(1, 6 * BLOCK)
SEEDS = st.integers(0, 5)  # few, so that content that was stored once comes back
OFFSETS = st.integers(0, 5).map(lambda number: number * BLOCK) | st.integers(0, 6 * BLOCK)


@dataclass(frozen=True)
class Change:
    """What happens to a disk between two backups; `length` and `offset` are bytes."""

    kind: Literal["new", "gone", "part", "zero", "size"]
    disk: Literal["vda", "vdb"]
    seed: int
    offset: int
    length: int

    def apply(self, disks: dict[str, bytes]) -> dict[str, bytes]:
        """The disks as they are then; there is always one."""
        old, end = disks.get(self.disk, b""), self.offset + self.length
        new = old
        match self.kind:
            case "new":
                new = sample(self.length, self.seed)
            case "gone":
                rest = {name: content for name, content in disks.items() if name != self.disk}
                return rest or disks
            case "part":
                new = changed(old, self.offset, length=self.length, seed=self.seed)
            case "zero":
                new = old[: self.offset] + bytes(len(old[self.offset : end])) + old[end:]
            case "size":
                new = (old + sample(self.length, self.seed))[: self.length]
        return disks | ({self.disk: new} if new else {})


CHANGES = st.lists(
    st.builds(
        Change,
        kind=st.sampled_from(["new", "gone", "part", "zero", "zero", "size"]),
        disk=st.sampled_from(["vda", "vda", "vda", "vdb"]),
        seed=SEEDS,
        offset=OFFSETS,
        length=SIZES,
    ),
    max_size=3,
)


@dataclass
class Kept:
    """What the model knows of a revision."""

    disks: dict[str, bytes]
    tags: tuple[str, ...]
    trust: Trust = Trust.TRUSTED


class Commands(RuleBasedStateMachine):
    """One repository in a new folder, and a model of it."""

    store: ClassVar[str]
    codec: ClassVar[Codec]
    base: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.resources = ExitStack()
        folder = self.resources.enter_context(tempfile.TemporaryDirectory(dir=self.base))
        self.folder = Path(folder)
        made = create(self.folder / "base", "vm", Settings(self.store, BLOCK))
        self.repository = Repository(made.folder, lambda _: self.codec)
        self.now: dict[str, bytes] = {}
        self.history: dict[str, Kept] = {}
        self.removed: list[dict[str, Kept]] = []

    def teardown(self) -> None:
        self.resources.close()

    @initialize(size=SIZES, seed=SEEDS)
    def has_a_disk(self, size: int, seed: int) -> None:
        self.now = {"vda": sample(size, seed)}

    @rule(changes=CHANGES, knows=st.booleans())
    def backs_up(self, changes: list[Change], knows: bool) -> None:
        for change in changes:
            self.now = change.apply(self.now)
        known = {each: kept.disks for each, kept in self.history.items()} if knows else {}
        source = MemorySource(self.now, known)
        parent = max(self.history, default=None)
        revision = backup(self.repository, source, tags=("daily",))
        assert source.kept == 1
        assert revision.id > max(self.history, default="")
        assert revision.parent == parent
        self.history[revision.id] = Kept(self.now, ("daily",))

    @rule(changes=CHANGES, knows=st.booleans())
    def backs_up_again(self, changes: list[Change], knows: bool) -> None:
        self.backs_up(changes, knows)

    @rule()
    def fails_to_back_up(self) -> None:
        disks = {name: content[::-1] for name, content in self.now.items()}
        with pytest.raises(SourceError, match="input/output"):
            backup(self.repository, FailingSource(disks))

    @precondition(lambda self: self.history)
    @rule(data=st.data(), add=st.booleans())
    def tags(self, data: st.DataObject, add: bool) -> None:
        revision = data.draw(self.one())
        more, less = ({"x"}, set[str]()) if add else (set[str](), {"x"})
        retag(self.repository, [revision], add=more, drop=less)
        kept = self.history[revision.id]
        kept.tags = tuple(sorted(({"x"} if add else set()) | (set(kept.tags) - {"x"})))

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def removes(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(self.one(), min_size=1, max_size=3, unique_by=lambda r: r.id))
        trash.remove(self.repository, chosen)
        self.removed.append({each.id: self.history.pop(each.id) for each in chosen})

    @rule()
    def undoes(self) -> None:
        if not self.removed:
            with pytest.raises(NotFoundError, match="trash is empty"):
                trash.undo(self.repository)
            return
        assert set(trash.undo(self.repository)) == set(self.removed[-1])
        self.history |= self.removed.pop()

    @rule()
    def purges(self) -> None:
        purged = trash.purge(self.repository)
        gone = {each for batch in self.removed for each in batch}
        assert set(purged.revisions) | set(purged.kept) == gone
        kept = [{i: batch[i] for i in batch if i in purged.kept} for batch in self.removed]
        self.removed = [batch for batch in kept if batch]
        assert purged.unknown == ()
        assert self.lists() == self.used_lists("revisions/*", "trash/*/*")
        if self.store == "chunks":
            assert self.chunks() == self.named()

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def restores(self, data: st.DataObject) -> None:
        revision = data.draw(self.one())
        name = data.draw(st.sampled_from(sorted(revision.disks)))
        target = self.folder / "target"
        restore(self.repository, revision, name, str(target), origins=[])
        assert target.read_bytes() == self.history[revision.id].disks[name]

    @rule()
    def verifies(self) -> None:
        assert list(verify(self.repository, self.repository.history().revisions, origins=[])) == []
        for kept in self.history.values():
            kept.trust = Trust.VERIFIED

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def verifies_a_damaged_block(self, data: st.DataObject) -> None:
        """Exactly those revisions are named that have the block, and it is mended afterwards."""
        revision = data.draw(self.one())
        name = data.draw(st.sampled_from(sorted(revision.disks)))
        number = data.draw(st.integers(0, (revision.disks[name].size - 1) // BLOCK))
        path, offset = self.place_of(revision, name, number)
        before = path.read_bytes()
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), bytes([before[offset] ^ 1]), offset)
        found = list(verify(self.repository, self.repository.history().revisions, origins=[]))
        digest = self.lines(revision, name)[number]
        assert {self.block_of(each) for each in found} == {digest}
        assert {each.revision for each in found} == self.holders(revision, digest)
        for each, kept in self.history.items():
            damaged = any(damage.revision == each and not damage.healed for damage in found)
            kept.trust = Trust.DISTRUSTED if damaged else Trust.VERIFIED
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), before[offset : offset + 1], offset)

    @precondition(lambda self: self.used_lists("revisions/*"))
    @rule(data=st.data())
    def verifies_after_one_copy_was_lost(self, data: st.DataObject) -> None:
        """Of a page or of an index: the other one does, and brings it back."""
        name = data.draw(st.sampled_from(sorted(self.used_lists("revisions/*"))))
        lost = self.repository.folder / name
        lost.unlink()
        self.verifies()
        assert lost.exists()

    @rule()
    def was_written_by_an_older_version(self) -> None:
        """All of it becomes format 1."""
        turn_back(self.repository.folder, self.codec.digest)
        self.repository = Repository(self.repository.folder, lambda _: self.codec)

    def one(self) -> st.SearchStrategy[Revision]:
        return st.sampled_from(self.repository.history().revisions)

    def lines(self, revision: Revision, name: str) -> list[str]:
        folder = self.repository.folder_of(revision).path
        return block_hashes(self.repository.folder, folder, name)

    def holders(self, revision: Revision, digest: str) -> set[str]:
        """The revisions that a damage of that revision's block touches."""
        if self.store == "images":
            return {revision.id}
        history = self.repository.history().revisions
        return {
            each.id for each in history for name in each.disks if digest in self.lines(each, name)
        }

    def block_of(self, damage: Damage) -> str:
        """The hash of the damaged block; there may be several alike in a row, but not others."""
        revision = next(
            each for each in self.repository.history().revisions if each.id == damage.revision
        )
        end = damage.start + damage.length
        [digest] = set(self.lines(revision, damage.disk)[damage.start // BLOCK : -(-end // BLOCK)])
        return digest

    def place_of(self, revision: Revision, name: str, number: int) -> tuple[Path, int]:
        path = self.repository.store.plain_path(revision, name).path
        if self.store == "images":
            return path, number * BLOCK
        digest = self.lines(revision, name)[number]
        name = f"{digest}{self.codec.suffix}"
        path = self.repository.folder / "chunks" / digest[:2] / name
        is_zstd = path.suffix == ".zst"
        return path, (frame_length(path) if is_zstd else path.stat().st_size) - 1

    def chunks(self) -> set[str]:
        return {path.name for path in self.repository.folder.glob("chunks/*/*")}

    def named(self) -> set[str]:
        root = self.repository.folder
        names = {
            name
            for index in self.indexes("revisions/*", "trash/*/*")
            for name in block_hashes(root, index.parent, index.stem)
        }
        return {f"{name}{self.codec.suffix}" for name in names}

    def indexes(self, *folders: str) -> list[Path]:
        root = self.repository.folder
        return [path for each in folders for path in root.glob(f"{each}/*.blocks")]

    def lists(self) -> set[str]:
        """The pages and twins that are stored."""
        root = self.repository.folder
        return {str(path.relative_to(root)) for each in COPIES for path in root.glob(f"{each}/*/*")}

    def used_lists(self, *folders: str) -> set[str]:
        """Those that the revisions of format 2 in these folders use."""
        used = set()
        for index in self.indexes(*folders):
            if format_of(index.parent) == 2:
                pages = page_names(index.parent, index.stem)
                used |= {str(place(Path(), copy, each)) for each in pages for copy in COPIES}
                twin = self.codec.digest(index.read_bytes())
                used.add(str(place(Path(), "twins", twin)))
        return used

    # What holds after every step.

    @invariant()
    def history_is_the_model(self) -> None:
        history = self.repository.history().revisions
        assert self.repository.history().unreadable == {}
        assert [each.id for each in history] == sorted(self.history)
        for each in history:
            kept = self.history[each.id]
            assert (each.tags, each.trust) == (kept.tags, kept.trust)
            assert {name: disk.size for name, disk in each.disks.items()} == {
                name: len(content) for name, content in kept.disks.items()
            }

    @invariant()
    def the_oldest_and_the_newest_revision_read_as_they_were_backed_up(self) -> None:
        history = self.repository.history().revisions
        for each in {revision.id: revision for revision in history[:1] + history[-1:]}.values():
            self.reads(each)

    def reads(self, revision: Revision) -> None:
        for name, content in self.history[revision.id].disks.items():
            read = bytearray(len(content))
            with self.repository.store.open(revision, name) as image:
                image.readinto(0, memoryview(read))
            assert read == content

    @invariant()
    def nothing_lies_about_but_revisions(self) -> None:
        assert names(self.repository.folder / "revisions") == sorted(self.history)


def run(store: str, base: Path, codec: Codec, share: float) -> None:
    """That share of as many examples as the profile says."""
    machine = type("Commands", (Commands,), {"store": store, "base": base, "codec": codec})
    examples = max(1, int(settings().max_examples * share))
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=20)
    )


def test_any_order_of_commands_leaves_what_the_model_says_in_chunks(tmp_path: Path) -> None:
    run("chunks", tmp_path, ZstdCodec(1), 0.4)


def test_any_order_of_commands_leaves_what_the_model_says_in_images(reflink_folder: Path) -> None:
    run("images", reflink_folder, ZstdCodec(1), 0.4)


@pytest.mark.parametrize("store", ["chunks", "images"])
def test_any_order_of_commands_leaves_what_the_model_says_with_another_codec(
    store: str, reflink_folder: Path
) -> None:
    run(store, reflink_folder, KeyedCodec(), 0.1)
