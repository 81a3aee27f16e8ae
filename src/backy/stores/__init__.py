"""Stores: how a repository keeps the blocks of its disks. A plug-in is a class like `Store`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from backy.model.revision import Disk, Revision
from backy.plugins import load
from backy.stores.blocks import BlockDraft, StoredImage
from backy.stores.codec import Codec
from backy.stores.index import Index
from backy.system.files import Cache
from backy.system.place import Place

_BUILT_IN = {"chunks": "backy.stores.chunks:ChunkStore", "images": "backy.stores.images:ImageStore"}


class Store(Protocol):
    """Keeps the disks of one repository. Every method may raise StoreError."""

    shares_blocks: bool
    """Whether blocks with the same digest share their stored bytes, in all disks and revisions."""

    def draft(
        self, folder: Place, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[BlockDraft]:
        """A draft of a disk of `size` bytes in the revision's `folder`; starts as `parent`'s disk.

        `parent` must be published and have the disk. On a clean exit all blocks and the index are
        written; the repository's barrier makes them durable. After an exception the caller
        deletes the folder.
        """

    def open(
        self, revision: Revision, disk: str, cache: Cache = Cache.SPARE, *, may_be_cut: bool = False
    ) -> AbstractContextManager[StoredImage]:
        """A disk of a published revision. Every read checks the hash.

        Raises DamagedError if the index is not the one that was published, or if the stored image
        has another size. With `may_be_cut` a shorter image is opened; reading what it lacks
        raises DamagedError.
        """

    def open_index(self, folder: Place, disk: str, record: Disk) -> AbstractContextManager[Index]:
        """The index of a disk of the revision in `folder`, which may be in the trash.

        `record` is the disk in its revision.json. Raises DamagedError if the index is not the one
        that was published.
        """

    def plain_path(self, revision: Revision, disk: str) -> Place:
        """The file that a script needs for this disk: the raw image, or the index."""

    def collect(
        self, indexes: Iterable[Index], leave: Callable[[Place], None] = lambda _: None
    ) -> int:
        """Delete the blocks that no index in `indexes` uses; return how many bytes that freed.

        What no store made stays, and `leave` gets it. The caller holds the lock of the
        repository, so no draft is being written.
        """


class StoreClass(Protocol):
    """The class of a store."""

    def __call__(self, root: Place, block_size: int, codec: Codec) -> Store:
        """The store of the repository in the folder `root`; creates nothing on disk."""


def store_class(name: str) -> StoreClass:
    """The store called `name`. Raises ConfigError if no installed package offers it."""
    return load("backy.stores", name, _BUILT_IN)  # type: ignore[no-any-return]
