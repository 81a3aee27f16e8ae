"""A store with published revisions and no repository around them: what the suites work on."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backy.image.copy import copy
from backy.image.image import Image
from backy.model.revision import Consistency, Disk, Revision, id_for
from backy.stores import Store, StoreClass
from backy.stores.blocks import StoredImage
from backy.stores.codec import Codec
from backy.stores.draft import BlockDraft, draft_disk
from backy.stores.used import Used
from backy.stores.zstd import ZstdCodec
from backy.system.place import Place
from tests.lab.paged import block_hashes, copies, page_names, text_of
from tests.memory_source import BytesImage

DISK = "vda"
_EPOCH = datetime(2026, 11, 23, tzinfo=UTC)


@dataclass
class Shelf:
    """A new, empty store below `root`, and what was published in it."""

    root: Path
    store: Store
    block_size: int
    codec: Codec
    revisions: list[Revision] = field(default_factory=list)

    @classmethod
    def new(
        cls, root: Path, make_store: StoreClass, block_size: int, codec: Codec | None = None
    ) -> "Shelf":
        (root / "revisions").mkdir(parents=True)
        codec = codec or ZstdCodec(1)
        return cls(root, make_store(Place.at(root), block_size, codec), block_size, codec)

    @contextmanager
    def draft(self, size: int, parent: Revision | None = None) -> Iterator[BlockDraft]:
        """A draft in a folder of its own, which stays there."""
        with draft_disk(self.store, self.new_folder(), DISK, size, parent) as draft:
            yield draft

    def new_folder(self) -> Place:
        name = f".{self.next_id()}"
        (self.root / "revisions" / name).mkdir()
        return Place.at(self.root) / "revisions" / name

    def next_id(self) -> str:
        count = len(list((self.root / "revisions").iterdir()))
        return id_for(_EPOCH + timedelta(seconds=count), "test")

    def publish(self, content: bytes | Image, parent: Revision | None = None) -> Revision:
        """A revision whose only disk is `content`."""
        image = BytesImage(content) if isinstance(content, bytes) else content
        folder = self.new_folder()
        with draft_disk(self.store, folder, DISK, image.size, parent) as draft:
            read = copy(image, draft)
            disk = Disk(
                size=image.size,
                block_size=self.block_size,
                index_hash=draft.finish(),
                read=read,
                changed=draft.changed,
                stored=draft.stored,
                pages=draft.index.page_bytes,
            )
        return self.rename(folder, disk, parent)

    def rename(self, folder: Place, disk: Disk, parent: Revision | None = None) -> Revision:
        """Publish what lies in a draft's folder."""
        revision = Revision(
            id=folder.name.lstrip("."),
            time=_EPOCH,
            parent=parent.id if parent else None,
            seconds=0,
            consistency=Consistency.CRASH,
            disks={DISK: disk},
        )
        folder.path.rename(self.folder(revision))
        self.revisions.append(revision)
        return revision

    def flat(self, revision: Revision) -> Revision:
        """A revision as format 1 has it: its index lists the blocks, and it has no pages."""
        index = text_of(digests(self, revision))
        self.index(revision).write_bytes(index)
        disk = replace(revision.disks[DISK], index_hash=self.codec.digest(index))
        for folder in ("pages", "twins"):
            shutil.rmtree(self.root / folder)
        return replace(revision, format=1, disks={DISK: disk})

    def folder(self, revision: Revision) -> Path:
        return self.root / "revisions" / revision.id

    def index(self, revision: Revision) -> Path:
        return self.folder(revision) / f"{DISK}.blocks"

    @contextmanager
    def open(self, revision: Revision) -> Iterator[StoredImage]:
        with self.store.open(revision, DISK) as image:
            yield image

    def read(self, revision: Revision, offset: int = 0, length: int | None = None) -> bytes:
        size = revision.disks[DISK].size
        content = bytearray(size - offset if length is None else length)
        with self.open(revision) as image:
            image.readinto(offset, memoryview(content))
        return bytes(content)

    def collect(self, *keep: Revision) -> int:
        """Drop what none of `keep` names; what is not kept needs no folder any more."""
        used = Used(has_named_blocks=self.store.shares_blocks)
        for each in keep:
            with self.store.open_index(each, DISK) as index:
                used.add(index, each.disks[DISK].index_hash)
        assert not used.unknown
        return self.store.collect(used)

    def pages(self, revision: Revision) -> list[list[Path]]:
        """Both copies of each page, in the order of the disk."""
        return [copies(self.root, name) for name in page_names(self.folder(revision), DISK)]


def digests(shelf: Shelf, revision: Revision) -> list[str]:
    """The hashes of the blocks."""
    if revision.format == 1:
        return page_names(shelf.folder(revision), DISK)
    return block_hashes(shelf.root, shelf.folder(revision), DISK)
