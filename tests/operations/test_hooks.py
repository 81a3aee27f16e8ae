"""Hooks run around a step as they are configured, and those after a snapshot whatever happens."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import pytest

from backy.config.settings import Hook, Hooks
from backy.errors import CancelledError, HookError
from backy.model.revision import Consistency
from backy.operations.hooks import Runner
from backy.operations.snapshot_hooks import around_snapshot
from backy.system import process, signals
from tests.cli.runner import environment, wait_for
from tests.lab.dispositions import WITH_DEFAULTS
from tests.programs import MARK, alive, marked, wait_for_none

REVISION = "20261123T040856Z-nfvw"
EVENTS = [name.replace("_", "-") for name in Hooks.model_fields]


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(MARK, str(tmp_path))
    with marked(str(tmp_path)) as mark:
        yield mark


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def made(tmp_path: Path, log: list[str]) -> Callable[..., Runner]:
    """Makes the runner of job vm1 from hooks by name: before_snapshot=(...)."""

    def make(**hooks: tuple[Hook, ...]) -> Runner:
        return Runner(Hooks(**hooks), "vm1", tmp_path / "vm1", log.append)

    return make


class Settings(TypedDict, total=False):
    timeout: int
    required: bool
    consistency: Literal["application", "filesystem", "crash"]


def sh(script: str, *arguments: object, **settings: Unpack[Settings]) -> Hook:
    """A hook that is a line of shell, whose arguments are $1 and so on."""
    return Hook(command=("/bin/sh", "-c", script, "sh", *map(str, arguments)), **settings)


def noted(folder: Path, word: str, then: str = "", **settings: Unpack[Settings]) -> tuple[Hook]:
    """A hook that adds a line with this word to the file that `notes` reads."""
    return (sh(f"echo {word} >>$1; {then}", folder / "notes", **settings),)


def note(folder: Path, word: str) -> None:
    with (folder / "notes").open("a") as file:
        file.write(f"{word}\n")


def notes(folder: Path) -> list[str]:
    path = folder / "notes"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("event", EVENTS)
def test_a_hook_is_told_what_it_is_run_for(
    made: Callable[..., Runner], tmp_path: Path, event: str
) -> None:
    script = 'cat >$1; echo "$BACKY_EVENT $BACKY_JOB $BACKY_REVISION" >$1.variables'
    hooks = made(**{event.replace("-", "_"): (sh(script, tmp_path / "said"),)})
    assert hooks.run(event, REVISION, target=tmp_path, size=3) == []
    text = (tmp_path / "said").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "event": event,
        "job": "vm1",
        "revision": REVISION,
        "folder": str(tmp_path / "vm1"),
        "base_dir": str(tmp_path),
        "target": str(tmp_path),
        "size": 3,
    }
    assert (tmp_path / "said.variables").read_text() == f"{event} vm1 {REVISION}\n"


def test_where_there_is_no_revision_the_hook_is_told_so(
    made: Callable[..., Runner], log: list[str]
) -> None:
    hooks = made(on_failure=(sh('cat; echo "<$BACKY_REVISION>"'),))
    hooks.run("on-failure", error="no such disk")
    said, variable = (line.partition(": ")[2] for line in log)
    assert json.loads(said)["revision"] is None
    assert json.loads(said)["error"] == "no such disk"
    assert variable == "<>"


@pytest.mark.parametrize("event", EVENTS)
def test_only_the_hooks_of_an_event_run_in_their_order(
    made: Callable[..., Runner], tmp_path: Path, event: str
) -> None:
    hooks = {
        name.replace("-", "_"): noted(tmp_path, name) + noted(tmp_path, "again") for name in EVENTS
    }
    made(**hooks).run(event)
    assert notes(tmp_path) == [event, "again"]


@pytest.mark.parametrize(
    ("hook", "failure"),
    [
        pytest.param(
            sh("echo this; echo; echo that; echo; exit 3"),
            "/bin/sh ended with code 3: that",
            id="code",
        ),
        pytest.param(sh("exit 3"), "/bin/sh ended with code 3", id="silent"),
        pytest.param(sh("kill -KILL $$"), "/bin/sh was ended by signal 9", id="killed"),
        pytest.param(sh("exec sleep 600", timeout=1), "/bin/sh did not end within 1 s", id="hangs"),
    ],
)
def test_a_failure_says_which_hook_failed_how_and_what_it_said_last(
    made: Callable[..., Runner], log: list[str], hook: Hook, failure: str
) -> None:
    hooks = made(after_backup=(hook,))
    assert hooks.run("after-backup") == hooks.failures == [f"hook after-backup {failure}"]
    assert log[-1] == hooks.failures[0]


@pytest.mark.parametrize(
    ("command", "said"),
    [("/not/there", "code 127: "), ("/etc/passwd", "code 126: ")],
    ids=["missing", "not-executable"],
)
def test_a_hook_that_cannot_be_started_failed(
    made: Callable[..., Runner], command: str, said: str
) -> None:
    [failure] = made(after_backup=(Hook(command=(command,)),)).run("after-backup")
    assert failure.startswith(f"hook after-backup {command} ended with {said}")


def test_what_a_hook_says_goes_to_the_log_line_by_line(
    made: Callable[..., Runner], log: list[str]
) -> None:
    made(after_backup=(sh("echo one; echo; echo two >&2"),)).run("after-backup")
    assert log == ["hook after-backup /bin/sh: one", "hook after-backup /bin/sh: two"]


def test_a_hook_that_says_a_megabyte_fails_with_its_last_line_cut_to_be_read(
    made: Callable[..., Runner],
) -> None:
    script = "head -c 1000000 /dev/zero | tr '\\0' x; exit 1"
    [failure] = made(after_backup=(sh(script),)).run("after-backup")
    assert failure.startswith("hook after-backup /bin/sh ended with code 1: xxx")
    assert len(failure) == 300


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("required", [True, False], ids=["required", "not-required"])
def test_a_required_hook_stops_what_is_to_come_and_only_that(
    made: Callable[..., Runner], tmp_path: Path, event: str, required: bool
) -> None:
    first, last = noted(tmp_path, "1", "exit 3", required=required), noted(tmp_path, "2")
    hooks = made(**{event.replace("-", "_"): first + last})
    if required and event.startswith("before-"):
        with pytest.raises(HookError, match=f"^vm1: hook {event} /bin/sh ended with code 3$") as it:
            hooks.run(event)
        assert it.value.exit_code == 11
        assert it.value.hint
        assert notes(tmp_path) == ["1"]
    else:
        assert len(hooks.run(event)) == 1
        assert notes(tmp_path) == ["1", "2"]
    assert len(hooks.failures) == 1


def test_each_run_gives_its_own_failures_and_the_runner_has_all(
    made: Callable[..., Runner],
) -> None:
    hooks = made(before_restore=(sh("exit 1"),), after_restore=(sh("exit 2"),))
    first, last = hooks.run("before-restore"), hooks.run("after-restore")
    assert [line[-1] for line in first + last] == ["1", "2"]
    assert hooks.failures == first + last


# Around a snapshot.


def test_the_snapshot_is_taken_between_the_hooks_before_and_after_it(
    made: Callable[..., Runner], tmp_path: Path
) -> None:
    hooks = made(
        before_snapshot=noted(tmp_path, "before") + noted(tmp_path, "before"),
        after_snapshot=noted(tmp_path, "after") + noted(tmp_path, "after"),
    )
    with around_snapshot(hooks, REVISION) as around:
        note(tmp_path, "body")
    assert notes(tmp_path) == ["before", "before", "body", "after", "after"]
    assert around.failures == hooks.failures == []


APPLICATION, FILESYSTEM = Consistency.APPLICATION, Consistency.FILESYSTEM


@pytest.mark.parametrize(
    ("before", "reached"),
    [
        pytest.param([], None, id="none"),
        pytest.param([sh("true")], APPLICATION, id="default"),
        pytest.param([sh("true", consistency="filesystem")], FILESYSTEM, id="filesystem"),
        pytest.param([sh("true"), sh("true", consistency="filesystem")], FILESYSTEM, id="both"),
        pytest.param([sh("true", consistency="filesystem"), sh("true")], FILESYSTEM, id="both-2"),
        pytest.param([sh("true", consistency="crash")], None, id="a-check"),
        pytest.param([sh("true"), sh("true", consistency="crash")], APPLICATION, id="and-a-check"),
        pytest.param([sh("true"), sh("false")], None, id="one-failed"),
    ],
)
def test_the_hooks_reach_what_the_least_of_them_does_if_all_succeed(
    made: Callable[..., Runner], before: list[Hook], reached: Consistency | None
) -> None:
    hooks = made(before_snapshot=tuple(before), after_snapshot=(sh("true"),))
    with around_snapshot(hooks, REVISION) as around:
        assert around.consistency is reached


def test_failures_before_and_after_a_snapshot_are_told_in_this_order(
    made: Callable[..., Runner], tmp_path: Path
) -> None:
    hooks = made(
        before_snapshot=(sh("exit 1"),),
        after_snapshot=(sh("exit 2"), *noted(tmp_path, "after", required=True, then="exit 3")),
    )
    with around_snapshot(hooks, REVISION) as around:
        assert len(around.failures) == 1
    assert [failure[-1] for failure in around.failures] == ["1", "2", "3"]
    assert notes(tmp_path) == ["after"]


@pytest.mark.parametrize(
    "then",
    ["exit 3", "kill -KILL $$", "sleep 600 & sleep 600", "echo x >&-; exec sleep 600"],
    ids=["fails", "killed", "forks-and-hangs", "hangs"],
)
@pytest.mark.usefixtures("mark")
def test_the_hooks_after_run_once_when_a_required_one_before_fails(
    made: Callable[..., Runner], tmp_path: Path, then: str
) -> None:
    hooks = made(
        before_snapshot=noted(tmp_path, "before", then, required=True, timeout=3),
        after_snapshot=noted(tmp_path, "after"),
    )
    with pytest.raises(HookError), around_snapshot(hooks, REVISION):
        note(tmp_path, "body")
    wait_for_none(str(tmp_path))
    assert notes(tmp_path) == ["before", "after"]


def test_the_hooks_after_run_once_when_the_snapshot_fails(
    made: Callable[..., Runner], tmp_path: Path
) -> None:
    hooks = made(after_snapshot=noted(tmp_path, "after"))
    with pytest.raises(ZeroDivisionError), around_snapshot(hooks, REVISION):
        raise ZeroDivisionError
    assert notes(tmp_path) == ["after"]


def test_the_hooks_after_run_even_if_the_log_is_gone(tmp_path: Path) -> None:
    def gone(text: str) -> None:
        raise BrokenPipeError(text)

    hooks = Hooks(
        before_snapshot=noted(tmp_path, "before"),
        after_snapshot=(sh("echo x"), *noted(tmp_path, "after")),
    )
    with (
        pytest.raises(BrokenPipeError),
        around_snapshot(Runner(hooks, "vm1", tmp_path, gone), REVISION),
    ):
        note(tmp_path, "body")
    assert notes(tmp_path) == ["before", "body", "after"]


def test_where_nobody_could_thaw_nobody_freezes(
    made: Callable[..., Runner], tmp_path: Path
) -> None:
    """The guard cannot be started, here because no program takes so long an argument."""
    hooks = made(
        before_snapshot=noted(tmp_path, "before"), after_snapshot=(sh("true", "x" * 200_000),)
    )
    with pytest.raises(HookError, match=r"^vm1: starting the guard of the hooks: "):  # noqa: SIM117
        with around_snapshot(hooks, REVISION):
            note(tmp_path, "body")
    assert notes(tmp_path) == []


def test_without_hooks_around_a_snapshot_nothing_is_started(
    made: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(process, "Popen")
    with around_snapshot(made(after_backup=(sh("true"),)), REVISION) as around:
        pass
    assert around.consistency is None


def test_a_process_that_a_hook_leaves_running_lives_until_the_hook_after_ends_it(
    made: Callable[..., Runner], tmp_path: Path
) -> None:
    """That is how a database stays locked for the snapshot."""
    hooks = made(
        before_snapshot=(sh("sleep 600 & echo $! >$1", tmp_path / "number"),),
        after_snapshot=(sh("kill $(cat $1)", tmp_path / "number"),),
    )
    with around_snapshot(hooks, REVISION) as around:
        number = int((tmp_path / "number").read_text())
        os.kill(number, 0)
    assert around.failures == []


def test_the_hooks_after_obey_signals_though_we_have_been_stopped(
    made: Callable[..., Runner],
) -> None:
    hooks = made(after_snapshot=(sh("kill -TERM $$; exit 0"),))
    with pytest.raises(CancelledError), signals.cancellable(), around_snapshot(hooks, REVISION):
        os.kill(os.getpid(), signal.SIGTERM)
    assert hooks.failures == ["hook after-snapshot /bin/sh was ended by signal 15"]


PYTHON = [*WITH_DEFAULTS, sys.executable, "-c"]
# Is given a folder, and lines of shell that run before and after the snapshot.
HOOKED = """if True:
    import sys
    from pathlib import Path
    from backy.config.settings import Hook, Hooks
    from backy.errors import CancelledError
    from backy.operations.hooks import Runner
    from backy.operations.snapshot_hooks import around_snapshot
    from backy.system.signals import cancellable
    folder, before, after = Path(sys.argv[1]), *sys.argv[2:]
    def hook(script):
        return (Hook(command=("/bin/sh", "-c", script, "sh", str(folder))),)
    hooks = Hooks(before_snapshot=hook(before), after_snapshot=hook(after))
    try:
        with cancellable(), around_snapshot(Runner(hooks, "vm1", folder, print), "id"):
            (folder / "body").touch()
            sys.stdin.readline()
    except CancelledError as error:
        print(error.message)
