"""What is wrong with a source, a target, a name or a repository is said; nothing is lost."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.machine import ext4, without_rights
from tests.cli.runner import MIB, SMALL, Backy, data, environment, image, ran, refusal, tree
from tests.lab.devices import loop_device

Maker = Callable[[Path], object]


# The source.


@pytest.mark.parametrize(
    ("make", "what"),
    [
        pytest.param(lambda path: None, "No such file or directory", id="missing"),
        pytest.param(Path.mkdir, "neither a file nor a block device", id="folder"),
        pytest.param(os.mkfifo, "neither a file nor a block device", id="fifo"),
        pytest.param(Path.touch, "is empty", id="empty"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), "neither a file", id="zero-device"),
        pytest.param(lambda path: path.symlink_to("nowhere"), "No such file", id="broken-link"),
        pytest.param(lambda path: path.symlink_to(path), "symbolic link", id="link-to-itself"),
    ],
)
def test_a_source_that_is_no_disk_is_refused_and_nothing_is_published(
    aged: Backy, tmp_path: Path, make: Maker, what: str
) -> None:
    make(tmp_path / "source.img")
    before = aged.revisions("vm1")
    said = aged.refuses(4, "backup", "vm1", "--source", tmp_path / "source.img")
    assert str(tmp_path / "source.img") in said.message
    assert what in said.message
    assert aged.revisions("vm1") == before
    assert aged.drafts("vm1") == []


def test_an_unreadable_source_is_refused(aged: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "source.img", SMALL[1])
    source.chmod(0)
    before = aged.revisions("vm1")
    said = aged.refuses(4, "backup", "vm1", "--source", source, under=without_rights())
    assert f"{source}: Permission denied" in said.message
    assert "may you read it" in said.hint
    assert aged.revisions("vm1") == before


def test_of_two_disks_one_that_fails_fails_both(two_disks: Backy, tmp_path: Path) -> None:
    good = image(tmp_path / "good.img", SMALL[3])
    sources = [f"--source=vda={good}", f"--source=vdb={tmp_path}/missing.img"]
    said = two_disks.refuses(4, "backup", "vm1", *sources)
    assert "missing.img" in said.message
    assert len(two_disks.revisions("vm1")) == 1


def test_a_read_error_in_the_middle_ends_the_backup(either: Backy, tmp_path: Path) -> None:
    file = image(tmp_path / "device", data(1, 8 * MIB))
    with loop_device(file) as device:
        either.backup("vm1", device)
        os.truncate(file, 3 * MIB)  # What the device has beyond it can no longer be read: EIO.
        said = either.refuses(4, "backup", "vm1")
    # The blocks are read by several threads, so it need not be the first that cannot be.
    found = re.fullmatch(rf"reading {device} at byte (\d+): Input/output error", said.message)
    assert found
    assert int(found[1]) >= 3 * MIB
    assert "dmesg" in said.hint
    assert len(either.revisions("vm1")) == 1
    assert either.drafts("vm1") == []
    assert either.content("vm1") == data(1, 8 * MIB)
    either.quiet("verify", "vm1")


def test_two_sources_for_one_disk_are_refused(backy: Backy, tmp_path: Path) -> None:
    sources = [f"--source=vda={tmp_path}/1", f"--source=vda={tmp_path}/2"]
    assert "vda" in backy.refuses(2, "backup", "vm1", *sources).message


def test_a_job_without_a_source_is_refused_and_not_made(backy: Backy) -> None:
    said = refusal(backy.run("backup", "vm1"), 9)
    assert said.message == "there is no job 'vm1'"
    assert "--source" in said.hint
    assert not (backy.base / "vm1").exists()


# The target.


def test_a_device_that_is_too_small_is_refused_and_keeps_its_content(
    backy: Backy, tmp_path: Path
) -> None:
    backy.backup("vm1", image(tmp_path / "vm1.img", data(1, 2 * MIB)))
    old = data(2, 2 * MIB - 512)
    image(tmp_path / "device", old)
    with loop_device(tmp_path / "device") as device:
        said = backy.refuses(10, "restore", "vm1", device)
        assert str(device) in said.message
        assert str(2 * MIB - 512) in said.message, "sizes that round to the same explain nothing"
        assert str(2 * MIB) in said.message
        assert device.read_bytes() == old


@pytest.mark.parametrize(
    "link",
    [
        pytest.param(lambda path, source: path.hardlink_to(source), id="hard-link"),
        pytest.param(lambda path, source: path.symlink_to(source), id="symbolic-link"),
    ],
)
def test_the_source_under_another_name_is_not_overwritten(
    backy: Backy, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    backy.backup("vm1", source)
    link(tmp_path / "other.img", source)
    source.write_bytes(SMALL[2])
    said = backy.refuses(10, "restore", "vm1", tmp_path / "other.img")
    assert "is the source of disk vda" in said.message
    assert source.read_bytes() == SMALL[2]


@pytest.mark.parametrize(
    "place", ["vm1/disk.img", "vm1/revisions/disk.img", "vm2/repository.json", "link/disk.img"]
)
def test_nothing_is_restored_into_a_repository(aged: Backy, tmp_path: Path, place: str) -> None:
    aged.backup("vm2", image(tmp_path / "vm1.img", SMALL[1]))
    (aged.base / "link").symlink_to(aged.base / "vm1" / "chunks")
    before = tree(aged.base)
    said = aged.refuses(10, "restore", "vm1", aged.base / place)
    assert "lies inside a repository" in said.message
    assert tree(aged.base) == before


def test_a_repository_of_another_base_directory_is_protected_too(
    aged: Backy, tmp_path: Path
) -> None:
    other = Backy(tmp_path / "other")
    other.backup("vm9", image(tmp_path / "vm1.img", SMALL[1]))
    before = tree(other.base)
    said = refusal(aged.run("restore", "vm1", other.base / "vm9" / "restore.sh"), 10)
    assert "lies inside a repository" in said.message
    assert tree(other.base) == before


@pytest.mark.parametrize(
    ("target", "what"),
    [
        pytest.param("missing/disk.img", "there is no folder", id="no-folder"),
        pytest.param("folder", "is a folder", id="folder-in-the-way"),
        pytest.param("fifo", "is no regular file", id="fifo"),
        pytest.param("x" * 300, "File name too long", id="long-name"),
        pytest.param("file/disk.img", "no folder", id="file-as-folder"),
    ],
)
def test_a_target_that_cannot_be_written_is_named(
    aged: Backy, tmp_path: Path, target: str, what: str
) -> None:
    (tmp_path / "folder" / "vda.img").mkdir(parents=True)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    before = tree(tmp_path)
    said = refusal(aged.run("restore", "vm1", tmp_path / target), 10)
    assert what in said.message
    assert str(tmp_path) in said.message
    after = tree(tmp_path)
    after.pop("backups/vm1/restores.json", None)  # unless it is refused before it begins
    assert after == before


def test_a_full_target_is_named_and_what_is_there_is_no_disk_yet(
    backy: Backy, tmp_path: Path
) -> None:
    backy.backup("vm1", image(tmp_path / "vm1.img", data(1, 12 * MIB)))
    with ext4(tmp_path, 8 * MIB) as full:
        said = backy.refuses(10, "restore", "vm1", full / "disk.img")
        assert str(full) in said.message
        assert "No space left on device" in said.message
        assert [path.name for path in full.iterdir()] == [".disk.img.partial"]
        assert ".disk.img.partial" in said.hint


# Names.


@pytest.mark.parametrize(
    "name",
    ["a/b", "..", ".hidden", "", "two words", "a\nb", "x" * 129, "-x", "a\u0308"],
    ids=["slash", "dots", "hidden", "empty", "space", "newline", "long", "dash", "decomposed"],
)
def test_a_name_that_could_be_mistaken_is_refused_and_makes_nothing(
    backy: Backy, tmp_path: Path, name: str
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    before = tree(tmp_path)
    said = backy.refuses(2, "backup", "--source", source, "--", name)
    assert said.message == f"invalid value for 'JOB': {name!r} cannot be the name of a job"
    assert tree(tmp_path) == before
    assert not backy.base.exists()


@pytest.mark.parametrize(
    "command", [["list"], ["restore", "x.img"], ["remove", "-r", "all"]], ids=str
)
def test_no_command_follows_a_name_out_of_the_base_directory(
    aged: Backy, command: list[str]
) -> None:
    inner = Backy(aged.base / "vm1")
    verb, *options = command
    said = refusal(inner.run(verb, "../vm1", *options), 2)
    assert "'../vm1' cannot be the name of a job" in said.message
    assert len(aged.revisions("vm1")) == 3


@pytest.mark.parametrize("name", ["größe.example.org", "日本", "a+b@c_d-1", "x" * 128])
def test_all_other_names_work(backy: Backy, tmp_path: Path, name: str) -> None:
    backy.backup(name, image(tmp_path / "vm1.img", SMALL[1]))
    assert backy.content(name) == SMALL[1]


def test_a_path_may_have_any_letters(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "größe 1=2 [b] 日本.img", SMALL[1])
    backy.ok("backup", "vm1", "--source", f"vda={source}")
    backy.quiet("backup", "vm1")
    backy.ok("restore", "vm1", tmp_path / "neu\n\udcff.img", "-r", "1")
    assert (tmp_path / "neu\n\udcff.img").read_bytes() == SMALL[1]


@pytest.mark.parametrize("name", ["\udcff.img", "a\nb.img", "\033[2J.img"], ids=ascii)
def test_a_path_that_nobody_could_read_is_refused(backy: Backy, tmp_path: Path, name: str) -> None:
    source = image(tmp_path / name, SMALL[1])
    said = backy.refuses(2, "backup", "vm1", "--source", source)
    assert ascii(name)[1:-1] in said.message
    assert backy.revisions("vm1") == []


@pytest.mark.parametrize("name", ["..", "", "-x", "x" * 65])
def test_a_disk_cannot_have_a_name_that_leads_elsewhere(
    backy: Backy, tmp_path: Path, name: str
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    said = backy.refuses(2, "backup", "vm1", f"--source={name}={source}")
    assert said.message == f"invalid value for '--source': {name!r} cannot be the name of a disk"
    assert backy.revisions("vm1") == []


# Settings.


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--block-size", "32KiB"),
        ("--block-size", "32MiB"),
        ("--block-size", "100000"),
        ("--block-size", "big"),
        ("--level", "0"),
        ("--level", "20"),
        ("--store", "tape"),
        ("--tag", "two words"),
    ],
)
def test_an_impossible_setting_is_refused_and_makes_no_repository(
    backy: Backy, tmp_path: Path, option: str, value: str
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    said = refusal(backy.run("backup", "vm1", "--source", source, option, value), 2)
    assert any(word in said.message for word in (value, "32768", "33554432"))
    assert not (backy.base / "vm1" / "repository.json").exists()


# repository.json.


@pytest.mark.parametrize(
    ("change", "what"),
    [
        pytest.param(lambda old: old.replace('"format": 2', '"format": 3'), "format 3", id="newer"),
        pytest.param(lambda old: old[: len(old) // 2], "cut short", id="truncated"),
        pytest.param(lambda old: "", "cut short", id="empty"),
        pytest.param(lambda old: '{"name": "something else"}', "not written by", id="foreign"),
        pytest.param(lambda old: "[]", "format None", id="list"),
        pytest.param(lambda old: "\0" * 500, "cut short", id="zeroes"),
        pytest.param(lambda old: "[" * 10_000, "cut short", id="deep"),
        pytest.param(lambda old: "[" * 100_000, "more parts", id="many-parts"),
        pytest.param(lambda old: " " * 2**21, "larger than", id="huge"),
        pytest.param(lambda old: old.replace("65536", "1"), "block size of 1", id="block-size"),
        pytest.param(lambda old: old.replace("chunks", "tape"), "no store 'tape'", id="store"),
    ],
)
def test_a_repository_that_is_not_understood_is_left_alone(
    aged: Backy, change: Callable[[str], str], what: str
) -> None:
    path = aged.base / "vm1" / "repository.json"
    path.write_text(change(path.read_text()))
    before = tree(aged.base)
    said = aged.refuses(3, "backup", "vm1")
    assert str(path) in said.message or "no store" in said.message
    assert what in said.message
    assert tree(aged.base) == before


def test_a_newer_format_tells_to_update(aged: Backy) -> None:
    path = aged.base / "vm1" / "repository.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
    said = aged.refuses(3, "list", "vm1")
    assert said.message == f"{path} has format 3; this version of backy knows formats up to 2"
    assert said.hint == "Update backy."


def test_a_bug_keeps_its_traceback_and_has_an_exit_code_of_its_own() -> None:
    result = ran([sys.executable, "-c", BUG, "list"], environment())
    assert "ZeroDivisionError" in result.err
    assert result.code == 70
    assert result.out == ""


BUG = """
import sys
from backy.cli import jobs as module, main
module.all_jobs = lambda _: 1 / 0
sys.exit(main())
"""
