"""Run the commands of tasks: start them, log what they report, and record failures."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from structlog.typing import FilteringBoundLogger

from backy.daemon.child import LONGEST_TEXT, ChildCommand, Event
from backy.daemon.state import DaemonState
from backy.daemon.tasks import Task
from backy.errors import BusyError, StoreError
from backy.repository import backup_status, status
from backy.repository.base import require_base
from backy.units import format_duration

_BUSY = timedelta(minutes=2)  # until a task is tried again whose repository was locked
_MOST_EVENTS = 200  # of one command, in the log
_SUMMED = ("read", "changed", "stored")  # bytes, of the disks of a revision


@dataclass(frozen=True)
class TaskRunner:
    """Runs the tasks of one daemon."""

    state: DaemonState
    log: FilteringBoundLogger

    def start(self, task: Task) -> ChildCommand:
        """The command of a task, which is not started yet; the daemon counts it as running."""
        setup = self.state.setup
        settings = setup.config.jobs[task.job]
        # The daemon has marked its base directory: what comes later must find the mark.
        common = setup.config.global_.model_copy(update={"base_dir_must_be_mounted": True})
        changes = {"jobs": {task.job: settings}, "global_": common}
        only = setup.config.model_copy(update=changes).model_dump_json()
        verb = self.state.planner.verbs[task.verb]
        command = verb.command(task, settings, setup.config.intervals(task.job))
        self.state.children[task.job] = child = ChildCommand(
            ["--base-dir", str(setup.base), *command], {"BACKY_SETTINGS": "stdin"}, only
        )
        return child

    async def run(self, task: Task) -> None:
        """See a command through to its end. A bug in here postpones the task and is raised."""
        log = self.log.bind(job=task.job, verb=task.verb)
        log.info("started", **({"tags": ",".join(sorted(task.tags))} if task.tags else {}))
        try:
            child = self.start(task)
            limit = asyncio.create_task(self._limit(task, child))
            try:
                code = await child.run(self.state.setup.config.global_, events := _Events(log))
            finally:
                limit.cancel()
            if events.count > _MOST_EVENTS:
                log.warning("more was said, but not logged", lines=events.count - _MOST_EVENTS)
            await asyncio.to_thread(self._record, task, child, code, log)
        except Exception as error:
            self._postpone(task, _BUSY)
            if not isinstance(error, (OSError, StoreError)):
                raise
            log.error("not started or not recorded", error=str(error))
        finally:
            self.state.children.pop(task.job, None)

    async def _limit(self, task: Task, child: ChildCommand) -> None:
        """Cancel a command when its time is over, and kill it if that does not end it."""
        left = self.state.allowed_seconds(task, child)
        while left > 0:
            await asyncio.sleep(left)
            left = self.state.allowed_seconds(task, child) - child.seconds
        child.is_too_slow = True
        await child.end()

    def _postpone(self, task: Task, wait: timedelta) -> None:
        self.state.planner.postpone(task.job, task.verb, datetime.now(UTC) + wait)

    def _record(
        self, task: Task, child: ChildCommand, code: int, log: FilteringBoundLogger
    ) -> None:
        """Postpone a task that did not succeed, and record what the command itself could not."""
        verb = self.state.planner.verbs[task.verb]
        if code == 0:
            self._postpone(task, timedelta(0))
        elif code == BusyError.exit_code:
            self._postpone(task, _BUSY)
            log.info("postponed", reason=child.error)
        else:
            self._postpone(task, verb.retry)
            why = child.error
            if child.is_too_slow:
                why = f"the {task.verb} was stopped after {format_duration(child.seconds)}"
            elif code < 0 and not self.state.is_stopping:
                why = f"the {task.verb} was ended by signal {-code}"
            log.error("failed", code=code, error=why, said=child.last_lines)
            if verb.is_counted and why != child.error:
                change = partial(backup_status.failed, error=why, now=datetime.now(UTC))
                require_base(self.state.setup.base)
                status.update(self.state.setup.base / task.job, change)


@dataclass
class _Events:
    """Logs the events of one command, the first ones in full: a hook may print thousands."""

    log: FilteringBoundLogger
    count: int = 0

    def __call__(self, event: Event) -> None:
        self.count += 1
        kind, message = event.get("event"), str(event.get("message", ""))[:LONGEST_TEXT]
        if kind == "finished":
            facts = {name: each for name, each in event.items() if isinstance(each, (int, float))}
            if revision := event.get("revision"):
                disks = revision["disks"].values()
                facts |= {"revision": revision["id"]}
                facts |= {name: sum(disk[name] for disk in disks) for name in _SUMMED}
            self.log.info("finished", **facts)
        elif self.count > _MOST_EVENTS:
            return
        elif kind == "note":
            self.log.info(message)
        elif kind == "warning":
            self.log.warning(message)
        elif kind == "damage":
            facts = {name: event[name] for name in event if name not in {"event", "job"}}
            self.log.error("damage", **facts)