"""
WAITS = "trap '' TERM; sleep 1000 & touch $1/{}; while :; do wait; sleep 1; done"
BEFORE, AFTER = WAITS.format("before"), "cat >/dev/null; echo after >>$1/notes"
STOPS = pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL],
    ids=["TERM", "INT", "HUP", "KILL"],
)


def hooked(folder: Path, before: str, after: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PYTHON, HOOKED, str(folder), before, after],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(**{MARK: str(folder)}),
        text=True,
    )


@STOPS
@pytest.mark.parametrize("moment", ["before", "body"])
def test_the_hooks_after_run_once_when_we_are_stopped(
    tmp_path: Path, mark: str, moment: str, number: signal.Signals
) -> None:
    child = hooked(tmp_path, BEFORE if moment == "before" else "true", AFTER)
    with child:
        wait_for((tmp_path / moment).exists, f"it is in {moment}")
        child.send_signal(number)
        said, _ = child.communicate()
    wait_for_none(mark)
    assert notes(tmp_path) == ["after"]
    assert (tmp_path / "body").exists() == (moment == "body")
    assert said == ("" if number is signal.SIGKILL else f"stopped by {number.name}\n")


@STOPS
def test_a_signal_while_the_hooks_after_run_does_not_leave_a_guest_frozen(
    tmp_path: Path, mark: str, number: signal.Signals
) -> None:
    after = "echo begun >>$1/begun; while ! [ -e $1/go ]; do sleep 0.1; done; echo after >>$1/notes"
    begun = tmp_path / "begun"
    with hooked(tmp_path, "true", after) as child:
        assert child.stdin
        child.stdin.write("\n")
        child.stdin.flush()
        wait_for(begun.exists, "the hook after runs")
        child.send_signal(number)
        if number is signal.SIGKILL:
            wait_for(lambda: len(begun.read_text().split()) > 1, "it runs again")
        (tmp_path / "go").touch()
        said, _ = child.communicate()
    wait_for_none(mark)
    assert notes(tmp_path) == ["after"]
    assert len(begun.read_text().split()) == (2 if number is signal.SIGKILL else 1)
    assert said == ("" if number is signal.SIGKILL else f"stopped by {number.name}\n")


def test_nothing_is_left_when_all_went_well(tmp_path: Path, mark: str) -> None:
    with hooked(tmp_path, "true", AFTER) as child:
        said, _ = child.communicate("\n")
    assert alive(mark) == []
    assert (notes(tmp_path), said, child.returncode) == (["after"], "", 0)
