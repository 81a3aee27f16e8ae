"""The daemon: starts the commands that are due, listens to them, and tells how things are.

It holds nothing that is not on disk, too: killed and started again, it goes on where it was. A
command that outlived it keeps its repository's lock, so nothing runs twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from backy.config.loader import load
from backy.daemon import control
from backy.daemon.child import Child, Event
from backy.daemon.planner import BACKUP, Task
from backy.daemon.state import Setup, State, pools, rows, samples
from backy.daemon.systemd import notify, watchdog_seconds
from backy.daemon.tasks import arguments, look
from backy.errors import BackyError, BusyError, ConfigError, NotFoundError, StoreError, translated
from backy.monitoring.metrics import Metrics
from backy.monitoring.overview import promised
from backy.monitoring.space import record_space
from backy.repository import status
from backy.repository.summary import fingerprint
from backy.sources import open_source
from backy.system import folders, process, signals

_LONGEST_SLEEP = 30.0  # seconds: how late it may notice that the clock was set
_CLOCK_STEP = 60  # seconds that the clock must have been set by to plan anew
# When to try again what somebody else does at the moment: looked at meanwhile, it may be done.
_AGAIN = timedelta(minutes=2)
_AGAIN_AFTER_FAILURE = timedelta(hours=1)  # background work; backups have their backoff
_SUMMED = ("read", "changed", "stored")  # bytes, of the disks of a revision
_HOUSEKEEPING = 60  # seconds
_CANCEL_SECONDS = 60  # for a command to clean up before it is killed


class Daemon:
    """One server's jobs; one daemon a base directory."""

    def __init__(self, path: Path, base: Path | None, log: FilteringBoundLogger) -> None:
        """Load the configuration in `path`; `base` is used instead of the base-dir in it.

        Raises ConfigError where nothing of it can be used.
        """
        self._path = path
        self._base = base
        self._log = log
        self._state = State(self._load())
        self._metrics = Metrics(partial(samples, self._state))
        self._others: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._is_stopping = False

    def _load(self) -> Setup:
        loaded = load(self._path, open_source)
        problem = "; ".join(map(str, loaded.problems))
        base = self._base or loaded.config.global_.base_dir
        return Setup(loaded.config, base, datetime.now(UTC), problem)

    async def run(self) -> None:
        """Do what is due until it is told to stop.

        Raises BusyError where another daemon has the base directory, ConfigError where it cannot
        listen, StoreError where the base directory cannot be used.
        """
        setup = self._state.setup
        async with AsyncExitStack() as stack:
            _lock(setup.base, stack)
            server = await control.listen(setup.config.global_.socket, self._answer)
            stack.push_async_callback(control.close, server, setup.config.global_.socket)
            if setup.config.global_.metrics_listen:
                stack.enter_context(self._metrics.served(setup.config.global_.metrics_listen))
            signals.on_signals(reload=lambda: self._spawn(self._reload()), stop=self._stop)
            notify("READY=1")
            self._log.info("daemon started", jobs=len(setup.config.jobs), base=str(setup.base))
            if setup.problem:
                self._log.error("jobs left out", problem=setup.problem)
            self._spawn(self._keep_house(self._configure()))
            await self._loop()
        self._log.info("daemon stopped")

    def _spawn(self, work: Coroutine[None, None, object]) -> None:
        """Do it beside the loop. A bug in it is logged, and costs one job, not the daemon."""
        task = asyncio.create_task(_logged(work, self._log))
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    def _configure(self) -> list[str]:
        """Plan what is configured; give the jobs that have to be looked at."""
        config = self._state.setup.config
        planner = self._state.planner
        planner.slots, planner.limits = config.global_.worker_limit, config.limits
        for job in self._state.summaries.keys() - config.jobs.keys():
            del self._state.summaries[job], self._state.fingerprints[job]
        jobs = {job: (settings, config.intervals(job)) for job, settings in config.jobs.items()}
        return planner.configure(jobs, datetime.now(UTC))

    async def _learn(self, jobs: Iterable[str]) -> None:
        """Look at repositories, and plan their jobs anew."""
        for job in jobs:
            setup = self._state.setup
            if settings := setup.config.jobs.get(job):
                now = datetime.now(UTC)
                tags = setup.config.intervals(job)
                seen = fingerprint(setup.base, job)
                known, summary = await asyncio.to_thread(look, setup.base, job, settings, tags, now)
                if job in self._state.setup.config.jobs:  # still
                    self._state.summaries[job], self._state.fingerprints[job] = summary, seen
                self._state.planner.learn(job, known, datetime.now(UTC))
                self._news.set()

    async def _loop(self) -> None:
        """Start what is due; wait for news, for the next that will be due, or to show life."""
        longest = min(_LONGEST_SLEEP, watchdog_seconds() or _LONGEST_SLEEP)
        planner = self._state.planner
        clock = time.time() - time.monotonic()
        while not self._is_stopping or self._state.children:
            notify("WATCHDOG=1")
            self._news.clear()
            set_by = time.time() - time.monotonic() - clock
            now = datetime.now(UTC)
            if abs(set_by) > _CLOCK_STEP:
                self._log.warning("the clock was set", seconds=round(set_by))
                clock += set_by
                planner.replan(now)
            for task in [] if self._is_stopping else list(planner.take(now)):
                self._start(task)
            wake = planner.wake()
            wait = (wake - now).total_seconds() if wake and not self._is_stopping else longest
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(max(wait, 0), longest))

    def _start(self, task: Task) -> None:
        config = self._state.setup.config
        settings = config.jobs[task.job]
        only = config.model_copy(update={"jobs": {task.job: settings}}).model_dump_json()
        base = ["--base-dir", str(self._state.setup.base)]
        command = arguments(task, settings, config.intervals(task.job))
        child = Child([*base, *command], {"BACKY_SETTINGS": only})
        self._state.children[task.job] = child
        self._metrics.observe_wait((datetime.now(UTC) - task.due).total_seconds())
        self._spawn(self._run(task, child))

    async def _run(self, task: Task, child: Child) -> None:
        """See a command through to its end, and plan what comes after it."""
        setup = self._state.setup
        log = self._log.bind(job=task.job, verb=task.verb)
        log.info("started", **({"tags": ",".join(sorted(task.tags))} if task.tags else {}))
        try:
            priority = process.Priority(setup.config.global_.nice, setup.config.global_.io_class)
            code = await child.run(priority, partial(_log_event, log))
            await asyncio.to_thread(self._settle, task, child, code, log)
        except (OSError, StoreError) as error:
            planner = self._state.planner
            planner.postpone(task.job, task.verb, datetime.now(UTC) + _AGAIN)
            log.error("not started or not recorded", error=str(error))
        finally:
            del self._state.children[task.job]
            with suppress(BackyError):
                await self._learn([task.job])
            self._state.planner.finish(task.job)
            self._news.set()

    def _settle(self, task: Task, child: Child, code: int, log: FilteringBoundLogger) -> None:
        """Record and postpone what did not succeed."""
        now = datetime.now(UTC)
        is_busy = code == BusyError.exit_code
        wait = _AGAIN if is_busy or task.verb == BACKUP else _AGAIN_AFTER_FAILURE
        self._state.planner.postpone(task.job, task.verb, now + wait if code else now)
        if code == 0:
            return
        if is_busy:
            log.info("postponed", reason=child.error)
            return
        log.error("failed", code=code, error=child.error, said=child.last_words)
        if task.verb == BACKUP and code < 0 and not self._is_stopping:
            # Killed, so it could not record that itself.
            why = f"the backup was ended by signal {-code}"
            status.update(
                self._state.setup.base / task.job, lambda old: status.failed(old, why, now)
            )

    def _stop(self) -> None:
        """Start nothing more and wait for what runs; asked again, do not wait."""
        if self._is_stopping:
            for child in self._state.children.values():
                child.cancel()
            return
        self._is_stopping = True
        self._log.info("stopping", running=len(self._state.children))
        self._spawn(self._wind_down())
        self._news.set()

    async def _wind_down(self) -> None:
        """Give what runs its time; then have it cancel, and at last kill it."""
        limit = self._state.setup.config.global_.stop_timeout
        notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={(limit + 2 * _CANCEL_SECONDS) * 10**6}")
        for seconds, end in ((limit, Child.cancel), (_CANCEL_SECONDS, Child.kill)):
            await asyncio.sleep(seconds)
            for child in self._state.children.values():
                end(child)

    async def _reload(self) -> str:
        """Take over what the files say now, if nothing is wrong with it; give what is."""
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
        news = self._configure()
        self._log.info("reloaded", jobs=len(new.config.jobs), changed=len(news))
        await self._learn(news)
        return ""

    async def _keep_house(self, jobs: Iterable[str]) -> None:
        """Look at these jobs at first, and then once a minute at those that somebody changed.

        After that note the trend of free space, and write the metrics for node_exporter.
        """
        while True:
            await self._learn(jobs)
            try:
                await asyncio.to_thread(record_space, self._state.setup.base, datetime.now(UTC))
                if path := self._state.setup.config.global_.metrics_file:
                    await asyncio.to_thread(self._metrics.write, path)
            except BackyError as error:
                self._log.error("not written", error=error.message)
            await asyncio.sleep(_HOUSEKEEPING)
            jobs = await asyncio.to_thread(self._changed)

    def _changed(self) -> list[str]:
        """The jobs whose repositories are not as they were when they were looked at last."""
        base, seen = self._state.setup.base, list(self._state.fingerprints.items())
        return [job for job, then in seen if then != fingerprint(base, job)]

    async def _answer(self, request: control.Reply) -> control.Reply:
        """Do what was asked at the socket."""
        do, job = str(request.get("do")), str(request.get("job"))
        if do == "status":
            return self._status()
        if do == "promises":
            setup = self._state.setup
            jobs = promised(setup.config)
            return {"jobs": jobs, "problem": setup.problem, "base": str(setup.base)}
        if do == "reload":
            return {"problem": await self._reload()}
        if do not in {"run", "look"}:
            raise ConfigError(f"the daemon cannot do {do!r:.40}", "Is it of the same version?")
        if job not in self._state.setup.config.jobs:
            raise NotFoundError(f"the daemon has no job {job!r:.200}", "backy jobs lists them.")
        if do == "look":
            await self._learn([job])
        else:
            self._state.planner.request(job, datetime.now(UTC))
            self._news.set()
        return {"job": job}

    def _status(self) -> control.Reply:
        setup = self._state.setup
        return {
            "jobs": list(rows(self._state, datetime.now(UTC))),
            "pools": pools(self._state),
            "problem": setup.problem,
            "stopping": self._is_stopping,
        }


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


def _log_event(log: FilteringBoundLogger, event: Event) -> None:
    """What a command said, as a line of the log."""
    kind, said = event.get("event"), str(event.get("message", ""))
    if kind == "finished":
        shown = {name: each for name, each in event.items() if isinstance(each, (int, float))}
        if isinstance(revision := event.get("revision"), dict):
            disks = revision["disks"].values()
            shown |= {"revision": revision["id"]}
            shown |= {each: sum(disk[each] for disk in disks) for each in _SUMMED}
        log.info("finished", **shown)
    elif kind == "note":
        log.info(said)
    elif kind == "warning":
        log.warning(said)
    elif kind == "damage":
        log.error("damage", **{name: event[name] for name in event if name not in {"event", "job"}})


async def _logged(work: Coroutine[None, None, object], log: FilteringBoundLogger) -> None:
    try:
        await work
    except Exception:
        log.exception("a bug")
