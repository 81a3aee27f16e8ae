"""What an RBD source says when something is missing, refused, slow or senseless."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from backy.clients import qemu_nbd
from backy.clients.rbd import Rbd
from backy.errors import SourceError
from backy.nbd.remote_image import open_image
from backy.sources import Request
from backy.sources.rbd import RbdSource
from backy.units import KiB, MiB
from tests.conformance.image import read
from tests.lab.ceph import Cluster
from tests.lab.watchdog import ends
from tests.snapshots import opened
from tests.sources.rbd_machine import (
    BLOCK,
    NEW,
    SERVER,
    Machine,
    servers_of,
    with_one_disk,
    with_two_disks,
)


@pytest.fixture
def machine(ceph: Cluster, tmp_path: Path) -> Machine:
    return with_one_disk(ceph, tmp_path / "backups")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("rbd/none", "No such file or directory"),
        ("none/vm", "opening pool 'none'"),
        ("rbd/none/vm", "namespace 'none' does not exist"),
    ],
)
def test_what_is_missing_is_named(ceph: Cluster, place: str, said: str) -> None:
    source = RbdSource(disks={"vda": place}, conf=str(ceph.conf))
    with (
        pytest.raises(SourceError, match=f"rbd info {place} .*{said}") as caught,
        opened(source, Request(NEW)),
    ):
        pytest.fail("a snapshot was taken")
    assert "docs/sources/rbd.md" in caught.value.hint


def test_a_snapshot_that_cannot_be_taken_leaves_none_of_the_others(
    ceph: Cluster, tmp_path: Path
) -> None:
    pair = with_two_disks(ceph, tmp_path)
    name = f"backy-{NEW}-{SERVER}-vdb-{ceph.json('info', pair.images['vdb'])['id']}"
    ceph.rbd("snap", "create", "--no-progress", f"{pair.images['vdb']}@{name}")
    with (
        pytest.raises(SourceError, match=f"rbd snap create .*{pair.images['vdb']}@"),
        pair.snapshot(),
    ):
        pytest.fail("a snapshot was taken")
    assert pair.points("vda") == []


def test_monitors_that_do_not_answer_are_waited_for_so_long_and_no_longer(
    machine: Machine, tmp_path: Path
) -> None:
    conf = tmp_path / "ceph.conf"
    text = machine.ceph.conf.read_text()
    conf.write_text(re.sub("(?m)^mon host.*", "mon host = v2:127.0.0.1:1", text))
    source = machine.source(conf=str(conf), timeout=1)
    with ends(60), pytest.raises(SourceError, match="longer than 1 s") as caught:
        source.remove_all_except([])
    assert machine.images["vda"] in caught.value.message
    assert "monitors" in caught.value.hint


def test_a_cluster_that_hangs_fails_the_backup_and_leaves_nothing_hanging(machine: Machine) -> None:
    machine.backup()
    machine.settings["timeout"] = 2
    before = machine.points()
    with machine.ceph.hangs(), ends(60), pytest.raises(SourceError, match="longer than 2 s"):
        machine.run()
    assert not servers_of(machine.ceph, machine.images["vda"])
    assert machine.points() == before
    machine.settings["timeout"] = 60
    machine.write("write -P 3 0 64k")
    assert machine.backup().disks["vda"].changed == BLOCK


@pytest.mark.parametrize("moment", ["opening", "reading"])
def test_a_cluster_that_hangs_later_does_no_harm_either(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(qemu_nbd, "open_image", partial(open_image, timeout_seconds=5))
    with ends(60), machine.taken(timeout=5) as taken, ExitStack() as stack:
        if moment == "opening":
            stack.enter_context(machine.ceph.hangs())
            with pytest.raises(SourceError, match=machine.images["vda"]), taken.open():
                pytest.fail("it was opened")
        else:
            snapshot = stack.enter_context(taken.open())
            stack.enter_context(machine.ceph.hangs())
            with pytest.raises(SourceError, match=machine.images["vda"]):
                read(snapshot.disks["vda"], 3 * MiB, 64 * KiB)
    assert not servers_of(machine.ceph, machine.images["vda"])


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[",
        "{}",
        '[{"offset": 0}]',
        '[{"offset":512,"length":9,"exists":"true"},{"offset":0,"length":9,"exists":"true"}]',
        '[{"offset": 16777216, "length": 512, "exists": "true"}]',
        '[{"offset": 0, "length": 0, "exists": "true"}]',
        "[" * 100_000,
    ],
    ids=["silent", "cut", "no-list", "part", "backwards", "beyond-the-end", "empty", "deep"],
)
def test_an_answer_that_makes_no_sense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    (tmp_path / "answer").write_text(answer)
    (tmp_path / "rbd").write_text(f"#!/bin/sh\nexec {shutil.which('cat')} {tmp_path}/answer\n")
    (tmp_path / "rbd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(SourceError, match="rbd diff rbd/vm@new "):
        Rbd("", "", 60).extents("rbd/vm@new", "old", 16 * MiB)


@pytest.mark.parametrize("is_taken_again", [False, True], ids=["gone", "another"])
@pytest.mark.parametrize("which", ["its", "its-parents"])
def test_a_snapshot_that_is_removed_while_it_is_needed_fails_the_backup(
    machine: Machine, which: str, is_taken_again: bool
) -> None:
    """librbd may have answered with what was written since, and without an error."""
    machine.run()
    [old] = machine.points()
    with machine.snapshot() as snapshot:
        image = snapshot.disks["vda"]
        assert snapshot.warnings() == []
        [new] = set(machine.points()) - {old}
        point = f"{machine.images['vda']}@{new if which == 'its' else old}"
        machine.ceph.rbd("snap", "rm", "--no-progress", point)
        machine.write("write -P 9 0 16M")
        if is_taken_again:
            machine.ceph.rbd("snap", "create", "--no-progress", point)
        with pytest.raises(SourceError, match=f"{machine.images['vda']} was removed"):
            snapshot.warnings()
        if which == "its":
            for _ in range(2):
                with suppress(SourceError):
                    read(image, 3 * MiB, 64 * KiB)
            with pytest.raises(SourceError, match=new):
                read(image, 3 * MiB, 64 * KiB)
