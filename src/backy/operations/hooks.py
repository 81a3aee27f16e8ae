"""Hooks: programs of the administrator's that run around a step.

Each hears one JSON object on stdin and has BACKY_JOB, BACKY_REVISION and BACKY_EVENT in its
environment. What it says goes to the log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backy.errors import HookError, translated
from backy.model.revision import Consistency
from backy.system import process, signals
from backy.system.guard import guarding
from backy.system.process import Guard, Outcome, Program

if TYPE_CHECKING:
    from backy.config.settings import Hook, Hooks

_HINT = "Nothing was done. Mend the hook, or take `required` from it."
_LONGEST = 300  # characters of the sentence for a failure, which ends with what the hook said last


@dataclass(slots=True)
class Around:
    """What the hooks around a snapshot came to.

    `consistency` is what they made sure of while the body ran, None where that is nothing.
    `failures` has a sentence for each hook that failed; those after the snapshot come last.
    """

    consistency: Consistency | None = None
    failures: list[str] = field(default_factory=list)


class Runner:
    """Runs the hooks of one job, whose repository is the folder `root`, which need not exist yet.

    `log` is told each line that a hook says, and each failure. `failures` has all of them.
    """

    def __init__(self, hooks: Hooks, job: str, root: Path, log: Callable[[str], None]) -> None:
        self._hooks: dict[str, tuple[Hook, ...]] = dict(hooks)
        self._job = job
        self._root = root
        self._log = log
        self.failures: list[str] = []

    def run(
        self, event: str, revision: str | None = None, guard: Guard | None = None, **facts: object
    ) -> list[str]:
        """Run the hooks of an event, one after the other; give a sentence for each that failed.

        `facts` are added to what they hear. `guard` is told of each that runs. Raises HookError
        where one of "before-restore" or "before-snapshot" fails that is required; those after it
        do not run then.
        """
        before = len(self.failures)
        for hook in self._of(event):
            outcome = process.run(self._program(hook, event, revision, facts), guard)
            name = f"hook {event} {hook.command[0]}"
            lines = [line.strip() for line in outcome.output.splitlines() if line.strip()]
            for line in lines:
                self._log(f"{name}: {line}")
            if outcome.code != 0:
                failure = ": ".join([f"{name} {_ending(hook, outcome)}", *lines[-1:]])[:_LONGEST]
                self.failures.append(failure)
                self._log(failure)
                if hook.required and event.startswith("before-"):
                    raise HookError(f"{self._job}: {failure}", _HINT)
        return self.failures[before:]

    @contextmanager
    def around_snapshot(self, revision: str) -> Iterator[Around]:
        """Run the hooks before a snapshot, then the body, which takes it, and then those after it.

        Those after it run whatever happens once this has begun: a hook or the body fails, hangs
        or is killed, this process is told to stop, or is killed. A guest must never stay frozen.
        They run once. Only where this process is killed while they run, they run again, from the
        first on; a signal that tells it to stop waits for them.

        Raises HookError where a hook that is required fails; the body does not run then.
        """
        around = Around()
        after = self._of("after-snapshot")
        if not after and not self._of("before-snapshot"):
            yield around
            return
        with ExitStack() as stack:
            with translated(HookError, f"{self._job}: starting the guard of the hooks", _HINT):
                programs = [self._program(hook, "after-snapshot", revision, {}) for hook in after]
                guard = stack.enter_context(guarding(programs))
            try:
                around.failures += self.run("before-snapshot", revision, guard)
                if not around.failures:
                    around.consistency = self._reached()
                yield around
            finally:
                # Where a signal comes just before this, the guard does it.
                with signals.shielded():
                    around.failures += self.run("after-snapshot", revision, guard)
                    guard.disarm()

    def _of(self, event: str) -> tuple[Hook, ...]:
        return self._hooks[event.replace("-", "_")]

    def _reached(self) -> Consistency | None:
        """The least of what the hooks before a snapshot reach: no more than each of them says."""
        reached = {Consistency(hook.consistency) for hook in self._of("before-snapshot")}
        return max(reached, key=list(Consistency).index, default=None)

    def _program(
        self, hook: Hook, event: str, revision: str | None, facts: dict[str, object]
    ) -> Program:
        names = {"BACKY_JOB": self._job, "BACKY_REVISION": revision or "", "BACKY_EVENT": event}
        place = {"folder": str(self._root), "base_dir": str(self._root.parent)}
        said = {"event": event, "job": self._job, "revision": revision, **place, **facts}
        stdin = f"{json.dumps(said, default=str)}\n".encode()
        return Program(hook.command, names, stdin, hook.timeout)


def _ending(hook: Hook, outcome: Outcome) -> str:
    if outcome.code is None:
        return f"did not end within {hook.timeout} s"
    if outcome.code < 0:
        return f"was ended by signal {-outcome.code}"
    return f"ended with code {outcome.code}"
