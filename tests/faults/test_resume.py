"""A restore that was killed, or ran out of space, or failed anywhere: run again, it is complete.

BACKY_ROUNDS is how many kills for each kind of target; `make soak` takes 10 times as many.
BACKY_SEED repeats about when they came.
"""

# ruff: noqa: ANN401 - it passes on whatever the calls take and give
from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backy.errors import BackyError, CancelledError
from backy.model.revision import Revision
from backy.operations.differential import Differential
from backy.operations.restore import RestoreOptions, restore
from backy.system import files, folders
from tests.cli.machine import ballast, ext4
from tests.cli.runner import MIB, Backy, data, image, wait_for
from tests.lab.devices import loop_device, needs_loop_devices
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import changed, sample

ROUNDS = int(os.environ.get("BACKY_ROUNDS", "1"))
SEED = int(os.environ.get("BACKY_SEED", "1"))
KILLS = 2 * ROUNDS
SIZE = 24 * MIB
SLOWLY = ("--rate", "16MiB")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backy, bytes]:
    """A job with a disk of 24 MiB."""
    folder = tmp_path_factory.mktemp("resume")
    backy, disk = Backy(folder / "backups"), data(1, SIZE)
    backy.backup("vm1", image(folder / "vm1.img", disk))
    return backy, disk


class Writing:
    """A target that gets a disk, and how to look at what it has so far."""

    def __init__(self, path: Path, held: Path, *options: str) -> None:
        self.path = path
        self.held = held
        self.options = options

    def right(self, disk: bytes) -> int:
        """How many blocks of 1 MiB are as they should be."""
        with suppress(FileNotFoundError):
            held = self.held.read_bytes()
            starts = range(0, len(disk), MIB)
            return sum(held[start : start + MIB] == disk[start : start + MIB] for start in starts)
        return 0

    def has(self, disk: bytes, wanted: int) -> bool:
        """Whether at least so many are."""
        return self.right(disk) >= wanted


@pytest.fixture(params=["new", "file", pytest.param("device", marks=needs_loop_devices)])
def writing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Writing]:
    path = tmp_path / "target.img"
    if request.param == "new":
        yield Writing(path, path.with_name(".target.img.partial"))
        return
    path.write_bytes(data(7, SIZE + 3 * MIB if request.param == "file" else SIZE))
    if request.param == "file":
        yield Writing(path, path, "--overwrite")
        return
    with loop_device(path) as device:
        yield Writing(device, device, "--overwrite")


def kill_when(backy: Backy, arguments: Sequence[str], is_time: Callable[[], bool]) -> None:
    with backy.started(*arguments, *SLOWLY) as running:
        wait_for(lambda: running.process.poll() is not None or is_time(), "some is written")
        running.signal(signal.SIGKILL)
        assert running.process.wait() in {-signal.SIGKILL, 0}


def test_killed_at_any_time_it_is_continued(saved: tuple[Backy, bytes], writing: Writing) -> None:
    backy, disk = saved
    chance = random.Random(f"{SEED} {writing.path.name}")
    arguments = ["restore", "vm1", str(writing.path), *writing.options]
    for _ in range(KILLS):
        wanted = writing.right(disk) + chance.randrange(1, 6)
        kill_when(backy, arguments, partial(writing.has, disk, wanted))
    before = writing.right(disk)
    assert before
    done = backy.ok(*arguments, "--verify", "--json").last()
    assert done["written"] == (SIZE // MIB - before) * MIB
    assert writing.path.read_bytes()[:SIZE] == disk
    assert not writing.path.with_name(f".{writing.path.name}.partial").exists()
    *killed, ended = backy.ok("history", "vm1", "--json").last()["restores"]
    assert ended["result"] == "done"
    assert killed[-1]["result"] == "unfinished"


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "existing"])
def test_out_of_space_it_says_what_to_do_and_is_continued(
    saved: tuple[Backy, bytes], tmp_path: Path, is_new: bool
) -> None:
    backy, disk = saved
    with ext4(tmp_path, SIZE + 16 * MIB) as folder:
        target, options = folder / "disk.img", [] if is_new else ["--overwrite"]
        if not is_new:
            target.write_bytes(b"old")
        with ballast(folder, SIZE // 2):
            said = backy.refuses(10, "restore", "vm1", target, *options)
            assert "No space left on device" in said.message
            if is_new:
                assert (
                    f"Run it again to continue, or delete {folder}/.disk.img.partial" in said.hint
                )
        done = backy.ok("restore", "vm1", target, *options, "--json").last()
        assert target.read_bytes() == disk
        assert done["written"] < SIZE
        assert [path.name for path in folder.iterdir()] == ["disk.img"]
    assert "No space left" in backy.ok("history", "vm1").out


DISK = sample(2 * BLOCK) + bytes(MIB) + sample(3 * BLOCK + 777, seed=3)


class Failing:
    """Lets a call of the disk door fail, the `nth` of those that concern a target."""

    NAMES = ("write", "zero", "resize", "sync", "read_into")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.nth = self.count = 0
        self._error = error
        for name in self.NAMES:
            monkeypatch.setattr(files.File, name, self._counted(getattr(files.File, name)))
        for name in ("open_own", "rename"):
            monkeypatch.setattr(folders, name, self._counted(getattr(folders, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *arguments: Any, **options: Any) -> Any:
            if "target" in str(getattr(first, "path", first)):
                self.count += 1
                if self.count == self.nth:
                    raise self._error
            return real(first, *arguments, **options)

        return call


@pytest.mark.parametrize("error", [OSError(5, "broken"), CancelledError("stopped")], ids=repr)
@pytest.mark.parametrize("old", [None, changed(DISK, 5, BLOCK, len(DISK) - 1) + b"longer"])
def test_whichever_call_fails_it_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, old: bytes | None
) -> None:
    made = Made(tmp_path / "base")
    revision = made.backup(DISK)
    failing = Failing(monkeypatch, error)
    path = tmp_path / "target.img"
    is_over = False
    for nth in range(1, 1000):
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)
        failing.count, failing.nth = 0, nth
        with suppress(BackyError):
            run(made, revision, path)
            is_over = failing.count < nth
            assert path.read_bytes() == DISK
        failing.nth = 0
        run(made, revision, path)
        assert path.read_bytes() == DISK
        assert {each.name for each in tmp_path.iterdir()} == {"base", "target.img"}
        if is_over:
            break
    assert is_over
    assert nth > len(DISK) // MIB


def run(made: Made, revision: Revision, path: Path) -> None:
    options = RestoreOptions(overwrite=True, differ=Differential)
    restore(made.repository, revision, "vda", str(path), origins=[], options=options)
