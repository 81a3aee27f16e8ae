"""backy backup: the first one makes the repository, the next ones store what changed."""

import json
import re
from pathlib import Path

import pytest

from backy.units import format_size
from tests.cli.machine import used
from tests.cli.runner import MIB, Backy, called, data, environment, image, overwrite, tree
from tests.lab.devices import loop_device

GIB = 1024 * MIB


def test_the_first_backup_makes_all_that_a_restore_needs(either: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    revision = either.backup("vm1", source)
    assert either.revisions("vm1") == [revision]
    assert either.drafts("vm1") == []
    assert either.content("vm1") == data(1)
    assert (either.base / "vm1" / "restore.sh").stat().st_mode & 0o111
    settings = json.loads((either.base / "vm1" / "repository.json").read_text())
    assert settings["store"] == either.store


def test_the_source_is_remembered(either: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    either.backup("vm1", source)
    overwrite(source, 5, b"changed")
    either.quiet("backup", "vm1")
    assert either.content("vm1") == source.read_bytes()
    assert either.content("vm1", 1) == data(1)


def test_a_relative_path_is_remembered_as_the_place_that_it_was(
    backy: Backy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(tmp_path / "vm1.img", data(1))
    monkeypatch.chdir(tmp_path)
    backy.backup("vm1", "vm1.img")
    monkeypatch.chdir("/")
    backy.quiet("backup", "vm1")
    assert backy.content("vm1") == data(1)


def test_another_source_is_used_and_remembered_from_then_on(backy: Backy, tmp_path: Path) -> None:
    backy.backup("vm1", image(tmp_path / "old.img", data(1)))
    backy.backup("vm1", image(tmp_path / "new.img", data(2)))
    (tmp_path / "old.img").unlink()
    backy.quiet("backup", "vm1")
    assert backy.content("vm1") == data(2)


def test_a_source_that_failed_is_not_remembered(backy: Backy, tmp_path: Path) -> None:
    backy.backup("vm1", image(tmp_path / "vm1.img", data(1)))
    backy.refuses(4, "backup", "vm1", "--source", tmp_path / "mistyped.img")
    backy.quiet("backup", "vm1")
    assert len(backy.revisions("vm1")) == 2


@pytest.mark.parametrize("block_size", ["64KiB", "16MiB"])
def test_an_unchanged_disk_costs_no_stored_bytes(
    either: Backy, tmp_path: Path, block_size: str
) -> None:
    either.backup("vm1", image(tmp_path / "vm1.img", data(1)), "--block-size", block_size)
    before = tree(either.base / "vm1" / "chunks") if either.store == "chunks" else {}
    disk = either.ok("backup", "vm1", "--json").last()["revision"]["disks"]["vda"]
    assert (disk["changed"], disk["stored"]) == (0, 0)
    assert before == (tree(either.base / "vm1" / "chunks") if before else {})


def test_a_small_change_costs_one_block_of_chunks(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1, 8 * MIB))
    backy.backup("vm1", source, "--block-size", "64KiB")
    overwrite(source, 3 * MIB + 10, b"changed")
    disk = backy.ok("backup", "vm1", "--json").last()["revision"]["disks"]["vda"]
    assert disk["changed"] == 65536
    assert 65536 <= disk["stored"] <= 65536 + 4096  # whole pages
    assert disk["read"] == 8 * MIB


def test_a_small_change_costs_one_page_of_a_plain_image(alone: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1, 8 * MIB))
    alone.backup("vm1", source)
    before = used(alone.base)
    overwrite(source, 3 * MIB + 10, b"changed")
    disk = alone.ok("backup", "vm1", "--json").last()["revision"]["disks"]["vda"]
    assert disk["stored"] == 4096
    assert used(alone.base) - before < 256 * 1024
    assert alone.content("vm1") == source.read_bytes()


def test_a_hole_is_not_read(either: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1, MIB))
    with source.open("r+b") as file:
        file.truncate(GIB + 4096 + 1)
    either.backup("vm1", source)
    (revision,) = either.revisions("vm1")
    disk = either.said_of("vm1", revision)["disks"]["vda"]
    assert (disk["size"], disk["read"]) == (GIB + 4096 + 1, MIB)
    assert disk["stored"] < MIB + 4 * 4096  # three chunks of whole pages


def test_a_block_device_is_backed_up_in_its_whole_size(either: Backy, tmp_path: Path) -> None:
    image(tmp_path / "device", data(1, 5 * MIB + 512))
    with loop_device(tmp_path / "device") as device:
        either.backup("vm1", device)
        assert either.content("vm1") == data(1, 5 * MIB + 512)


def test_a_disk_that_is_one_point_in_time_says_so(plain: Backy) -> None:
    revision = plain.backup("vm1", image(plain.base.parent / "vm1.img", data(1)))
    assert plain.said_of("vm1", revision)["consistency"] == "crash"


