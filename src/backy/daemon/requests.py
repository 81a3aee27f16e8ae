"""Answer the requests that come in at the daemon's socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from structlog.typing import FilteringBoundLogger

from backy.daemon.state import DaemonState, overviews, pools
from backy.daemon.tasks import BACKUP
from backy.errors import BackyError, NotFoundError, UsageError
from backy.model.answers import JobReply, PromisesReply, ReloadReply, StatusAnswer
from backy.monitoring.overview import promised

_HINT = "Look at its log: journalctl -u backy."


@dataclass(frozen=True)
class Requests:
    """What a client may ask for.

    `reload` reads the configuration again and gives the problem with it, `observe` looks at a job,
    `wake` has the daemon look for tasks that may start.
    """

    state: DaemonState
    log: FilteringBoundLogger
    reload: Callable[[], Awaitable[str]]
    observe: Callable[[str], Awaitable[None]]
    wake: Callable[[], None]

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
                self.wake()
                return JobReply(job=job)
            case "look":
                job = self._job(request)
                await self.observe(job)
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
            pools=pools(self.state),
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
