"""Serve: offer disks of revisions over NBD, for reading."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

from backy.errors import ConfigError, NotFoundError, StoreError, UsageError
from backy.image.cache import BlockCache
from backy.image.extent_map import ExtentMap
from backy.image.progress import Watcher
from backy.model.extent import Kind
from backy.model.names import is_job
from backy.model.revision import Revision, disk_of
from backy.nbd.server import Server
from backy.nbd.wire import ALLOCATION, STATE_DIRTY, STATE_HOLE, STATE_ZERO
from backy.operations.open_disk import OpenDisk, Readers
from backy.operations.site import Site
from backy.repository.records import Settings
from backy.repository.repository import Repository, codec_for
from backy.stores.codec import Codec
from backy.system import signals
from backy.system.async_process import on_signals
from backy.units import MiB

_CACHE = 96 * MiB  # so that all together stays below 200 MiB
_CHANGED = "backy:changed-since:"
_ALLOCATED = {Kind.DATA: 0, Kind.ZERO: STATE_HOLE | STATE_ZERO}
_DIRTY = {Kind.SAME: 0, Kind.DATA: STATE_DIRTY, Kind.ZERO: STATE_DIRTY}
_MOST_MAPS = 8  # of an export, in 2.3 MiB each


def serve_jobs(
    site: Site,
    words: Sequence[str],
    listener: socket.socket,
    certificates: Path | None,
    *,
    on_ready: Callable[[Sequence[str]], None],
    watcher: Watcher,
) -> None:
    """Serve the disks of JOB or JOB@REV until SIGTERM, SIGINT or SIGHUP.

    `on_ready` gets the URIs of the newest revision of each job once clients can connect. `watcher`
    hears what was damaged, what was healed, and which clients failed. For `certificates` see
    Server.

    Raises NotFoundError if there is no such job or revision, ConfigError if the certificates cannot
    be used.
    """
    with ExitStack() as stack:
        cache = stack.enter_context(BlockCache(_CACHE))
        jobs = ServedJobs(Readers("serve", site, cache, watcher), words, stack)
        server = Server(jobs, certificates, watcher.warn)
        uris = [_uri(listener, certificates, name) for name in jobs.names(newest=True)]

        async def run() -> None:
            serving = asyncio.create_task(server.run(listener))

            def stop() -> None:
                signals.stop()
                serving.cancel()

            on_signals(reload=stop, stop=stop)
            on_ready(uris)
            with suppress(asyncio.CancelledError):
                await serving

        asyncio.run(run())


def _uri(listener: socket.socket, certificates: Path | None, name: str) -> str:
    """The URI of an export, for clients of this machine."""
    scheme, where = "nbds" if certificates else "nbd", listener.getsockname()
    if isinstance(where, str):
        return f"{scheme}+unix:///{quote(name)}?socket={quote(str(Path(where).absolute()))}"
    host = f"[{where[0]}]" if ":" in where[0] else where[0]
    return f"{scheme}://{host}:{where[1]}/{quote(name)}"


class ServedJobs:
    """The disks of `served` as exports JOB/REV/DISK; see Exports. REV may be "latest".

    A revision that was named is locked against purge until `stack` ends, others while they are
    read. `watcher` hears what is damaged, and what was healed.
    """

    def __init__(self, readers: Readers, words: Sequence[str], stack: ExitStack) -> None:
        """`words` are JOB or JOB@REV. Raises NotFoundError, StoreError."""
        self.readers = readers
        self._codecs: dict[int, Codec] = {}  # their buffers are shared, too
        self._ids: dict[str, set[str | None]] = {}  # by job; None stands for all of its revisions
        for word in words:
            job, revision = self._parse(word, stack)
            self._ids.setdefault(job, set()).add(revision)

    def _parse(self, word: str, stack: ExitStack) -> tuple[str, str | None]:
        job, separator, spec = word.rpartition("@")
        if not separator or (is_job(word) and self.readers.site.root(word).exists()):
            self.readers.site.repository(word)
            return word, None
        repository = self._repository(job)
        revision = repository.find(spec)
        stack.enter_context(repository.reading(revision))
        return job, revision.id

    def _repository(self, job: str) -> Repository:
        def make_codec(settings: Settings) -> Codec:
            return self._codecs.setdefault(settings.level, codec_for(settings))

        return Repository(self.readers.site.root(job), make_codec)

    def names(self, *, newest: bool = False) -> Iterator[str]:
        """See Exports. With `newest` only the last revision of each job."""
        for job, ids in self._ids.items():
            try:
                history = self._repository(job).history().revisions[::-1]
            except (ConfigError, NotFoundError, StoreError) as error:
                self.readers.watcher.warn(f"not offered: {error.message}")
                continue
            history = [each for each in history if not ids.isdisjoint({None, each.id})]
            for revision in history[:1] if newest else history:
                yield from (f"{job}/{revision.id}/{disk}" for disk in revision.disks)

    def find(self, name: str) -> str:
        """See Exports."""
        job, revision, disk = self._found(name)
        return f"{job.name}/{revision.id}/{disk}"

    def _found(self, name: str) -> tuple[Repository, Revision, str]:
        job, _, rest = name.partition("/")
        spec, _, disk = rest.partition("/")
        if not (ids := self._ids.get(job)):
            raise NotFoundError(f"no export is called {name!r}", "Names are JOB/REVISION/DISK.")
        repository = self._repository(job)
        revision = repository.find(spec)
        if ids.isdisjoint({None, revision.id}):
            raise NotFoundError(f"{job}: revision {revision.id} is not served")
        return repository, revision, disk_of(revision, disk)

    def open(self, name: str) -> ServedDisk:
        """See Exports."""
        repository, revision, disk = self._found(name)
        try:
            return ServedDisk(self, repository, revision, disk)
        except StoreError as error:
            self.readers.watcher.warn(f"{name} cannot be opened: {error.message}")
            raise


class ServedDisk(OpenDisk):
    """A disk of a revision as an Export. Its damaged blocks are healed, or named in the log."""

    def __init__(
        self, served: ServedJobs, repository: Repository, revision: Revision, disk: str
    ) -> None:
        """See OpenDisk."""
        name = f"{repository.name}: {revision.id} {disk}"
        super().__init__(served.readers, repository, revision, disk, name)
        self._maps: dict[str, ExtentMap] = {}

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image."""
        try:
            super().readinto(offset, buffer)
        except StoreError as error:
            raise type(error)(f"{self.name}: {error.message}", error.hint) from error

    def contexts(self) -> Iterator[str]:
        """See Export."""
        yield ALLOCATION
        for revision in self.repository.history().revisions:
            if self.stored.disk in revision.disks and revision != self.stored.revision:
                yield f"{_CHANGED}{revision.id}"

    def status(self, context: str) -> ExtentMap | None:
        """See Export."""
        with self._lock:
            if context not in self._maps and len(self._maps) < _MOST_MAPS:
                if context == ALLOCATION:
                    self._maps[context] = ExtentMap(self.extents(), _ALLOCATED, self.size)
                elif context.startswith(_CHANGED):
                    with suppress(NotFoundError, UsageError):
                        self._maps[context] = self._changed(context.removeprefix(_CHANGED))
            return self._maps.get(context)

    def _changed(self, spec: str) -> ExtentMap:
        disk, index = self.stored.disk, self.stored.image.index
        old = self.repository.find(spec)
        if disk not in old.disks:
            return ExtentMap((), _DIRTY, self.size)
        opening = self.repository.store.open_index(old, disk)
        with self.repository.reading(old), opening as old_index:
            return ExtentMap(index.extents(old_index), _DIRTY, self.size)
