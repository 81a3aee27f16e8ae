"""What may run at once, what has to wait its turn, and that no lock outlives its process."""

import re
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.runner import (
    MIB,
    SMALL,
    Backy,
    Lease,
    Running,
    data,
    image,
    leased,
    overwrite,
    unpublishable,
)

DISK = data(1, 5 * MIB)


@contextmanager
def backing_up(backy: Backy, source: Path) -> Iterator[tuple[Running, Lease]]:
    """A backup of vm1 that holds its lock and stands still while it opens its source."""
    command = ["backup", "vm1", "--source", str(source), "--store", backy.store]
    with leased(source) as lease, backy.started(*command) as running:
        lease.wait()
        yield running, lease


def test_the_second_backup_of_a_job_is_skipped_and_names_the_holder(
    either: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    with backing_up(either, source) as (running, lease):
        said = either.refuses(7, "backup", "vm1", "--source", source)
        holder = (
            rf"backy\[{running.process.pid}\] \(backup\) since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        )
        assert re.fullmatch(rf"vm1: backup skipped, held by {holder}", said.message)
        assert "lock ends with that process" in said.hint
        lease.release()
        assert running.end().code == 0
    assert len(either.revisions("vm1")) == 1


def test_other_jobs_are_not_kept_waiting(backy: Backy, tmp_path: Path) -> None:
    with backing_up(backy, image(tmp_path / "vm1.img", SMALL[1])):
        backy.backup("vm2", image(tmp_path / "vm2.img", SMALL[2]))


def test_a_purge_is_skipped_while_a_backup_writes(aged: Backy, tmp_path: Path) -> None:
    aged.quiet("remove", "vm1", "-r", "first")
    before = aged.chunks_of("vm1")
    with backing_up(aged, image(tmp_path / "vm1.img", SMALL[1])) as (running, lease):
        said = aged.refuses(7, "purge", "vm1")
        assert f"vm1: purge skipped, held by backy[{running.process.pid}] (backup)" in said.message
        assert aged.chunks_of("vm1") == before
        lease.release()
        assert running.end().code == 0


def test_a_backup_is_skipped_while_a_purge_runs(aged: Backy) -> None:
    with unpublishable(aged, "vm1"), aged.started("purge", "vm1") as running:
        holder = f"backy[{running.process.pid}] (purge)"
        lock = aged.base / "vm1" / "lock"
        while holder not in lock.read_text():
            assert running.process.poll() is None
        assert holder in aged.refuses(7, "backup", "vm1").message


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["list", "vm1"], id="list"),
        pytest.param(["diff", "vm1", "1", "0"], id="diff"),
        pytest.param(["restore", "vm1", "{}/new.img"], id="restore"),
        pytest.param(["verify", "vm1"], id="verify"),
        pytest.param(["tag", "vm1", "+new"], id="tag"),
        pytest.param(["remove", "vm1", "-r", "all"], id="remove"),
    ],
)
def test_all_else_goes_on_while_a_backup_runs(
    aged: Backy, tmp_path: Path, command: list[str]
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[2])
    with backing_up(aged, source) as (running, lease):
        aged.quiet(*(each.format(tmp_path) for each in command))
        assert running.process.poll() is None
        lease.release()
        result = running.end()
    assert result.code == 0, result
    assert aged.content("vm1") == SMALL[2]


def test_the_parent_may_be_removed_and_brought_back_while_a_backup_builds_upon_it(
    aged: Backy, tmp_path: Path
) -> None:
    before = aged.revisions("vm1")
    with backing_up(aged, image(tmp_path / "vm1.img", SMALL[3])) as (running, lease):
        aged.quiet("remove", "vm1", "-r", "latest")
        aged.quiet("undo", "vm1")
        lease.release()
        assert running.end().code == 0
    assert aged.revisions("vm1")[:-1] == before
    aged.quiet("verify", "vm1")


@contextmanager
def restoring(backy: Backy) -> Iterator[Running]:
    """A restore of vm1 to a pipe that nobody reads as yet: it stands still in the middle."""
    with backy.started("restore", "vm1", "-") as running:
        assert running.process.stdout
        assert select.select([running.process.stdout], [], [], 60)[0]
        yield running


@contextmanager
def whole_disk(running: Running, content: bytes) -> Iterator[None]:
    """In the end the restore has given all of the disk."""
    yield
    out, _ = running.process.communicate()
    assert out == content
    assert running.process.returncode == 0


def test_what_is_being_restored_outlives_its_removal_and_a_purge(
    either: Backy, tmp_path: Path
) -> None:
    either.backup("vm1", image(tmp_path / "vm1.img", DISK))
    with restoring(either) as running, whole_disk(running, DISK):
        either.quiet("remove", "vm1", "-r", "latest")
        said = either.quiet("purge", "vm1").out
        assert "purged 0 revisions" in said
        assert "1 kept (too young, or being read)" in said
    assert "purged 1 revision" in either.quiet("purge", "vm1").out
    assert either.revisions("vm1") == []


def test_a_backup_goes_on_while_its_parent_is_restored(either: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", DISK)
    either.backup("vm1", source)
    overwrite(source, MIB, b"changed")
    with restoring(either) as running, whole_disk(running, DISK):
        either.quiet("backup", "vm1")
        either.quiet("tag", "vm1", "-r", "all", "+new")
    assert either.content("vm1") == source.read_bytes()


def test_a_backup_goes_on_while_its_parent_is_verified(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", DISK)
    revision = backy.backup("vm1", source)
    with (
        leased(backy.chunk("vm1", revision, 3)) as lease,
        backy.started("verify", "vm1") as running,
    ):
        lease.wait()
        overwrite(source, 3 * MIB, b"changed")  # else the backup reads that chunk back, and waits
        backy.quiet("backup", "vm1")
        backy.quiet("remove", "vm1", "-r", revision)
        assert "1 kept" in backy.quiet("purge", "vm1").out
        lease.release()
        assert running.end().code == 0
    assert backy.content("vm1") == source.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_lock_ends_with_its_process(either: Backy, tmp_path: Path, number: int) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    with backing_up(either, source) as (running, _):
        running.signal(signal.Signals(number))
        running.end()
    assert either.revisions("vm1") == []
    either.quiet("backup", "vm1", "--source", source)
    assert either.drafts("vm1") == []
    assert either.content("vm1") == SMALL[1]
