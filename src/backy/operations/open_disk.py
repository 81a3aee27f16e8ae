"""A disk of a revision that is open for those who read here and there: a server, or a mount."""

import threading
from contextlib import ExitStack
from dataclasses import dataclass

from backy.errors import DamagedError, StoreError
from backy.image.cache import BlockCache, CachedImage
from backy.image.progress import Watcher
from backy.model.revision import Revision
from backy.operations.heal import StoredDisk, healing
from backy.operations.healing_image import HealingImage
from backy.operations.site import Site
from backy.repository.repository import Repository

_MOST_LOST = 10_000  # blocks of a disk that are not searched for again


@dataclass(frozen=True, slots=True)
class Readers:
    """What those share who read here and there in disks: `verb` is their command in reports."""

    verb: str
    site: Site
    cache: BlockCache
    watcher: Watcher


class OpenDisk:
    """A disk of a revision that is read here and there, from any thread; see Image.

    The revision is not purged before `close`. `image` is the disk with its blocks in the cache.
    `name` is what the watcher hears was healed.
    """

    def __init__(
        self, readers: Readers, repository: Repository, revision: Revision, disk: str, name: str
    ) -> None:
        """Raises DamagedError if its index is damaged, NotFoundError if it is gone."""
        self.repository, self.name, self._readers = repository, name, readers
        with ExitStack() as stack:
            stack.enter_context(repository.reading(revision))
            opened = stack.enter_context(repository.store.open(revision, disk, may_be_cut=True))
            self.stored = StoredDisk(revision, disk, opened)
            self.size, self.extents = opened.size, opened.extents
            self.image = CachedImage(self, opened.block_size, readers.cache)
            stack.callback(self.image.close)
            self.close = stack.pop_all().close
        self._lost: set[int] = set()
        self._lock = threading.Lock()

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image."""
        if error := self.stored.damage(offset, buffer):
            with self._lock:
                self._heal(offset, buffer, error)

    def _heal(self, offset: int, buffer: memoryview, error: StoreError) -> None:
        """Fill `buffer` with good bytes. Raises DamagedError if they are lost."""
        if offset in self._lost:
            raise error.without_frames()
        readers, origins = self._readers, self._readers.site.origins(self.repository)
        try:
            # What healing opens is closed at once: it locks all revisions of the job.
            with healing(self.repository, readers.verb, origins, readers.watcher) as healer:
                HealingImage(self.stored, healer, keep_going=False).readinto(offset, buffer)
        except DamagedError:
            if len(self._lost) < _MOST_LOST:
                self._lost.add(offset)
            raise
        end = offset + len(buffer)
        readers.watcher.warn(
            f"{self.name}: bytes {offset} to {end} were damaged; a good copy was used"
        )
