"""Every restore is in the history of its job: what, where to, who asked, how it ended."""

import fcntl
import getpass
import json
import os
import re
from pathlib import Path

import pytest

from backy.repository.restores import MOST
from tests.cli.machine import exhausted, ext4
from tests.cli.runner import MIB, SMALL, Backy, data, environment, image, ran


def history(backy: Backy) -> list[dict[str, object]]:
    answer = backy.quiet("history", "vm1", "--json").last()
    assert answer["job"] == "vm1"
    return list(answer["restores"])


def test_tells_what_went_where_who_asked_and_how_it_ended(aged: Backy, tmp_path: Path) -> None:
    aged.quiet("restore", "vm1", tmp_path / "new.img", "-r", "first")
    [kept] = history(aged)
    size = len(SMALL[1])
    revision = aged.revisions("vm1")[0]
    assert kept["revision"] == revision
    assert kept["targets"] == f"vda={tmp_path}/new.img"
    assert (kept["result"], kept["data"], kept["written"]) == ("done", size, size)
    assert kept["asked_by"] == f"{getpass.getuser()} (uid {os.getuid()}) on {os.uname().nodename}"
    headings, row = aged.quiet("history", "vm1").out.splitlines()
    assert re.split(r"  +", headings) == [
        "time (UTC)", "revision", "data", "written", "took", "result", "targets", "by",
    ]  # fmt: skip
    assert f"  {revision}  " in row
    assert f"  done    vda={tmp_path}/new.img  {kept['asked_by']}" in row


def test_names_the_user_behind_sudo(aged: Backy, tmp_path: Path) -> None:
    command = aged.command("restore", "vm1", tmp_path / "new.img")
    assert ran(command, environment(SUDO_USER="anna\x1b[31m")).code == 0
    assert ", sudo of anna\\x1b[31m)" in str(history(aged)[0]["asked_by"])
    assert "sudo of anna\\x1b[31m)" in aged.quiet("history", "vm1").out


def test_tells_of_every_disk_of_a_folder(two_disks: Backy, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    two_disks.ok("restore", "vm1", tmp_path / "all")
    [kept] = history(two_disks)
    assert kept["targets"] == f"vda={tmp_path}/all/vda.img vdb={tmp_path}/all/vdb.img"


def test_tells_why_a_restore_failed(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    revision = backy.backup("vm1", source)
    source.write_bytes(data(2))
    backy.chunk("vm1", revision, 0).write_bytes(b"rot")
    backy.refuses(6, "restore", "vm1", tmp_path / "new.img")
    backy.refuses(6, "restore", "vm1", tmp_path / "new.img", "--keep-going")
    first, second = history(backy)
    assert "block 0" in str(first["result"])
    assert second["result"] == "1 range lost"


def test_tells_what_was_written_before_a_restore_failed(two_disks: Backy, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    partial = folder / ".vdb.img.partial"
    partial.touch(mode=0o600)
    with partial.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another restore has it
        assert two_disks.run("restore", "vm1", folder).code == 10
    [kept] = history(two_disks)
    assert "another restore is writing" in str(kept["result"])
    assert (kept["data"], kept["written"]) == (len(SMALL[1]), len(SMALL[1]))


@pytest.mark.parametrize(
    "arguments",
    [["restore", "vm1", "{folder}/there"], ["restore", "vm1", "{folder}/new.img", "--dry-run"]],
    ids=["refused", "dry-run"],
)
def test_does_not_tell_of_what_never_began(
    aged: Backy, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "there").write_text("there")
    before = {path.name for path in (aged.base / "vm1").iterdir()}
    aged.run(*(word.format(folder=tmp_path) for word in arguments))
    assert {path.name for path in (aged.base / "vm1").iterdir()} == before
    assert history(aged) == []


def test_keeps_the_last_hundred_and_a_damaged_file_is_told_and_replaced(
    aged: Backy, tmp_path: Path
) -> None:
    aged.quiet("restore", "vm1", tmp_path / "new.img")
    path = aged.base / "vm1" / "restores.json"
    content = json.loads(path.read_text())
    [kept] = content["restores"]
    ids = [f"20200101T0000{number:02}Z-{letter * 4}" for letter in "ab" for number in range(60)]
    content["restores"] = [kept | {"id": name} for name in ids]
    path.write_text(json.dumps(content))
    aged.quiet("restore", "vm1", tmp_path / "new.img", "--overwrite")
    assert len(history(aged)) == MOST
    assert [each["id"] for each in history(aged)][:-1] == ids[-MOST + 1 :]
    path.write_text("torn")
    assert "restores.json" in aged.refuses(6, "history", "vm1").message
    aged.quiet("restore", "vm1", tmp_path / "new.img", "--overwrite")
    assert len(history(aged)) == 1


def test_a_repository_without_space_is_restored_with_a_warning(tmp_path: Path) -> None:
    with ext4(tmp_path, 32 * MIB) as folder:
        backy = Backy(folder / "backups")
        backy.backup("vm1", image(tmp_path / "vm1.img", SMALL[1]))
        with exhausted(folder, "blocks"):
            said = backy.ok("restore", "vm1", tmp_path / "new.img")
        assert "warning: this restore is not in backy history: vm1: writing restores" in said.err
        assert (tmp_path / "new.img").read_bytes() == SMALL[1]


def test_a_dry_run_guesses_how_long_it_takes_from_the_restores_before(
    aged: Backy, tmp_path: Path
) -> None:
    target = tmp_path / "new.img"
    first = aged.quiet("restore", "vm1", target, "--dry-run", "--verify")
    assert first.out.endswith("would be written, nobody knows how long\n")
    assert aged.quiet("restore", "vm1", target, "--dry-run", "--json").last()["seconds"] is None
    aged.quiet("restore", "vm1", target)
    again = aged.quiet("restore", "vm1", target, "--overwrite", "--dry-run")
    assert "0 B would be written, about " in again.out
    record = aged.quiet("restore", "vm1", target, "--overwrite", "--dry-run", "--json").last()
    [kept] = history(aged)
    assert record["dry_run"]
    assert record["written"] == 0
    assert record["seconds"] == pytest.approx(kept["seconds"])


def test_what_cannot_be_read_back_is_not_verified(aged: Backy) -> None:
    said = aged.refuses(2, "restore", "vm1", "-", "--verify")
    assert said.message == "- cannot be read back"
