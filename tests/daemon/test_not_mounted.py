"""A base directory whose file system is not mounted takes no backup, and check says so."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backy.repository.base import MARKER
from tests.cli.machine import MIB, ext4
from tests.cli.runner import SMALL, Backy, image, tree, wait_for
from tests.daemon.machine import Server

MISSING = f"has no file {MARKER}, so its file system is probably not mounted"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    with ext4(tmp_path, 64 * MIB) as folder:
        yield folder


def unmount(folder: Path) -> None:
    # As if the server of the storage were gone: the daemon has its lock open there.
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_after_an_umount_under_the_daemon_nothing_is_written_below(mounted: Path) -> None:
    server = Server(mounted.parent, mounted)
    server.job("vm1", SMALL[1])
    with server.daemon():
        server.ok("run", "vm1")
        server.waits_for("vm1", revisions=1, state="idle")
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", mounted], check=True, capture_output=True, text=True
        ).stdout.strip()
        unmount(mounted)
        server.ok("run", "vm1")
        wait_for(lambda: MISSING in server.log.read_text(), "the command fails")
        refused = server.run("check")
        assert (refused.code, MISSING in refused.out) == (2, True)
        assert tree(mounted) == {}, "nothing was written to the disk below"
        subprocess.run(["mount", device, mounted], check=True)
        server.ok("run", "vm1")
        server.waits_for("vm1", revisions=2, state="idle")
    assert len(server.revisions("vm1")) == 2


def test_where_it_has_to_be_mounted_each_command_refuses_the_empty_folder(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.base.mkdir()
    server.job("vm1", SMALL[1])
    server.configure(base_dir_must_be_mounted=True)
    for words in (
        ["backup", "vm1"], ["run", "vm1"], ["list"], ["status", "--once"], ["scrub"],
        ["pause", "vm1"], ["restore", "vm1", tmp_path / "new"], ["expire", "vm1"],
        ["verify", "vm1"], ["jobs"], ["reports"], ["purge", "vm1"], ["daemon"],
    ):  # fmt: skip
        refused = server.refuses(5, *words)
        assert MISSING in refused.message, words
        assert "backy init" in refused.hint
    assert server.run("check").code == 2
    assert tree(server.base) == {}

    assert server.quiet("init").out == f"{server.base}: ready for backups\n"
    server.quiet("init")
    server.ok("backup", "vm1")
    assert server.quiet("list").out.count("vm1") == 1


def test_the_first_backup_marks_the_base_directory(tmp_path: Path) -> None:
    backy = Backy(tmp_path / "backups")
    source = image(tmp_path / "vm1.img", SMALL[1])
    backy.backup("vm1", source)
    assert (backy.base / MARKER).stat().st_mode & 0o777 == 0o644
    (backy.base / MARKER).unlink()
    backy.backup("vm1", source)
    assert backy.quiet("list").out.count("vm1") == 1, "as in repositories of older versions"


@pytest.mark.parametrize(
    "words", [["list"], ["list", "vm1"], ["status", "--once"], ["reports"], ["scrub"]]
)
def test_a_base_directory_that_does_not_exist_is_not_empty(
    tmp_path: Path, words: list[str]
) -> None:
    nowhere = Backy(tmp_path / "nosuch")
    refused = nowhere.refuses(5, *words)
    assert f"there is no folder {nowhere.base}" in refused.message
    assert "mounted" in refused.hint


def test_an_empty_base_directory_is_said_to_be_so(tmp_path: Path) -> None:
    said = Backy(tmp_path).ok("list")
    assert said.err == f"backy: there is no repository in {tmp_path}\n"
