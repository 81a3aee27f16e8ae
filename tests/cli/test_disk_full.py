"""A full disk fails the backup, costs nothing that was there, and can be emptied."""

import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backy.config.settings import Interval
from backy.operations.expire import expire
from backy.repository.repository import Repository
from tests.cli.machine import ballast, exhausted, ext4, used
from tests.cli.runner import MIB, Backy, data, image, wait_for
from tests.lab.needs import need
from tests.lab.reflink import missing, reflink_file_system

DISK = data(1, 24 * MIB)


@pytest.fixture(params=["chunks", "images"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backy]:
    """On a file system of its own."""
    if request.param == "chunks":
        with ext4(tmp_path, 64 * MIB, "-N", "2048") as folder:
            yield Backy(folder / "backups", "chunks")
        return
    need(missing("xfs"))
    with reflink_file_system("xfs", 320 * MIB) as folder:
        yield Backy(folder / "backups", "images")


def test_a_first_backup_that_does_not_fit_leaves_nothing(small: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", DISK)
    folder = small.base.parent
    before = used(folder)
    with ballast(folder, 12 * MIB):
        said = small.refuses(8, "backup", "vm1", "--source", source, "--store", small.store)
        assert "No space left on device" in said.message
        assert str(small.base / "vm1") in said.message
        assert "Free some space" in said.hint
        assert small.revisions("vm1") == small.drafts("vm1") == []
        assert small.chunks_of("vm1") == set()
    assert used(folder) - before < MIB
    small.backup("vm1", source)
    assert small.content("vm1") == DISK


def test_a_delta_that_does_not_fit_costs_no_older_revision(small: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", DISK[: 8 * MIB])
    small.backup("vm1", source)
    chunks = small.chunks_of("vm1")
    source.write_bytes(DISK)
    folder = small.base.parent
    before = used(folder)
    with ballast(folder, 8 * MIB):
        said = small.refuses(8, "backup", "vm1")
        assert "No space left on device" in said.message
        assert len(small.revisions("vm1")) == 1
        assert small.drafts("vm1") == []
        assert small.chunks_of("vm1") == chunks
        small.quiet("restore", "vm1", tmp_path / "new.img")
        assert (tmp_path / "new.img").read_bytes() == DISK[: 8 * MIB]
    assert used(folder) - before < MIB
    small.ok("backup", "vm1")
    assert small.content("vm1") == DISK
    assert small.content("vm1", 1) == DISK[: 8 * MIB]
    small.quiet("verify", "vm1")


@pytest.mark.parametrize("command", [["remove", "vm1", "-r", "1"], ["purge", "vm1"]], ids=str)
def test_space_can_be_freed_when_next_to_none_is_left(
    small: Backy, tmp_path: Path, command: list[str]
) -> None:
    source = image(tmp_path / "vm1.img", DISK[: 4 * MIB])
    small.backup("vm1", source)
    source.write_bytes(DISK[4 * MIB : 8 * MIB])
    small.backup("vm1", source)
    if command[0] == "purge":
        small.quiet("remove", "vm1", "-r", "1")
    folder = small.base.parent
    with ballast(folder, MIB):
        small.quiet(*command)
    assert small.content("vm1") == DISK[4 * MIB : 8 * MIB]
    assert len(small.revisions("vm1")) == 1


@pytest.fixture
def aged(small: Backy, tmp_path: Path) -> Backy:
    """With three revisions of vm1, which have nothing in common."""
    if small.store == "images":
        folder = small.base.parent
        subprocess.run(["xfs_growfs", "-m", "1", folder], check=True, capture_output=True)
    source = image(tmp_path / "vm1.img", DISK[: 4 * MIB])
    for start in (0, 4 * MIB, 8 * MIB):
        source.write_bytes(DISK[start : start + 4 * MIB])
        small.backup("vm1", source)
    return small


WHATS = pytest.mark.parametrize("what", ["blocks", "inodes"])


def _soon_backed_up(backy: Backy) -> None:
    """XFS frees the inodes of deleted files a moment later."""
    wait_for(lambda: backy.run("backup", "vm1").code == 0, "a backup has room")


@WHATS
def test_what_only_reads_works_on_a_full_disk_and_removing_empties_it(
    aged: Backy, tmp_path: Path, what: str
) -> None:
    with exhausted(aged.base.parent, what):
        for verb in ("list", "status", "find", "diff", "reports"):
            more = {"find": ["vm1"], "diff": ["vm1", "1", "0"]}
            aged.ok(verb, *more.get(verb, []))
        assert "not in backy history" in aged.ok("restore", "vm1", tmp_path / "new.img").err
        assert (tmp_path / "new.img").read_bytes() == DISK[8 * MIB : 12 * MIB]
        for verb, verdict in {"verify": "12.0 MiB verified", "scrub": "100.0 % of "}.items():
            said = aged.ok(verb, "vm1")
            assert "vm1: warning: the result is not recorded: " in said.err
            assert verdict in said.out
        for command in (["backup", "vm1"], ["tag", "vm1", "-r", "0", "+manual:kept"]):
            refused = aged.refuses(8, *command)
            wanted = "no inodes left" if what == "inodes" else "No space left on device"
            assert wanted in refused.message
            assert "backy purge JOB -r REV" in refused.hint
        aged.quiet("remove", "vm1", "-r", "first")  # it takes the reserve
        aged.quiet("remove", "vm1", "-r", "first")  # and this one has none
        while len(aged.revisions("vm1")) < 3:  # one batch of both, or two
            aged.quiet("undo", "vm1")
        aged.quiet("remove", "vm1", "-r", "first..1")
        aged.quiet("purge", "vm1")
        _soon_backed_up(aged)
        assert (aged.base / "vm1" / "reserve" / "space").exists()  # for the next time
    aged.quiet("verify", "vm1")


@WHATS
def test_a_revision_is_purged_at_once_where_nothing_was_reserved(aged: Backy, what: str) -> None:
    shutil.rmtree(aged.base / "vm1" / "reserve")
    first, *others = aged.revisions("vm1")
    chunks = len(aged.chunks_of("vm1"))
    with exhausted(aged.base.parent, what):
        assert "purged 1 revision" in aged.quiet("purge", "vm1", "-r", first).out
        assert aged.revisions("vm1") == others
        assert aged.drafts("vm1") == []
        if aged.store == "chunks":
            assert len(aged.chunks_of("vm1")) == chunks - 4
        _soon_backed_up(aged)
    aged.quiet("verify", "vm1")


@WHATS
def test_an_expire_on_a_full_disk_deletes_at_once_what_it_does_not_keep(
    aged: Backy, what: str
) -> None:
    repository = Repository(aged.base / "vm1")
    schedule = {"daily": Interval(interval=86400, keep=1)}
    newest = aged.revisions("vm1")[-1]
    with exhausted(aged.base.parent, what):
        expire(repository, schedule, datetime.now(UTC), 1)
        assert aged.revisions("vm1") == [newest]
        _soon_backed_up(aged)
    aged.quiet("verify", "vm1")


def test_a_purge_of_revisions_leaves_the_trash_alone(tmp_path: Path) -> None:
    backy = Backy(tmp_path / "backups")
    source = image(tmp_path / "vm1.img", DISK[:MIB])
    first, second, third = (backy.backup("vm1", source) for _ in range(3))
    backy.quiet("remove", "vm1", "-r", first)
    backy.quiet("purge", "vm1", "-r", second)
    assert backy.revisions("vm1") == [third]
    backy.refuses(2, "purge", "vm1", "-r", third, "--older-than", "1d")
    backy.quiet("undo", "vm1")
    assert backy.revisions("vm1") == [first, third]
    backy.quiet("verify", "vm1")
