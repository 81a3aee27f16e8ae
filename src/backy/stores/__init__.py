"""Stores: how a repository keeps the blocks of its disks. A plug-in is a class like `Store`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from backy.model.revision import Revision
from backy.plugins import load
from backy.stores.blocks import Blocks, StoredImage
from backy.stores.codec import Codec
from backy.stores.index import Index
from backy.stores.pages import Pages
from backy.system.files import Cache
from backy.system.place import Place

if TYPE_CHECKING:
    from backy.stores.used import Used

_BUILT_IN = {"chunks": "backy.stores.chunks:ChunkStore", "images": "backy.stores.images:ImageStore"}


class Store(Protocol):
    """Keeps the disks of one repository. Every method may raise StoreError."""

    shares_blocks: bool
    """Whether blocks with the same digest share their stored bytes, in all disks and revisions."""

    pages: Pages
    """The pages of all indexes of the repository."""

    block_size: int
    """In bytes."""

    def new_blocks(
        self, folder: Place, disk: str, size: int, parent: Revision | None
    ) -> AbstractContextManager[Blocks]:
        """The blocks of a disk of `size` bytes that is written; they start as those of `parent`.

        See `draft.draft_disk`. On a clean exit all blocks are written.
        """

    def open(
        self, revision: Revision, disk: str, cache: Cache = Cache.SPARE, *, may_be_cut: bool = False
    ) -> AbstractContextManager[StoredImage]:
        """A disk of a published revision. Every read checks the hash.

        Raises DamagedError if the index is not the one that was published, or if the stored image
        has another size. With `may_be_cut` a shorter image is opened; reading what it lacks
        raises DamagedError.
        """

    def open_index(
        self, revision: Revision, disk: str, folder: Place | None = None
    ) -> AbstractContextManager[Index]:
        """The index of a disk of a revision, which is in `folder` if it is in the trash.

        Raises DamagedError if the index is not the one that was published, nor is its twin.
        """

    def plain_path(self, revision: Revision, disk: str) -> Place:
        """The file that a script needs for this disk: the raw image, or the index."""

    def collect(self, used: Used, leave: Callable[[Place], None] = lambda _: None) -> int:
        """Delete the pages and blocks that are not `used`; return how many bytes that freed.

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