def test_a_machine_with_several_disks_is_one_revision(either: Backy, tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{name}.img", data(ord(name))) for name in "abc"]
    sources = [str(paths[0]), str(paths[1]), f"log.1={paths[2]}"]
    options = [f"--source={each}" for each in sources]
    either.ok("backup", "vm1", "--store", either.store, *options)
    (revision,) = either.revisions("vm1")
    assert list(either.said_of("vm1", revision)["disks"]) == ["vda", "vdb", "log.1"]
    either.quiet("backup", "vm1")
    for disk, name in [("vda", "a"), ("vdb", "b"), ("log.1", "c")]:
        assert either.content("vm1", disk=disk) == data(ord(name))


def test_a_disk_that_was_added_or_taken_away_disturbs_no_other(
    backy: Backy, tmp_path: Path
) -> None:
    one, two = (image(tmp_path / name, data(len(name))) for name in ("a.img", "bb.img"))
    backy.backup("vm1", f"vda={one}")
    result = backy.ok("backup", "vm1", "--source", f"vda={one}", "--source", f"vdb={two}")
    assert "disk vdb is new; all of it was read" in result.err
    revision = backy.said_of("vm1", backy.revisions("vm1")[-1])
    assert (revision["disks"]["vda"]["stored"], revision["warnings"]) == (
        0,
        ["disk vdb is new; all of it was read"],
    )
    backy.ok("backup", "vm1", "--source", f"vdb={two}")
    assert backy.content("vm1", disk="vdb") == two.read_bytes()
    assert list(backy.said_of("vm1", backy.revisions("vm1")[-1])["disks"]) == ["vdb"]


@pytest.mark.parametrize(
    ("length", "change"),
    [
        pytest.param(5 * MIB, "grew from 3.0 MiB to 5.0 MiB (3150728 to 5242880 bytes)", id="grew"),
        pytest.param(MIB, "shrank from 3.0 MiB to 1.0 MiB (3150728 to 1048576 bytes)", id="shrank"),
        pytest.param(3150729, "grew from 3.0 MiB to 3.0 MiB (3150728 to 3150729", id="by-a-byte"),
    ],
)
def test_a_resized_disk_is_backed_up_and_it_is_said(
    either: Backy, tmp_path: Path, length: int, change: str
) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    either.backup("vm1", source)
    new = (data(1) + data(2))[:length]
    source.write_bytes(new)
    result = either.ok("backup", "vm1")
    assert f"vm1: warning: disk vda {change}" in result.err
    (warning,) = either.said_of("vm1", either.revisions("vm1")[-1])["warnings"]
    assert change in warning
    assert either.content("vm1") == new
    assert either.content("vm1", 1) == data(1)


def test_tags_are_kept_sorted_and_once(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    revision = backy.backup("vm1", source, "--tag", "weekly", "--tag", "daily", "--tag", "weekly")
    assert backy.said_of("vm1", revision)["tags"] == ["daily", "weekly"]


def test_the_summary_says_what_was_read_changed_and_stored(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", b"compressible " * MIB)
    said = backy.quiet("backup", "vm1", "--source", source).out
    pattern = (
        r"vm1: \d{8}T\d{6}Z-\w{4}: read 13\.0 MiB, changed 13\.0 MiB, stored \d+\.\d KiB "
        r"\(ratio \d+\.\d:1\), pages (\d+\.\d KiB), \d+\.\d s, \d+\.\d [KMG]iB/s\n"
    )
    found = re.fullmatch(pattern, said)
    assert found
    written = [*(backy.base / "vm1").glob("*/??/*"), *(backy.base / "vm1").glob("*/*/vda.blocks")]
    pages = sum(path.stat().st_size for path in written if path.suffix != ".zst")
    assert found[1] == format_size(pages)


def test_the_settings_of_a_new_repository_are_as_asked_for(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    backy.backup("vm1", source, "--block-size", "128K", "--level", "7")
    settings = json.loads((backy.base / "vm1" / "repository.json").read_text())
    assert (settings["block_size"], settings["level"]) == (131072, 7)


def test_the_store_is_images_where_files_can_share_extents(plain: Backy, tmp_path: Path) -> None:
    plain.ok("backup", "vm1", "--source", image(tmp_path / "vm1.img", data(1)))
    assert "images" in plain.quiet("list").out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param("--block-size", "4MiB", id="block-size"),
        pytest.param("--store", "images", id="store"),
        pytest.param("--level", "3", id="level"),
    ],
)
def test_a_setting_of_an_existing_repository_is_not_silently_ignored(
    backy: Backy, tmp_path: Path, option: str, value: str
) -> None:
    backy.backup("vm1", image(tmp_path / "vm1.img", data(1)))
    said = backy.refuses(2, "backup", "vm1", option, value)
    assert said.message.startswith("vm1: the repository has ")
    assert value.removesuffix("MiB") in said.message
    assert len(backy.revisions("vm1")) == 1


def test_the_base_directory_can_come_from_the_environment(backy: Backy, tmp_path: Path) -> None:
    backy.backup("vm1", image(tmp_path / "vm1.img", data(1)))
    listed = called(["list", "--json"], environment(BACKY_BASE_DIR=str(backy.base))).record()
    assert [each["job"] for each in listed["jobs"]] == ["vm1"]
