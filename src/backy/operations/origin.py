"""Origins: where the content of a damaged block may still be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Protocol

from backy.errors import ConfigError, SourceError, StoreError
from backy.image.image import Image
from backy.model.revision import Revision, id_for
from backy.repository.repository import Repository
from backy.sources import Request, open_source, reject_unsafe


class Origin(Protocol):
    """Where good content may still be. Asked from one thread at a time; opened when first asked."""

    @property
    def name(self) -> str:
        """What reports and messages call it, in the middle of a sentence."""

    @property
    def failure(self) -> str:
        """Why it could not be asked, when that last failed; "" where it never failed."""

    def read(self, revision: Revision, disk: str, number: int, digest: str) -> bytes | None:
        """Give what it has in the place of a block of `revision`; None where it has nothing there.

        The block has hash `digest` if it is good, which the caller checks: what is given may be
        anything. An origin that finds content by its hash may look for it in other places, too.
        Where it cannot be asked it gives None and `failure` says why; nothing is raised.
        """

    def close(self) -> None:
        """Give back what reading took. It can be asked again after that."""


def failures(origins: Iterable[Origin]) -> list[str]:
    """Name the origins that could not be asked, and why: a sentence for each."""
    texts = (f"{each.name} could not be asked: {each.failure}" for each in origins if each.failure)
    return [f"{text[0].upper()}{text[1:]}" for text in texts]


class LiveSource:
    """The source as it is now.

    One that can have only one snapshot at a time is left to a backup that runs, and a backup to us.
    """

    name = "the source"

    def __init__(
        self, repository: Repository, settings: Callable[[], Mapping[str, object]] | None = None
    ) -> None:
        """Take the source that `settings` give when they are needed, else the remembered one.

        `settings` may raise ConfigError.
        """
        self.failure = ""
        self._repository = repository
        self._settings = settings or (lambda: reject_unsafe(repository.settings.source))
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
        known, image = revision.disks[disk], self._disks.get(disk)
        start = number * known.block_size
        block = bytearray(min(known.block_size, known.size - start))
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
        with suppress(SourceError, StoreError):  # the next backup removes what is left behind
            self._stack.close()
