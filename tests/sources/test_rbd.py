"""An RBD source takes, uses and removes its own snapshots, and believes no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backy.clients import rbd
from backy.errors import SourceError, StoreError
from backy.model.extent import Kind
from backy.model.revision import Consistency, Revision
from backy.repository.draft import RevisionDraft
from backy.units import KiB, MiB
from tests.conformance.image import read
from tests.lab.ceph import Cluster
from tests.lab.watchdog import ends
from tests.sources.rbd_machine import (
    BLOCK,
    NEW,
    SERVER,
    SIZE,
    Machine,
    servers_of,
    unique,
    with_one_disk,
    with_two_disks,
)


@pytest.fixture
def machine(ceph: Cluster, tmp_path: Path) -> Machine:
    return with_one_disk(ceph, tmp_path / "backups")


@pytest.fixture
def pair(ceph: Cluster, tmp_path: Path) -> Machine:
    return with_two_disks(ceph, tmp_path / "backups")


def looked_at(revision: Revision) -> int:
    """The bytes of vda that were read since they may have changed, and not as a sample."""
    return revision.disks["vda"].read - revision.disks["vda"].compared


def test_a_delta_reads_what_changed_and_leaves_one_snapshot(machine: Machine) -> None:
    first = machine.backup()
    machine.write("write -P 2 3M 512", "discard 0 1M")
    second = machine.backup()
    machine.write("discard 3M 1M")
    third = machine.backup()
    assert [looked_at(each) for each in (first, second, third)] == [BLOCK, BLOCK, 0]
    assert [each.disks["vda"].changed for each in (second, third)] == [BLOCK, BLOCK]
    assert [each.warnings for each in (first, second, third)] == [()] * 3
    image_id = machine.ceph.json("info", machine.images["vda"])["id"]
    assert machine.points() == [f"backy-{third.id}-{SERVER}-vda-{image_id}"]


def test_a_backup_that_failed_leaves_the_parents_snapshot_for_the_next_delta(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.backup()
    before = machine.points()
    machine.write("write -P 3 0 64k")
    with monkeypatch.context() as patch:
        patch.setattr(RevisionDraft, "published", refuse)
        with pytest.raises(StoreError):
            machine.run()
    assert machine.points() == before
    machine.write("write -P 4 8M 64k")
    revision = machine.backup()
    assert looked_at(revision) == 2 * BLOCK
    assert not revision.warnings


def refuse(_draft: RevisionDraft, _revision: Revision) -> Revision:
    raise StoreError("no space for a revision")


def test_what_a_killed_backup_left_is_removed_by_the_next_one(machine: Machine) -> None:
    machine.backup()
    settings = machine.source().settings.model_dump(mode="json", by_alias=True, exclude_none=True)
    code = (
        "import sys, time\n"
        "from backy.sources import Request, open_source\n"
        f"source = open_source({{'type': 'rbd', **{settings}}})\n"
        f"with source.snapshot(Request({NEW!r})) as taken, taken.open() as snapshot:\n"
        "    print(sorted(snapshot.disks), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"['vda']\n"
        assert servers_of(machine.ceph, machine.images["vda"])
        os.kill(process.pid, signal.SIGKILL)
    assert len(machine.points()) == 2
    with ends(60):
        while servers_of(machine.ceph, machine.images["vda"]):
            pass
    machine.write("write -P 3 0 64k")
    revision = machine.backup()
    assert looked_at(revision) == BLOCK
    assert len(machine.points()) == 1


FOREIGN = [
    "before-upgrade",
    "backy-latest",
    f"backy-{NEW}",
    f"backy-{NEW}-server2-vda-123",
    f"backy-{NEW}-{SERVER}2-vda-123",
    f"my-backy-{NEW}-{SERVER}-vda-123",
    f"backy-20301301T000000Z-abcd-{SERVER}-vda-123",
]


def test_snapshots_that_this_server_did_not_take_are_never_touched(machine: Machine) -> None:
    for name in FOREIGN:
        machine.ceph.rbd("snap", "create", "--no-progress", f"{machine.images['vda']}@{name}")
    machine.run()
    assert len(machine.points()) == len(FOREIGN) + 1
    machine.source().remove_all_except([])
    assert machine.points() == FOREIGN


def test_two_servers_back_up_the_same_image_without_harm(machine: Machine, tmp_path: Path) -> None:
    other = Machine(machine.ceph, tmp_path / "other", machine.images, settings={"server": "other"})
    for each in (machine, other):
        each.run()
    machine.write("write -P 2 0 64k")
    revisions = [machine.run(), other.run()]
    assert other.stored(revisions[1], "vda") == machine.ceph.export(machine.images["vda"])
    assert [looked_at(each) for each in revisions] == [BLOCK, BLOCK]
    assert len(machine.points()) == 2


def remove(machine: Machine) -> None:
    machine.ceph.rbd("snap", "rm", "--no-progress", machine.point())


def take_again(machine: Machine) -> None:
    """The image is another one with the same name, and with a snapshot of the same name."""
    image = machine.images["vda"]
    machine.ceph.rbd("deep", "cp", "--no-progress", image, f"{image}-copy")
    machine.ceph.rbd("rename", image, f"{image}-old")
    machine.ceph.rbd("rename", f"{image}-copy", image)


def make_anew(machine: Machine) -> None:
    image = machine.images["vda"]
    machine.ceph.rbd("snap", "purge", "--no-progress", image)
    machine.ceph.rbd("rm", "--no-progress", image)
    machine.ceph.create(image, SIZE)


def grow(machine: Machine) -> None:
    machine.resize(SIZE + MiB)


def shrink(machine: Machine) -> None:
    machine.resize(SIZE - MiB - 512)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(remove, "is gone", id="removed"),
        pytest.param(take_again, "another image", id="copied"),
        pytest.param(make_anew, "another image", id="made-anew"),
        pytest.param(grow, "was resized", id="grown"),
        pytest.param(shrink, "was resized", id="shrunk"),
    ],
)
def test_where_the_parents_snapshot_tells_nothing_all_is_read_and_that_is_said(
    machine: Machine, change: Callable[[Machine], None], reason: str
) -> None:
    machine.run()
    change(machine)
    machine.write("write -P 5 1M 64k")
    revision = machine.backup()
    whole = revision.disks["vda"].whole
    assert reason in whole
    assert machine.images["vda"] in whole
    assert any(whole in warning for warning in revision.warnings)
    assert len(machine.points()) == 1


def test_a_protected_snapshot_is_not_used_and_stays_and_that_is_told(machine: Machine) -> None:
    machine.run()
    [protected] = machine.points()
    machine.ceph.rbd("snap", "protect", machine.point())
    machine.write("write -P 5 1M 64k")
    second, third = machine.run(), machine.run()
    assert "protected" in second.disks["vda"].whole
    assert machine.stored(second, "vda") == machine.ceph.export(machine.images["vda"])
    assert looked_at(third) == 0
    assert len(machine.points()) == 2
    assert machine.points()[0] == protected
    assert all(protected in revision.warnings[-1] for revision in (second, third))
    assert "stays" in third.warnings[-1]


def test_disks_whose_images_changed_places_are_not_taken_for_each_other(pair: Machine) -> None:
    """Each image has a snapshot of the parent then, but that of the other disk."""
    pair.run()
    first, second = pair.images.values()
    between = f"rbd/{unique('between')}"
    for old, new in ((first, between), (second, first), (between, second)):
        pair.ceph.rbd("rename", old, new)
    revision = pair.backup()
    assert ["another image or disk" in each.whole for each in revision.disks.values()] == [True] * 2


def test_an_image_that_was_renamed_and_had_another_size_is_read_where_it_changed(
    machine: Machine,
) -> None:
    machine.write("write -P 9 12M 4M")
    machine.backup()
    machine.resize(13 * MiB)
    machine.resize(SIZE)
    new = f"rbd/{unique('renamed')}"
    machine.ceph.rbd("rename", machine.images["vda"], new)
    machine.images["vda"] = new
    machine.write("write -P 2 15M 64k")
    revision = machine.backup()
    assert looked_at(revision) == BLOCK
    assert revision.disks["vda"].changed == 3 * MiB
    assert not revision.warnings


@pytest.mark.parametrize("is_long", [False, True], ids=["listed", "not-listed"])
def test_an_image_may_end_within_a_sector(
    ceph: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    """QEMU rounds its size up."""
    image = ceph.create(f"rbd/{unique('odd')}", 1_000_001)
    machine = Machine(ceph, tmp_path / "backups", {"vda": image})
    if is_long:
        monkeypatch.setattr(rbd, "_LONGEST_LIST", 500)
    machine.write("write -P 5 0 999936")
    assert machine.backup().disks["vda"].size == 1_000_001
    machine.write("write -P 6 0 512")
    revision = machine.backup()
    assert not revision.warnings
    assert revision.disks["vda"].changed == BLOCK


def test_a_list_of_changes_that_is_too_long_is_not_read(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write(*(f"write -P 7 {start * 128}k 4k" for start in range(64)))
    monkeypatch.setattr(rbd, "_LONGEST_LIST", 2000)
    full = machine.backup()
    assert not full.warnings
    assert 64 * BLOCK <= looked_at(full) <= 9 * MiB
    machine.write(*(f"write -P 8 {start * 128}k 4k" for start in range(64)))
    delta = machine.backup()
    assert "too long" in delta.disks["vda"].whole
    assert 64 * BLOCK <= looked_at(delta) <= 9 * MiB


def test_all_is_read_or_whole_objects_are_where_that_is_wanted(machine: Machine) -> None:
    machine.settings["full-always"] = True
    revisions = [machine.backup() for _ in range(2)]
    assert [looked_at(each) for each in revisions] == [BLOCK, BLOCK]
    assert not revisions[1].warnings
    machine.settings = {"whole-object": True}
    machine.write("write -P 2 3M 4k")
    assert looked_at(machine.backup()) == MiB


def test_several_disks_are_of_one_point_in_time_only_where_the_guest_was_frozen(
    pair: Machine,
) -> None:
    second = pair.images.pop("vdb")
    pair.run()
    with pair.snapshot() as snapshot:
        assert snapshot.consistency is Consistency.CRASH
    pair.images["vdb"] = second
    with pair.snapshot(is_frozen=True) as snapshot:
        assert snapshot.consistency is Consistency.CRASH
    with pair.snapshot() as snapshot:
        assert snapshot.consistency is Consistency.NONE
        kinds = {name: {e.kind for e in disk.extents()} for name, disk in snapshot.disks.items()}
        # A disk that is new has to be read, and needs no reason.
        assert kinds == {"vda": {Kind.SAME}, "vdb": {Kind.DATA, Kind.ZERO}}
        assert snapshot.full_read_reasons == {}


def test_all_snapshots_are_taken_before_anything_else_is_waited_for(pair: Machine) -> None:
    """The guest may be frozen until then: what is written afterwards is in none of them."""
    before = [pair.ceph.export(image) for image in pair.images.values()]
    with pair.taken() as taken:
        assert not any(servers_of(pair.ceph, image) for image in pair.images.values())
        for disk in pair.images:
            pair.write("write -P 9 0 16M", disk=disk)
        with taken.open() as snapshot:
            assert [read(disk, 0, SIZE) for disk in snapshot.disks.values()] == before
            assert all(servers_of(pair.ceph, image) for image in pair.images.values())
    assert not any(servers_of(pair.ceph, image) for image in pair.images.values())
    assert not any(pair.points(disk) for disk in pair.images)


def test_a_guest_cannot_pass_its_disk_off_as_another_format(
    machine: Machine, tmp_path: Path
) -> None:
    """QEMU would follow what the header of a qcow2 image names, /etc/shadow say."""
    header = str(tmp_path / "header")
    options = ["-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"]
    subprocess.run(["qemu-img", "create", "-q", *options, header, "1M"], check=True)
    os.truncate(header, 64 * KiB)
    machine.write(f"write -s {header} 0 64k")
    assert machine.backup().disks["vda"].size == SIZE


def test_all_snapshots_but_those_of_kept_revisions_are_removed(pair: Machine) -> None:
    revision = pair.run()
    kept = [pair.points(disk) for disk in pair.images]
    old = kept[0][0].replace(revision.id, "20200101T000000Z-abcd")
    for image in pair.images.values():
        pair.ceph.rbd("snap", "create", "--no-progress", f"{image}@{old}")
    pair.source().remove_all_except([revision.id, NEW])
    assert [pair.points(disk) for disk in pair.images] == kept
    # Images that are gone have nothing that could be removed.
    gone = {"vdc": "rbd/none", "vdd": "none/none", "vde": "rbd/none/none"}
    pair.source(disks=pair.images | gone).remove_all_except([])
    assert not any(pair.points(disk) for disk in pair.images)


def test_no_snapshot_is_removed_where_not_all_can_be_listed(machine: Machine) -> None:
    machine.run()
    hidden = {**machine.images, "vdb": f"{machine.ceph.pool(unique('hidden'))}/vm"}
    user = machine.ceph.user(unique("half"), "profile rbd", "profile rbd pool=rbd")
    with pytest.raises(SourceError, match="not permitted"):
        machine.source(disks=hidden, user=user).remove_all_except([])
    # Without a key `rbd` ends as it does where there is no image.
    with pytest.raises(SourceError, match=machine.images["vda"]):
        machine.source(user="nobody").remove_all_except([])
    assert len(machine.points()) == 1
