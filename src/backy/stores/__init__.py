"""Stores: how a repository keeps the blocks of its images. A plug-in is a class like `Store`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from backy.model.revision import Disk, Revision
from backy.plugins import load
from backy.stores.blocks import BlockDraft, StoredImage
from backy.stores.codec import Codec
from backy.stores.index import Index
from backy.system.files import Cache

_BUILT_IN = {"chunks": "backy.stores.chunks:ChunkStore", "images": "backy.stores.images:ImageStore"}


class Store(Protocol):
    """Keeps the images of one repository below `root`. Every method may raise StoreError."""

    shares_blocks: bool
    """Whether two index lines that are equal stand for one piece of stored bytes."""

    def draft(
        self, folder: Path, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[BlockDraft]:
        """A draft of a disk of `size` bytes in the draft's `folder`; it starts as `parent`'s disk.

        `parent` must be published and have the disk. On a clean exit all blocks and the index
        are handed to the file system; the repository's barrier makes them durable. After an
        exception the folder is thrown away.
        """

    def open(
        self, revision: Revision, disk: str, cache: Cache = Cache.SPARE, *, may_be_cut: bool = False
    ) -> AbstractContextManager[StoredImage]:
        """The image of a disk of a published revision; every read of it checks the hash.

        Raises DamagedError where the index is not the one that the revision was published with,
        or the image is not as long as it was; a shorter one `may_be_cut` can allow. Reading
        what it lacks raises DamagedError then.
        """

    def open_index(self, folder: Path, disk: str, record: Disk) -> AbstractContextManager[Index]:
        """The index of a disk of the revision that lies in `folder`, in the history or the trash.

        `record` is what its revision.json says of the disk. Raises DamagedError where the index
        is not the one that the revision was published with.
        """

    def plain_path(self, revision: Revision, disk: str) -> Path:
        """The file that a script would look at: the raw image, or the index."""

    def collect(self, indexes: Iterable[Index]) -> int:
        """Drop the blocks that none of `indexes` names; give the bytes that were freed.

        The caller holds the repository's lock, so that no draft is being written.
        """


class StoreClass(Protocol):
    """What makes a store: its root folder, its block size in bytes, its repository's codec."""

    def __call__(self, root: Path, block_size: int, codec: Codec) -> Store:
        """Open the store; makes nothing on disk."""


def store_class(name: str) -> StoreClass:
    """The store called `name`. Raises ConfigError where no installed package offers it."""
    return load("backy.stores", name, _BUILT_IN)  # type: ignore[no-any-return]
