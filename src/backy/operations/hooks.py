"""Hooks: programs of the administrator that run before and after the steps of a job.

Those after a snapshot always run, so that no guest stays frozen.

A hook gets one JSON object on stdin, and BACKY_JOB, BACKY_REVISION and BACKY_EVENT in its
environment. Its output goes to the log.
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
from backy.system.permissions import others_may_write_program
from backy.system.process import Guard, Outcome, Program

if TYPE_CHECKING:
    from backy.config.settings import Hook, Hooks

_HINT = "Nothing was done. Fix the hook, or remove `required` from it."
_LONGEST = 300  # characters of the sentence for a failure, with the last line of the hook's output


class Runner:
    """Runs the hooks of one job, whose repository is the folder `root`, which need not exist yet.

    `log` gets each line of the hooks' output, and each failure. `failures` has a sentence for each
    hook that failed so far.
    """

    def __init__(self, hooks: Hooks, job: str, root: Path, log: Callable[[str], None]) -> None:
        self._hooks: dict[str, tuple[Hook, ...]] = dict(hooks)
        self.job = job
        self._root = root
        self._log = log
        self.failures: list[str] = []

    def run(
        self, event: str, revision: str | None = None, guard: Guard | None = None, **facts: object
    ) -> list[str]:
        """Run the hooks of an event, one after the other; return a sentence for each that failed.

        `facts` are added to the JSON object on their stdin. `guard` is told of each that runs.
        Raises HookError if a required hook of "before-restore" or "before-snapshot" fails; the
        hooks after it do not run then.
        """
        before = len(self.failures)
        for hook in self.of(event):
            outcome = process.run(self.program(hook, event, revision, facts), guard)
            name = f"hook {event} {hook.command[0]}"
            lines = [line.strip() for line in outcome.output.splitlines() if line.strip()]
            for line in lines:
                self._log(f"{name}: {line}")
            if outcome.code != 0:
                failure = ": ".join([f"{name} {_ending(hook, outcome)}", *lines[-1:]])[:_LONGEST]
                self.failures.append(failure)
                self._log(failure)
                if hook.required and event.startswith("before-"):
                    raise HookError(f"{self.job}: {failure}", _HINT)
        return self.failures[before:]

    def of(self, event: str) -> tuple[Hook, ...]:
        """The hooks of an event."""
        return self._hooks[event.replace("-", "_")]

    def program(
        self, hook: Hook, event: str, revision: str | None, facts: dict[str, object]
    ) -> Program:
        """What a hook runs."""
        names = {"BACKY_JOB": self.job, "BACKY_REVISION": revision or "", "BACKY_EVENT": event}
        paths = {"folder": str(self._root), "base_dir": str(self._root.parent)}
        content = {"event": event, "job": self.job, "revision": revision, **paths, **facts}
        stdin = f"{json.dumps(content, default=str)}\n".encode()
        return Program(hook.command, names, stdin, hook.timeout)


def _ending(hook: Hook, outcome: Outcome) -> str:
    if outcome.code is None:
        return f"did not end within {hook.timeout} s"
    if outcome.code < 0:
        return f"was ended by signal {-outcome.code}"
    return f"ended with code {outcome.code}"


@dataclass(slots=True)
class Around:
    """The result of the hooks around a snapshot.

    `consistency` is what they guarantee for the snapshot, or None. `failures` has a sentence for
    each hook that failed; those after the snapshot come last.
    """

    consistency: Consistency | None = None
    failures: list[str] = field(default_factory=list)


@contextmanager
def around_snapshot(hooks: Runner, revision: str) -> Iterator[Around]:
    """Run the hooks before a snapshot, then the body, which takes it, then those after it.

    The hooks after it always run once this has begun, so that a guest never stays frozen: even if a
    hook or the body fails, hangs or is killed, or if this process is told to stop or is killed.
    They run once; a signal to stop waits for them. Only if this process is killed while they run,
    they all run again.

    Raises HookError if a required hook fails, or if root refuses any of them because others may
    write it: a guest must not freeze without a hook to thaw it. The body does not run then.
    """
    around = Around()
    after = hooks.of("after-snapshot")
    if not after and not hooks.of("before-snapshot"):
        yield around
        return
    _refuse_unsafe(hooks)
    with ExitStack() as stack:
        with translated(HookError, f"{hooks.job}: starting the guard of the hooks", _HINT):
            programs = [hooks.program(hook, "after-snapshot", revision, {}) for hook in after]
            guard = stack.enter_context(guarding(programs))
        try:
            around.failures += hooks.run("before-snapshot", revision, guard)
            if not around.failures:
                around.consistency = _reached(hooks)
            yield around
        finally:
            # If a signal comes just before this, the guard runs them.
            with signals.shielded():
                around.failures += hooks.run("after-snapshot", revision, guard)
                guard.disarm()


def _refuse_unsafe(hooks: Runner) -> None:
    for event in ("before-snapshot", "after-snapshot"):
        for hook in hooks.of(event):
            if reason := others_may_write_program(hook.command[0]):
                why = f"{hooks.job}: hook {event} {hook.command[0]} is refused: {reason}"
                raise HookError(why, "Only root may write what root runs.")


def _reached(hooks: Runner) -> Consistency | None:
    """The weakest consistency that a hook before the snapshot is configured with."""
    reached = {Consistency(hook.consistency) for hook in hooks.of("before-snapshot")}
    return max(reached, key=list(Consistency).index, default=None)
