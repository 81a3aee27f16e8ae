"""A machine with several disks: one revision, from which one or all of them come back."""

import json
from pathlib import Path

import pytest

from backy.units import format_size
from tests.cli.runner import SMALL, Backy, image


def test_a_folder_gets_all_disks(two_disks: Backy, tmp_path: Path) -> None:
    folder = tmp_path / "restored"
    folder.mkdir()
    said = two_disks.ok("restore", "vm1", folder).out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "vda.img": SMALL[1],
        "vdb.img": SMALL[2],
    }
    assert [line.partition(": ")[2].partition(": ")[2][:12] for line in said.splitlines()] == [
        "vda restored",
        "vdb restored",
    ]


def test_a_folder_gets_one_disk_if_one_is_named(two_disks: Backy, tmp_path: Path) -> None:
    two_disks.ok("restore", "vm1", tmp_path, "--disk", "vdb")
    assert (tmp_path / "vdb.img").read_bytes() == SMALL[2]
    assert not (tmp_path / "vda.img").exists()


def test_programs_hear_of_each_disk(two_disks: Backy, tmp_path: Path) -> None:
    result = two_disks.ok("restore", "vm1", tmp_path, "--json")
    finished = [each for each in result.records() if each["event"] == "finished"]
    assert [(each["disk"], each["target"]) for each in finished] == [
        ("vda", str(tmp_path / "vda.img")),
        ("vdb", str(tmp_path / "vdb.img")),
    ]


SOURCE = """#!/bin/sh
set -eu
case $1 in
snapshot)
    cat >/dev/null
    printf '{"disks": {"vda": {"read": "%s"}}, "consistency": "crash",' "$HERE/one.img"
    printf ' "files": {"vm.xml": "%s"}}' "$(printf '<domain/>' | base64)"
    ;;
release) cat >/dev/null ;;
esac
"""


@pytest.fixture
def with_files(backy: Backy, tmp_path: Path) -> Backy:
    """vm1 has one revision with the disk vda and a file beside it."""
    image(tmp_path / "one.img", SMALL[1])
    program = tmp_path / "source"
    program.write_text(SOURCE.replace("$HERE", str(tmp_path)))
    program.chmod(0o755)
    config = tmp_path / "backy.yaml"
    source = {"type": "exec", "command": [str(program)]}
    document = {
        "global": {"base-dir": str(backy.base)},
        "schedules": {"default": {"daily": {"interval": "1d", "keep": 9}}},
        "jobs": {"vm1": {"schedule": "default", "source": source}},
    }
    config.write_text(json.dumps(document))
    backy.ok("--config", config, "backup", "vm1")
    return backy


def test_what_the_source_saved_beside_the_disks_comes_back_with_them(
    with_files: Backy, tmp_path: Path
) -> None:
    folder = tmp_path / "restored"
    folder.mkdir()
    said = with_files.ok("restore", "vm1", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["vda.img", "vm.xml"]
    assert (folder / "vm.xml").read_text() == "<domain/>"
    assert f"vm.xml restored to {folder}/vm.xml" in said.err


def test_a_program_that_only_the_repository_names_is_not_run(with_files: Backy) -> None:
    said = with_files.refuses(3, "backup", "vm1")
    assert "a source of type 'exec' is only used if the configuration names it" in said.message


def test_each_disk_is_verified_and_listed(two_disks: Backy) -> None:
    size = len(SMALL[1]) + len(SMALL[2])
    revision = two_disks.said_of("vm1", two_disks.revisions("vm1")[-1])
    assert sum(disk["size"] for disk in revision["disks"].values()) == size
    assert format_size(size) in two_disks.ok("verify", "vm1").out


def test_a_damaged_disk_leaves_the_other_whole(two_disks: Backy, tmp_path: Path) -> None:
    two_disks.lose_index("vm1", two_disks.revisions("vm1")[-1], "vdb")
    two_disks.ok("restore", "vm1", tmp_path / "a.img", "--disk", "vda")
    assert (tmp_path / "a.img").read_bytes() == SMALL[1]
    two_disks.refuses(6, "restore", "vm1", tmp_path / "b.img", "--disk", "vdb")


def test_each_disk_goes_where_it_is_sent(two_disks: Backy, tmp_path: Path) -> None:
    one, other = tmp_path / "a.img", tmp_path / "b.img"
    said = two_disks.ok("restore", "vm1", "--disk", f"vdb={other}", "--disk", f"vda={one}").out
    assert one.read_bytes() == SMALL[1]
    assert other.read_bytes() == SMALL[2]
    assert f"vda restored to {one}" in said


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="none"),
        pytest.param(["--disk", "vda"], id="no-target"),
        pytest.param(["--disk", "vda="], id="empty-target"),
        pytest.param(["x.img", "--disk", "vda=y.img"], id="two-targets-for-one"),
        pytest.param(["--disk", "vda=x.img", "--disk", "vdb"], id="one-without-a-target"),
        pytest.param(["--disk", "vda=x.img", "--disk", "vda=y.img"], id="one-disk-twice"),
        pytest.param(["x.img", "--disk", "vda", "--disk", "vdb"], id="two-disks-to-one-target"),
    ],
)
def test_disks_without_one_target_each_are_refused(
    two_disks: Backy, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = two_disks.run("restore", "vm1", *words)
    assert refused.code == 2
    assert "--disk vda=TARGET" in refused.err
    assert not list(tmp_path.glob("*.img"))
