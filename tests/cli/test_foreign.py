"""What backy did not make stops no command, wherever it lies, and stays as it is."""

import os
import shutil
import socket
import subprocess
from os.path import lexists
from pathlib import Path

import pytest

from backy.model.revision import is_id
from tests.cli.commands import COMMANDS
from tests.cli.machine import without_rights
from tests.cli.runner import SMALL, Backy, Result, image
from tests.lab.needs import need, no_mounts
from tests.lab.nested import nested

CONFIGURATION = """
global: {{socket: {folder}/socket}}
schedules: {{default: {{hourly: {{interval: 1h, keep: 1}}}}}}
jobs: {{vm1: {{schedule: default, source: {{type: file, filename: {folder}/vm1.img}}}}}}
"""
USES = [
    "list", "list vm1", "list --json", "jobs", "status --once", "top --once", "find vm1",
    "diff vm1 1 0", "tag vm1 +new", "pause vm1", "resume vm1", "restore vm1 {folder}/new.img",
    "restore vm1 {folder}/all/", "verify vm1", "scrub", "reports", "reports --json",
    "reports show vm1 {report}", "backup vm1", "run vm1", "expire vm1", "check", "config check",
    "config show", "config schema", "init", "undo vm1", "remove vm1 -r first", "purge vm1",
    "reports delete vm1 {report}", "history vm1", "purge --job vm2", "boot vm1 --run print",
]  # fmt: skip
NO_DAEMON = {"check": 2}


@pytest.fixture
def used(either: Backy) -> Backy:
    """vm1 has two revisions, one more in the trash, and a report; vm2 is not configured."""
    folder = either.base.parent
    (folder / "backy.yaml").write_text(CONFIGURATION.format(folder=folder))
    (folder / "all").mkdir()
    for job in ("vm1", "vm2"):
        for seed in (1, 2, 3):
            either.backup(job, image(folder / "vm1.img", SMALL[seed]), "--block-size", "64KiB")
        either.ok("remove", job, "-r", "first")
        either.damage(job, either.revisions(job)[-1], 0)
        assert "healed" in either.ok("verify", job).err
    (either.base / ".backy").mkdir()
    return either


def places(base: Path) -> list[Path]:
    """Every folder that backy made."""
    return [base, *(path for path in base.rglob("*") if path.is_dir())]


