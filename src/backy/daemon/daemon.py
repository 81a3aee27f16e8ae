"""The daemon: starts the commands that are due, and shows the state of all jobs.

Everything it knows is on disk, too: killed and started again, it goes on where it was. A command
that outlived it keeps the lock of its repository, so nothing runs twice.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from backy.config.loader import load
from backy.daemon import control
from backy.daemon.child import CANCEL_SECONDS
from backy.daemon.runner import TaskRunner
from backy.daemon.state import DaemonState, Fence, Setup, samples
from backy.daemon.systemd import notify, watchdog_seconds
from backy.daemon.tasks import Task
from backy.errors import BackyError, BusyError, ConfigError, StoreError, translated
from backy.monitoring.metrics import Metrics
from backy.monitoring.space import record_space
from backy.repository.base import mark_base, require_base
from backy.sources import open_source
from backy.system import folders
from backy.system.async_process import on_signals

_LONGEST_SLEEP = 30.0  # seconds: how late it may notice that the clock was set
_CLOCK_STEP = 60  # seconds by which the clock must have been set to plan all jobs again
_HOUSEKEEPING = 60  # seconds


class Daemon:
    """One server's jobs; one daemon for each base directory."""

    def __init__(self, path: Path, base: Path | None, log: FilteringBoundLogger) -> None:
        """Load the configuration in `path`; `base` is used instead of the base-dir in it.

        Raises ConfigError if nothing of it can be used.
        """
        self._path = path
        self._base = base
        self._log = log
        self._state = DaemonState(self._load(), fence=Fence(log))
        self._runner = TaskRunner(self._state, log)
        self._metrics = Metrics(partial(samples, self._state))
        self._others: set[asyncio.Task[None]] = set()

    def _load(self) -> Setup:
        loaded = load(self._path, open_source)
        problem = "; ".join(map(str, loaded.problems))
        base = self._base or loaded.config.global_.base_dir
        return Setup(loaded.config, base, datetime.now(UTC), problem)

    async def run(self) -> None:
        """Do what is due until it is told to stop.

        Raises BusyError if another daemon has the base directory, ConfigError if it cannot listen,
        StoreError if the base directory cannot be used.
        """
        setup = self._state.setup
        requests = control.Requests(self._state, self._log, self._reload)
        async with AsyncExitStack() as stack:
            is_strict = setup.config.global_.base_dir_must_be_mounted
            (require_base if is_strict else mark_base)(setup.base)
            _lock(setup.base, stack)
            jobs = self._state.configure()  # before anybody can ask for one
            listening = control.listening(setup.config.global_.socket, requests.answer)
            await stack.enter_async_context(listening)
            if setup.config.global_.metrics_listen:
                stack.enter_context(self._metrics.served(setup.config.global_.metrics_listen))
            on_signals(reload=lambda: self._spawn(self._reload()), stop=self._stop)
            notify("READY=1")
            self._log.info("daemon started", jobs=len(setup.config.jobs), base=str(setup.base))
            if setup.problem:
                self._log.error("jobs left out", problem=setup.problem)
            self._spawn(self._keep_house(jobs))
            await self._loop()
        self._log.info("daemon stopped")

    def _spawn(self, work: Coroutine[None, None, object]) -> None:
        """Do it beside the loop. A bug in it is logged, and costs one job, not the daemon."""
        task = asyncio.create_task(_logged(work, self._log))
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _loop(self) -> None:
        """Start what is due; wait for news, for the next due time, or to show systemd life."""
        longest = min(_LONGEST_SLEEP, watchdog_seconds() or _LONGEST_SLEEP)
        planner = self._state.planner
        clock = time.time() - time.monotonic()
        while not self._state.is_stopping or self._state.children:
            notify("WATCHDOG=1")
            self._state.news.clear()
            set_by = time.time() - time.monotonic() - clock
            now = datetime.now(UTC)
            if abs(set_by) > _CLOCK_STEP:
                self._log.warning("the clock was set", seconds=round(set_by))
                clock += set_by
                planner.replan(now, self._state.fence.around)
                self._spawn(self._state.look_at(list(self._state.setup.config.jobs)))
            for task in [] if self._state.is_stopping else list(planner.take(now)):
                self._metrics.observe_wait((now - task.due).total_seconds())
                self._spawn(self._run(task))
            wake = planner.wake()
            wait = (wake - now).total_seconds() if wake and not self._state.is_stopping else longest
            with suppress(TimeoutError):
                await asyncio.wait_for(self._state.news.wait(), min(max(wait, 0), longest))

    async def _run(self, task: Task) -> None:
        """See a command through to its end, and plan the next task of its job."""
        with self._state.fence.around(task.job, task.verb):
            await self._runner.run(task)
        await self._state.look_at([task.job])
        self._state.planner.finish(task.job)
        self._state.news.set()

    def _stop(self) -> None:
        """Start nothing more and wait for what runs; if asked again, do not wait."""
        if self._state.is_stopping:
            for child in self._state.children.values():
                child.cancel()
            return
        self._state.is_stopping = True
        self._log.info("stopping", running=len(self._state.children))
        self._spawn(self._wind_down())
        self._state.news.set()

    async def _wind_down(self) -> None:
        """Give what runs its time; then cancel it, and kill it in the end."""
        limit = self._state.setup.config.global_.stop_timeout
        notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={(limit + 2 * CANCEL_SECONDS) * 10**6}")
        await asyncio.sleep(limit)
        await asyncio.gather(*(child.end() for child in self._state.children.values()))

    async def _reload(self) -> str:
        """Use the files' configuration from now on, unless it has a problem; give the problem."""
        old = self._state.setup
        try:
            new = await asyncio.to_thread(self._load)
        except ConfigError as error:
            new = replace(old, problem=error.message)
        if new.base != old.base:
            new = replace(old, problem="another base-dir needs a restart")
        if new.problem:
            self._state.setup = replace(old, problem=new.problem)
            self._log.error("not reloaded: the configuration is broken", problem=new.problem)
            return new.problem
        self._state.setup = new
        changed = self._state.configure()
        self._log.info("reloaded", jobs=len(new.config.jobs), changed=len(changed))
        await self._state.look_at(changed)
        return ""

    async def _keep_house(self, jobs: Iterable[str]) -> None:
        """Observe these jobs first, and then once a minute those that somebody changed.

        Each time record the free space, and write the metrics for node_exporter.
        """
        while True:
            await self._state.look_at(jobs)
            await _logged(asyncio.to_thread(self._write), self._log)
            await asyncio.sleep(_HOUSEKEEPING)
            jobs = await asyncio.to_thread(self._state.changed)

    def _write(self) -> None:
        try:
            require_base(self._state.setup.base)
            record_space(self._state.setup.base, datetime.now(UTC))
            if path := self._state.setup.config.global_.metrics_file:
                self._metrics.write(path)
        except BackyError as error:
            self._log.error("not written", error=error.message)


def _lock(base: Path, stack: AsyncExitStack) -> None:
    """Be the only daemon of a base directory, until `stack` ends."""
    folder = base / ".backy"
    with translated(StoreError, f"locking {folder}", "May you write there?"):
        folders.make_folder(folder)
        try:
            stack.enter_context(folders.locked(folder))
        except BlockingIOError:
            hint = "One daemon serves a base directory; stop the other one."
            raise BusyError(f"another daemon has {base}", hint) from None


async def _logged(work: Coroutine[None, None, object], log: FilteringBoundLogger) -> None:
    try:
        await work
    except Exception:
        log.exception("a bug")
