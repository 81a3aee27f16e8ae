"""The daemon's Unix socket: one JSON request for each connection, and one JSON reply.

backy.model.answers has the requests and replies; an error is answered with an ErrorEvent. Whoever
may open the socket may do all that the daemon can, so it is for its owner only.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from backy.daemon.state import DaemonState, overviews
from backy.daemon.tasks import BACKUP, FAST, SLOW
from backy.errors import BackyError, ConfigError, NotFoundError, UsageError
from backy.model.answers import JobReply, Pools, PromisesReply, ReloadReply, StatusAnswer
from backy.model.messages import error_event
from backy.monitoring.overview import promised
from backy.system import folders
from backy.system.sockets import refuse_living
from backy.units import KiB

_LONGEST_REQUEST = 64 * KiB
_TIMEOUT_SECONDS = 10
_MOST_CLIENTS = 64  # at once; beyond that the first one is hung up on
_HINT = "Look at its log: journalctl -u backy."
Answer = Callable[[Mapping[str, object]], Awaitable[Mapping[str, object]]]


@asynccontextmanager
async def listening(path: Path, answer: Answer) -> AsyncIterator[None]:
    """Answer requests at `path` during the body; `answer` raises BackyError only.

    Raises ConfigError if somebody listens there, or no socket can be made.
    """
    clients: dict[asyncio.StreamWriter, None] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients[writer] = None
        if len(clients) > _MOST_CLIENTS:
            first = next(iter(clients))
            del clients[first]
            first.transport.abort()
        writer.transport.set_write_buffer_limits(0)  # so `drain` waits until all of it is taken
        try:
            with suppress(OSError):  # the client hung up, or is silent
                try:
                    line = await asyncio.wait_for(reader.readline(), _TIMEOUT_SECONDS)
                except ValueError:  # longer than any request
                    return
                writer.write(json.dumps(await _reply(line, answer)).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), _TIMEOUT_SECONDS)
        finally:
            clients.pop(writer, None)
            writer.transport.abort()

    try:
        folders.make_folder(path.parent)
        refuse_living(path)
        folders.remove_socket(path)
        server = await asyncio.start_unix_server(serve, path, limit=_LONGEST_REQUEST)
        folders.allow(path, 0o600)
    except OSError as error:
        hint = "Set global.socket to a path of at most 107 bytes that you may write to."
        raise ConfigError(f"listening at {path}: {error}", hint) from error
    try:
        yield
    finally:
        server.close()
        with suppress(OSError):
            folders.remove_socket(path)


async def _reply(line: bytes, answer: Answer) -> Mapping[str, object]:
    try:
        return await answer(_parse(line))
    except BackyError as error:
        return error_event(error)


def _parse(line: bytes) -> Mapping[str, object]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise UsageError("the request is not a JSON object")
    return request


@dataclass(frozen=True)
class Requests:
    """What a client may ask for.

    `reload` reads the configuration again and gives the problem with it.
    """

    state: DaemonState
    log: FilteringBoundLogger
    reload: Callable[[], Awaitable[str]]

    async def answer(self, request: Mapping[str, object]) -> Mapping[str, object]:
        """The reply to a request. Raises BackyError only: a bug is logged."""
        try:
            return await self._answer(request)
        except BackyError:
            raise
        except Exception as error:
            self.log.exception("a bug", request=f"{request!r:.200}")
            raise BackyError(f"the daemon has a bug: {error!r:.200}", _HINT) from error

    async def _answer(self, request: Mapping[str, object]) -> Mapping[str, object]:
        match request.get("do"):
            case "status":
                return self._status()
            case "promises":
                return self._promises()
            case "reload":
                return ReloadReply(problem=await self.reload())
            case "run":
                job = self._job(request)
                self.state.planner.request(job, BACKUP, datetime.now(UTC))
                self.state.news.set()
                return JobReply(job=job)
            case "look":
                job = self._job(request)
                await self.state.look_at([job])
                return JobReply(job=job)
            case other:
                hint = "Do the daemon and the command have the same version?"
                raise UsageError(f"the daemon cannot do {other!r:.40}", hint)

    def _job(self, request: Mapping[str, object]) -> str:
        job = str(request.get("job"))
        if job not in self.state.setup.config.jobs:
            hint = "backy jobs shows all jobs. For a new one, run systemctl reload backy."
            raise NotFoundError(f"there is no job {job!r:.200}", hint)
        return job

    def _status(self) -> StatusAnswer:
        return StatusAnswer(
            jobs=list(overviews(self.state, datetime.now(UTC))),
            pools=Pools(fast=self.state.planner.use(FAST), slow=self.state.planner.use(SLOW)),
            problem=self.state.setup.problem,
            stopping=self.state.is_stopping,
        )

    def _promises(self) -> PromisesReply:
        setup = self.state.setup
        return PromisesReply(
            jobs=promised(setup.config),
            problem=setup.problem,
            base=str(setup.base),
            broken={job: bug for job in setup.config.jobs if (bug := self.state.fence.bug(job))},
            slow=dict(self.state.slow()),
        )
