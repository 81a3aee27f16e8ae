"""The hooks around a snapshot. Those after it always run, so that no guest stays frozen."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from backy.errors import HookError, translated
from backy.model.revision import Consistency
from backy.operations.hooks import HINT, Runner
from backy.system import signals
from backy.system.permissions import others_may_write_program
from backy.system.process import guarding


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
        with translated(HookError, f"{hooks.job}: starting the guard of the hooks", HINT):
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
    """The weakest consistency that a hook before the snapshot is configured with, if it is one."""
    reached = {Consistency(hook.consistency) for hook in hooks.of("before-snapshot")}
    return max(reached - {Consistency.CRASH}, key=list(Consistency).index, default=None)