def put(folder: Path) -> list[Path]:
    """Something of each kind, with names that others give."""
    kinds = [folder / name for name in (".nfs0001", "plain", "folder", ".hidden", "link", "broken")]
    file, plain, inner, hidden, link, broken = kinds
    file.write_text("a file that is still open")
    plain.write_text("a note")
    for each in (inner, hidden):
        (each / "within").mkdir(parents=True)
        (each / "within" / "vda.blocks").write_text("a copy")
    link.symlink_to(folder.parent)
    broken.symlink_to("/nowhere")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener, Folder(folder):
        listener.bind("socket")  # by a short path: a long one is refused
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b[2J"))
    odd.write_text("not UTF-8")
    return [*kinds, folder / "fifo", folder / "socket", odd, *put_like_ours(folder)]


def put_like_ours(folder: Path) -> list[Path]:
    """In the trash, what is called like a batch or a removed revision, and is no folder."""
    if folder.name != "trash" and folder.parent.name != "trash":
        return []
    file, link = (folder / f"20250101T00000{number}Z-aaaa" for number in (0, 1))
    file.write_text("a list of what was removed")
    link.symlink_to(folder.parent)
    return [file, link]


class Folder:
    """Be in a folder for a moment."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._before = Path.cwd()
        os.chdir(self._path)

    def __exit__(self, *_: object) -> None:
        os.chdir(self._before)


def run(backy: Backy, use: str) -> Result:
    """Run one of USES."""
    folder = backy.base.parent
    (report,) = backy.ok("reports", "vm1", "--json").record()["reports"] or [{"id": "none"}]
    words = use.format(folder=folder, report=report["id"]).split()
    return backy.run("--config", folder / "backy.yaml", *words)


def test_the_uses_are_of_all_commands() -> None:
    commands = {name for name in COMMANDS if any(use.startswith(name) for use in USES)}
    assert commands == COMMANDS.keys() - {"daemon", "mount", "serve"}


def test_what_backy_did_not_make_stops_no_command_and_stays(used: Backy) -> None:
    foreign = {path: path.lstat() for place in places(used.base) for path in put(place)}
    for use in USES:
        result = run(used, use)
        assert result.code == NO_DAEMON.get(use, 0), (use, result)
        assert "\x1b" not in result.out + result.err
        gone = {path for path in foreign if is_our_folder(path.parent) and not lexists(path)}
        assert not gone or use == "purge --job vm2", (use, gone)
        foreign = {path: old for path, old in foreign.items() if path not in gone}
    stay = {path: old for path, old in foreign.items() if is_our_folder(path.parent)}
    assert len(stay) > 50
    assert all(path.lstat() == old for path, old in stay.items() if path.is_file())


def is_our_folder(path: Path) -> bool:
    """Whether it stays where it is: revisions and reports take along what somebody put in them."""
    return path.parent.name not in {"revisions", "quarantine"} and not is_id(path.parent.name)


def test_what_backy_did_not_make_is_named_once_by_a_purge(aged: Backy) -> None:
    aged.ok("remove", "vm1", "-r", "first")
    (batch,) = (aged.base / "vm1" / "trash").iterdir()
    shelf = next((aged.base / "vm1" / "chunks").iterdir())
    for path in (batch.with_name(".nfs0001"), batch / "a note", shelf / "b", shelf.with_name("c")):
        path.touch()
    ours = [path.relative_to(aged.base / "vm1") for place in (batch.parent, batch)
            for path in put_like_ours(place)]  # fmt: skip
    said = aged.ok("purge", "vm1").err
    assert said.startswith("vm1: not made by backy, left alone: ")
    named = ["trash/.nfs0001", f"trash/{batch.name}/a note", f"chunks/{shelf.name}/b", "chunks/c"]
    assert all(said.count(f"'{name}'") == 1 for name in ours)
    assert all(said.count(f"'{name}'") == 1 for name in named)
    assert "'chunks/c'" in aged.ok("purge", "vm1").err


def test_a_job_is_deleted_with_a_file_that_is_called_like_a_revision(aged: Backy) -> None:
    (aged.base / "vm1" / "revisions" / "20250101T000000Z-aaaa").touch()
    config = aged.base.parent / "backy.yaml"
    config.write_text("jobs: {}")
    aged.quiet("--config", config, "purge", "--job", "vm1")
    assert not (aged.base / "vm1").exists()


def test_drafts_of_chunks_and_revisions_are_no_strangers(aged: Backy) -> None:
    root = aged.base / "vm1"
    name = aged.chunk("vm1", aged.revisions("vm1")[0], 0)
    draft = name.with_name(f".{name.name}.4711")
    draft.touch()
    (root / "trash" / f".{aged.revisions('vm1')[0]}").mkdir(parents=True)
    assert aged.ok("purge", "vm1").err == ""
    assert not draft.exists()
    assert not any((root / "trash").iterdir())


@pytest.mark.parametrize("command", ["list", "list --json", "reports", "scrub"])
def test_a_copy_by_hand_in_the_base_directory_is_named_once_and_stops_no_job(
    aged: Backy, command: str
) -> None:
    for name in ("vm1 copy", ".vm1", "vm1~"):
        shutil.copytree(aged.base / "vm1", aged.base / name)
    said = aged.ok(*command.split())
    assert "vm1" in said.out or command == "reports"
    named = [
        f"left alone, since no job has such a name: {name}" for name in ("'vm1 copy'", "'vm1~'")
    ]
    assert said.err.splitlines() == named


def test_a_folder_of_the_file_system_that_we_may_not_look_into_is_no_job(aged: Backy) -> None:
    (aged.base / "lost+found").mkdir(mode=0)
    result = aged.run("list", under=without_rights())
    assert (result.code, result.err) == (0, "")
    (aged.base / "lost+found").rename(aged.base / "vm9")
    result = aged.run("list", under=without_rights())
    assert "vm1" in result.out
    assert result.code == 5, "a job that we may not look into is not missing without a word"
    (aged.base / "vm9").chmod(0o700)


def test_folders_in_folders_of_any_depth_stop_no_command_and_are_deleted_where_they_are_ours(
    used: Backy,
) -> None:
    root, revision = used.base / "vm1", used.revisions("vm1")[0]
    (batch,) = (root / "trash").iterdir()
    (removed,) = batch.iterdir()
    ours = [root / place / ".20260101T000000Z-aaaa" for place in ("revisions", "trash")]
    ours += [removed, root / "revisions" / revision]
    theirs = [root / "deep", root / "chunks" / "deep", batch / "deep", used.base / ".vm1 copy"]
    try:
        for place in (*ours, *theirs, used.base / ".vm8.gone"):
            place.mkdir(exist_ok=True, parents=True)
            nested(place, 1100)  # more than Python recurses; overlayfs is slow with more
        for use in USES:
            result = run(used, use)
            assert result.code == NO_DAEMON.get(use, 0), (use, result)
        assert [path for path in (*ours[:3], used.base / ".vm8.gone") if path.exists()] == []
        assert all(path.exists() for path in theirs)
    finally:
        # pytest's own way to clean up is recursive.
        subprocess.run(["rm", "-rf", used.base], check=True)


def test_what_is_left_of_another_job_does_not_stop_the_deletion_of_a_job(
    aged: Backy, tmp_path: Path
) -> None:
    need(no_mounts())
    stuck = aged.base / ".vm8.gone" / "mounted"
    stuck.mkdir(parents=True)
    config = tmp_path / "backy.yaml"
    config.write_text("jobs: {}")
    subprocess.run(["mount", "-t", "tmpfs", "none", stuck], check=True)
    try:
        aged.ok("--config", str(config), "purge", "--job", "vm1")
    finally:
        subprocess.run(["umount", stuck], check=True)
    assert not (aged.base / "vm1").exists()
