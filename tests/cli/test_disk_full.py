"""A full disk fails the backup, costs nothing that was there, and is then as full as before."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.machine import ballast, ext4, used
from tests.cli.runner import MIB, Backy, data, image
from tests.lab.needs import need
from tests.lab.reflink import missing, reflink_file_system

DISK = data(1, 24 * MIB)


@pytest.fixture(params=["chunks", "images"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backy]:
    """On a file system of its own."""
    if request.param == "chunks":
        with ext4(tmp_path, 64 * MIB) as folder:
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
