"""Ctrl-C, SIGTERM and SIGKILL at any moment: the history is as it was, and the next run works."""

import signal
import sys
from pathlib import Path

import pytest

from tests.cli.machine import used
from tests.cli.runner import (
    MIB,
    PROGRAM,
    SMALL,
    Argument,
    Backy,
    Result,
    data,
    image,
    leased,
    refusal,
    tree,
    unpublishable,
    wait_for,
)

DISK = data(1, 6 * MIB)
# This takes many seconds to compress by level 19, so there is time to interrupt that.
SLOW = (data(2, 3 * MIB).hex().encode() * 8)[: 40 * MIB]
SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["INT", "TERM", "HUP"]
)
TWO = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])


def stopped(result: Result, number: signal.Signals) -> None:
    assert refusal(result, 130).message == f"stopped by {number.name}"
    assert result.out == ""


@SIGNALS
def test_a_backup_that_waits_for_its_source_can_be_stopped(
    backy: Backy, tmp_path: Path, number: signal.Signals
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    command = ["backup", "vm1", "--source", str(source), "--store", backy.store]
    with leased(source) as lease, backy.started(*command) as running:
        lease.wait()
        running.signal(number)
        stopped(running.end(), number)
    assert backy.revisions("vm1") == backy.drafts("vm1") == []


@TWO
def test_a_backup_that_reads_can_be_stopped(
    backy: Backy, tmp_path: Path, number: signal.Signals
) -> None:
    source = image(tmp_path / "vm1.img", SLOW)
    command = [
        "backup",
        "vm1",
        "--source",
        str(source),
        "--store",
        "chunks",
        "--block-size",
        "64KiB",
        "--level",
        "19",
    ]
    with backy.started(*command) as running:
        wait_for(lambda: bool(backy.chunks_of("vm1")), "a chunk was written")
        running.signal(number)
        stopped(running.end(), number)
    assert backy.revisions("vm1") == backy.drafts("vm1") == []
    source.write_bytes(SMALL[1])
    backy.quiet("backup", "vm1", "--source", source)
    assert backy.content("vm1") == SMALL[1]
    backy.quiet("purge", "vm1")
    assert backy.chunks_of("vm1") == backy.chunks_named("vm1")


class Patient(Backy):
    """Waits for the lock of the history until it is killed, and not for half a minute."""

    PROGRAM = """if True:
        import sys
        from backy.cli import main
        from backy.repository import repository
        repository.PATIENCE = 10**9
        sys.exit(main())
    """

    def command(self, *arguments: Argument) -> list[str]:
        return [sys.executable, "-c", self.PROGRAM, *super().command(*arguments)[len(PROGRAM) :]]


@TWO
def test_a_backup_that_is_about_to_be_published_can_be_stopped(
    either: Backy, tmp_path: Path, number: signal.Signals
) -> None:
    source = image(tmp_path / "vm1.img", DISK)
    old = either.backup("vm1", source)
    source.write_bytes(DISK[::-1])
    patient = Patient(either.base, either.store)
    with unpublishable(either, "vm1"), patient.started("backup", "vm1") as running:
        wait_for_its_record(either)
        running.signal(number)
        stopped(running.end(), number)
    assert (either.revisions("vm1"), either.drafts("vm1")) == ([old], [])
    assert either.content("vm1") == DISK
    either.quiet("backup", "vm1")
    assert either.content("vm1") == DISK[::-1]


def wait_for_its_record(backy: Backy) -> None:
    revisions = backy.base / "vm1" / "revisions"
    wait_for(lambda: bool(list(revisions.glob(".*/revision.json"))), "all data were written")


def test_what_a_killed_backup_left_is_gone_after_the_next(either: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", DISK)
    old = either.backup("vm1", source)
    source.write_bytes(DISK[::-1])
    with unpublishable(either, "vm1"), either.started("backup", "vm1") as running:
        wait_for_its_record(either)
        running.signal(signal.SIGKILL)
        assert running.end().code == -signal.SIGKILL
    assert either.revisions("vm1") == [old]
    assert len(either.drafts("vm1")) == 1
    assert [
        each["id"] for each in either.ok("list", "vm1", "--json").record()["jobs"][0]["revisions"]
    ] == [old]
    source.write_bytes(SMALL[1])
    either.ok("backup", "vm1")
    assert either.drafts("vm1") == []
    either.quiet("purge", "vm1")
    assert either.chunks_of("vm1") == (
        either.chunks_named("vm1") if either.store == "chunks" else set()
    )
    assert (either.content("vm1"), either.content("vm1", 1)) == (SMALL[1], DISK)
    either.quiet("verify", "vm1")


@TWO
def test_a_restore_to_a_new_file_can_be_stopped_and_goes_on_when_it_is_run_again(
    backy: Backy, tmp_path: Path, number: signal.Signals
) -> None:
    revision = backy.backup("vm1", image(tmp_path / "vm1.img", DISK))
    target = tmp_path / "target" / "new.img"
    target.parent.mkdir()
    chunk = backy.chunk("vm1", revision, 4)
    with leased(chunk) as lease, backy.started("restore", "vm1", target) as running:
        lease.wait()
        assert len(tree(target.parent)) == 1
        running.signal(number)
        running.obeys()
        lease.release()
        stopped(running.end(), number)
    assert [*tree(target.parent)] == [".new.img.partial"]
    backy.quiet("restore", "vm1", target)
    assert [*tree(target.parent)] == ["new.img"]
    assert target.read_bytes() == DISK


@TWO
def test_a_restore_to_a_pipe_that_nobody_reads_can_be_stopped(
    either: Backy, tmp_path: Path, number: signal.Signals
) -> None:
    either.backup("vm1", image(tmp_path / "vm1.img", DISK))
    with either.started("restore", "vm1", "-") as running:
        assert running.process.stdout
        assert running.process.stdout.read(1) == DISK[:1]
        running.signal(number)
        # Nothing is read from the pipe until it has ended.
        assert running.process.wait(timeout=120) == 130


def test_a_killed_restore_is_not_taken_for_a_whole_disk(backy: Backy, tmp_path: Path) -> None:
    revision = backy.backup("vm1", image(tmp_path / "vm1.img", DISK))
    chunk = backy.chunk("vm1", revision, 4)
    target = tmp_path / "new.img"
    with leased(chunk) as lease, backy.started("restore", "vm1", target) as running:
        lease.wait()
        running.signal(signal.SIGKILL)
        running.end()
    assert not target.exists()
    backy.quiet("restore", "vm1", target)
    assert target.read_bytes() == DISK


@TWO
def test_a_verification_can_be_stopped_and_marks_nothing(
    backy: Backy, tmp_path: Path, number: signal.Signals
) -> None:
    revision = backy.backup("vm1", image(tmp_path / "vm1.img", DISK))
    with (
        leased(backy.chunk("vm1", revision, 4)) as lease,
        backy.started("verify", "vm1") as running,
    ):
        lease.wait()
        running.signal(number)
        running.obeys()
        lease.release()
        stopped(running.end(), number)
    assert backy.said_of("vm1", revision)["trust"] == "trusted"
    backy.quiet("verify", "vm1")
    assert backy.said_of("vm1", revision)["trust"] == "verified"


def test_space_taken_by_a_stopped_backup_of_plain_images_is_free_at_once(
    alone: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    alone.backup("vm1", source)
    source.write_bytes(DISK)
    before = used(alone.base)
    with unpublishable(alone, "vm1"), alone.started("backup", "vm1") as running:
        wait_for_its_record(alone)
        assert used(alone.base) - before > 5 * MIB
        running.signal(signal.SIGTERM)
        running.end()
    assert used(alone.base) - before < MIB
