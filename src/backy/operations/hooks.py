"""Hooks: programs of the administrator that run before and after the steps of a job.

A hook gets one JSON object on stdin, and BACKY_JOB, BACKY_REVISION and BACKY_EVENT in its
environment. Its output goes to the log.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from backy.errors import HookError
from backy.system import process
from backy.system.process import Guard, Outcome, Program

if TYPE_CHECKING:
    from backy.config.settings import Hook, Hooks

HINT = "Nothing was done. Fix the hook, or remove `required` from it."
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
                    raise HookError(f"{self.job}: {failure}", HINT)
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
