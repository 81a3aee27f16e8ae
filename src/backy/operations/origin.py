"""Origins: places outside the repository that may still have the content of a damaged block."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from backy.errors import ConfigError, SourceError, StoreError, translated
from backy.image.image import Image
from backy.model.revision import Revision, id_for
from backy.repository.repository import Repository
from backy.sources import Request, open_source, reject_unsafe
from backy.system.permissions import others_may_write


class Origin(Protocol):
    """A place that may have good content. Opened by the first `read`; one thread at a time."""

    @property
    def name(self) -> str:
        """Its name in reports and messages, as in the middle of a sentence."""

    @property
    def failure(self) -> str:
        """Why it could not be asked the last time that failed; "" if it never failed."""

    def read(self, revision: Revision, disk: str, number: int, digest: str) -> bytes | None:
        """Its content in the place of a block of `revision`; None if it has none.

        The content may differ from the block: the caller checks that its hash is `digest`, which is
        "" if nobody knows it. An origin that can find content by its hash may return it from
        another place. If it cannot be
        asked, it returns None, and `failure` says why; nothing is raised.
        """

    def close(self) -> None:
        """Release what `read` opened. A later `read` opens it again."""


def failures(origins: Iterable[Origin]) -> list[str]:
    """A sentence for each origin that could not be asked: its name, and why."""
    failed = (origin for origin in origins if origin.failure)
    texts = (f"{origin.name} could not be asked: {origin.failure}" for origin in failed)
    return [f"{text[0].upper()}{text[1:]}" for text in texts]


def remembered_source(repository: Repository) -> Mapping[str, object]:
    """The settings of the source that was used last; {} if there is none.

    Raises ConfigError if they could do more than read (see `reject_unsafe`), or if we are root and
    others could have written them: they would choose a file of root's, and read it in a backup.
    """
    settings = reject_unsafe(repository.settings.source)
    path = repository.root / "repository.json"
    with translated(ConfigError, f"{repository.name}: looking who may write {path}"):
        reason = others_may_write(path)
    if settings and reason:
        why = f"{repository.name}: its remembered source is not used by root: {reason}"
        raise ConfigError(why, "Name the source: in the configuration, or by --source.")
    return settings


class LiveSource:
    """The job's source as it is now, read from a snapshot.

    If the source can only have one snapshot at a time, this holds the repository's lock while the
    source is open, so it cannot be read during a backup, and no backup can start.
    """

    name = "the source"

    def __init__(
        self, repository: Repository, settings: Callable[[], Mapping[str, object]] | None = None
    ) -> None:
        """Use the source of `settings`, or the one that was used last; opened when first read.

        `settings` may raise ConfigError.
        """
        self.failure = ""
        self._repository = repository
        self._settings = settings or partial(remembered_source, repository)
        self._stack = ExitStack()
        self._disks: Mapping[str, Image] | None = None

    def read(self, revision: Revision, disk: str, number: int, digest: str) -> bytes | None:
        """See Origin."""
        if self._disks is None:
            self._disks = {}
            try:
                self._disks = self._open()
            except (ConfigError, SourceError, StoreError) as error:
                self.failure = error.message
        stored, image = revision.disks[disk], self._disks.get(disk)
        start = number * stored.block_size
        block = bytearray(min(stored.block_size, stored.size - start))
        if not image or image.size < start + len(block):
            return None
        try:
            image.readinto(start, memoryview(block))
        except (SourceError, StoreError) as error:
            self.failure = error.message
            return None
        return bytes(block)

    def _open(self) -> Mapping[str, Image]:
        source = open_source(self._settings())
        if not source.is_shared:
            self._stack.enter_context(self._repository.exclusive("healing"))
        request = Request(id_for(datetime.now(UTC), "heal"))
        taken = self._stack.enter_context(source.snapshot(request))
        return dict(self._stack.enter_context(taken.open()).disks)

    def close(self) -> None:
        """See Origin."""
        self._disks = None
        with suppress(SourceError, StoreError):  # the next backup removes what is left over
            self._stack.close()
