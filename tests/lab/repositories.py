"""A repository with revisions of disks in memory, for tests of what is done with those."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backy.model.revision import Revision
from backy.operations.backup import backup
from backy.repository.create import create
from backy.repository.manifest import Settings
from backy.repository.repository import Repository
from backy.stores.codec import Codec
from backy.units import KiB
from tests.lab.paged import block_hashes, copies, page_names
from tests.memory_source import MemorySource

BLOCK = 64 * KiB


def names(folder: Path) -> list[str]:
    """What lies in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


@dataclass
class Made:
    """A repository "vm1" in `base`, and what was backed up to it."""

    base: Path
    store: str = "chunks"
    contents: dict[str, Mapping[str, bytes]] = field(default_factory=dict, repr=False)
    codec: Codec | None = None  # None: the one that the repository makes from its settings
    repository: Repository = field(init=False)

    def __post_init__(self) -> None:
        self.repository = create(self.base, "vm1", Settings(self.store, BLOCK))
        if codec := self.codec:
            self.repository = Repository(self.repository.folder, lambda _: codec)

    @property
    def root(self) -> Path:
        return self.repository.folder

    def backup(self, content: bytes = b"disk", **disks: bytes) -> Revision:
        """A revision of these disks, or of one called vda."""
        made = disks or {"vda": content}
        revision = backup(self.repository, MemorySource(made))
        self.contents[revision.id] = made
        return revision

    def ids(self) -> list[str]:
        return [each.id for each in self.repository.history().revisions]

    def again(self, revision: Revision) -> Revision:
        """The revision as it is now on disk."""
        return self.repository.find(revision.id)

    def read(self, revision: Revision, disk: str = "vda") -> bytes:
        content = bytearray(revision.disks[disk].size)
        with self.repository.store.open(revision, disk) as image:
            image.readinto(0, memoryview(content))
        return bytes(content)

    def intact(self) -> bool:
        """Whether every revision of the history gives back what was backed up."""
        return all(
            self.read(revision, name) == content
            for revision in self.repository.history().revisions
            for name, content in self.contents[revision.id].items()
        )

    def lines(self, revision: Revision, disk: str = "vda") -> list[str]:
        """The hash of each block."""
        return block_hashes(self.root, self.folder(revision), disk)

    def folder(self, revision: Revision) -> Path:
        return self.repository.folder_of(revision).path

    def pages(self, revision: Revision, disk: str = "vda") -> list[list[Path]]:
        """Both copies of each page, in the order of the disk."""
        return [copies(self.root, name) for name in page_names(self.folder(revision), disk)]

    def chunk(self, revision: Revision, number: int, disk: str = "vda") -> Path:
        """The file with a block, in the store "chunks"."""
        digest = self.lines(revision, disk)[number]
        return self.root / "chunks" / digest[:2] / f"{digest}{self.repository.codec.suffix}"

    def chunks(self) -> set[str]:
        return {path.name for path in self.root.glob("chunks/*/*")}

    def stored(self) -> set[Path]:
        """Every file in the folders that revisions share: chunks, pages and twins."""
        return {
            path
            for folder in ("chunks", "pages", "twins")
            for path in self.root.glob(f"{folder}/*/*")
        }
