"""VMs of a machine laid out like a node of Proxmox VE; no PVE is at hand. See docs/sources."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
import zstandard

from backy.errors import SourceError
from backy.model.revision import Consistency, Disk, Revision, id_for
from backy.sources import Request
from backy.sources.qemu import QemuSource
from tests.cli.runner import PROGRAM, environment, ran, wait_for
from tests.docs.markdown import PROJECT, blocks
from tests.lab.ceph import Cluster
from tests.lab.devices import loop_device, needs_loop_devices
from tests.lab.guest import needs_guest
from tests.lab.proxmox import Node, make_qm, node
from tests.snapshots import opened, pulled
from tests.sources.rbd_machine import unique
from tests.sources.test_qemu_hostile import listening
from tests.sources.test_strange_answers import Proxy, changed, refused_or_taken

pytestmark = needs_guest
MIB = 1024**2
THEIRS = "pbs-incremental-dirty-bitmap"  # what PVE's own backups to PBS leave on every disk
PAGE = PROJECT / "docs/sources/proxmox.md"
THROTTLE = pytest.mark.parametrize("vm", [True], indirect=True, ids=["throttle"])


def name(number: int) -> str:
    return id_for(datetime(2026, 11, 23, 0, 0, number, tzinfo=UTC), "test")


def parent(number: int, content: Mapping[str, bytes]) -> Revision:
    disks = {disk: Disk(len(data), MIB, "", 0, 0, 0) for disk, data in content.items()}
    return Revision(name(number), datetime.now(UTC), None, 0, Consistency.CRASH, disks)


def source(vm: Node, **more: object) -> QemuSource:
    """The source as the page has it, but without the agent: most VMs here do not run."""
    scratch = vm.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    settings = {"qmp": str(vm.socket), "scratch": str(scratch), "server": "cluster1"}
    return QemuSource(**settings | {"timeout": "20s", "store-bitmaps": False} | more)


def backed_up(
    vm: Node,
    number: int,
    before: Mapping[str, bytes] | None = None,
    full: str = "",
    **more: Any,  # noqa: ANN401 - of the source
) -> dict[str, bytes]:
    """A backup as backup.py makes it, upon the one before; read in full only because of `full`."""
    qemu = source(vm, **more)
    old = parent(number - 1, before) if before else None
    qemu.remove_all_except([old.id] if old else [])
    with opened(qemu, Request(name(number), old)) as snapshot:
        content = pulled(snapshot, before or {})
        assert list(snapshot.warnings()) == []
        reasons = snapshot.full_read_reasons.values()
        assert all(full in reason for reason in reasons)
        assert bool(reasons) == bool(full)
        snapshot.keep_checkpoint()
    qemu.remove_all_except([name(number)])
    return content


def write(vm: Node, disk: str, command: str) -> None:
    """Write to a disk as the guest does: through the throttle, and the filters of all jobs."""
    place = f"/machine/peripheral/{disk}"
    place += "/virtio-backend" if disk.startswith("virtio") else ""
    line = f'qemu-io -d {place} "{command}"'
    vm.ask("human-monitor-command", command_line=line)


def bitmaps(vm: Node) -> dict[str, list[str]]:
    """The names of all bitmaps, by the driver of the node that has them."""
    found: dict[str, list[str]] = {}
    for each in vm.ask("query-named-block-nodes"):
        names = [bitmap["name"] for bitmap in each.get("dirty-bitmaps", []) if "name" in bitmap]
        found.setdefault(each["drv"], []).extend(names)
    return {driver: names for driver, names in found.items() if names}


def below(vm: Node, driver: str) -> str:
    """The node of a disk in that format: the one below the throttle, if there is any."""
    nodes = vm.ask("query-named-block-nodes")
    (found,) = [
        each["node-name"]
        for each in nodes
        if each["drv"] == driver and not each["ro"] and not each["node-name"].startswith("backy-")
    ]
    return str(found)


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short name: that of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="backy-") as path:
        yield Path(path)


@pytest.fixture(params=[True, False], ids=["throttle", "drive"])
def vm(folder: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """A VM that is on and executes nothing, of machine type 10.0 or of an older one."""
    with node(folder, is_blockdev=request.param) as made:
        made.start()
        yield made


def test_a_disk_keeps_its_format_and_its_bitmap_lies_where_the_image_is(vm: Node) -> None:
    with opened(source(vm), Request(name(0))) as snapshot:
        assert snapshot.image_formats == {"virtio0": "qcow2", "virtio1": "raw"}
    before = backed_up(vm, 0)
    write(vm, "virtio0", "write -P 7 10M 64k")
    after = backed_up(vm, 1, before)
    assert after["virtio0"][10 * MIB : 10 * MIB + 65536] == b"\7" * 65536
    assert after["virtio1"] == before["virtio1"] == vm.disks["vdb"].read_bytes()
    assert bitmaps(vm) == {driver: [f"backy-{name(1)}-cluster1"] for driver in ("raw", "qcow2")}


def test_whatever_qemu_says_of_its_graph_is_no_bug(folder: Path) -> None:
    with node(folder) as vm:
        vm.start()
        proxy = Proxy(vm.socket)
        with listening(folder / "proxy", proxy) as path:
            qemu = source(vm, qmp=str(path))
            assert qemu.look() == {"virtio0", "virtio1"}
            proxy.command = "x-debug-query-block-graph"
            graph = proxy.heard[proxy.command]
            edges = [edge for edge in graph["edges"] if edge["name"] == "file"]
            loops = [{**edge, "child": edge["parent"]} for edge in edges]
            wrong = list(changed({"nodes": graph["nodes"][:3], "edges": graph["edges"][:3]}))
            for answer in [graph | {"edges": loops}, *wrong[3 :: len(wrong) // 40]]:
                proxy.answer = answer
                with refused_or_taken():
                    qemu.look()


def test_a_filter_that_a_moved_disk_keeps_hides_neither_format_nor_bitmap(folder: Path) -> None:
    with node(folder) as vm:
        vm.filter = "copy-on-read"
        vm.start()
        with opened(source(vm), Request(name(0))) as snapshot:
            assert snapshot.image_formats == {"virtio0": "qcow2", "virtio1": "raw"}
        before = backed_up(vm, 0)
        assert set(bitmaps(vm)) == {"raw", "qcow2"}
        assert backed_up(vm, 1, before) == before


def test_limits_of_the_guest_do_not_slow_its_backup(folder: Path) -> None:
    with node(folder) as vm:
        vm.start()
        group = "/objects/throttle-drive-virtio0"
        # The whole disk would take hours at that rate, and QEMU as long to end.
        vm.ask("qom-set", path=group, property="limits", value={"bps-read": 1024, "iops-read": 1})
        try:
            content = backed_up(vm, 0, disks=["virtio0"], timeout="5s")
        finally:
            vm.stop(kill=True)
        assert len(content["virtio0"]) == 48 * MIB


@THROTTLE
def test_bitmaps_of_pbs_and_of_replication_survive_untouched(vm: Node) -> None:
    places = [below(vm, "qcow2"), below(vm, "raw")]
    for place in places:
        vm.ask("block-dirty-bitmap-add", node=place, name=THEIRS)
    # On top, as the migration of a replicated disk adds it.
    vm.ask("block-dirty-bitmap-add", node="drive-virtio0", name="repl_virtio0")
    write(vm, "virtio0", "write -P 7 10M 192k")

    def theirs() -> list[Any]:
        nodes = vm.ask("query-named-block-nodes")
        every = [bitmap for each in nodes for bitmap in each.get("dirty-bitmaps", [])]
        return [each for each in every if not each.get("name", "backy-").startswith("backy-")]

    found = theirs()
    assert [each["count"] for each in found if each["count"]] == [196608] * 2
    before = backed_up(vm, 0)
    backed_up(vm, 1, before)
    source(vm).remove_all_except([])
    assert theirs() == found
    assert len(found) == 3


@contextmanager
def vzdump(vm: Node) -> Iterator[None]:
    """Another backup of the qcow2 disk, slow, below the throttle: as PVE's own makes it."""
    target = vm.folder / "vzdump.raw"
    target.write_bytes(b"")
    subprocess.run(["truncate", "--size=48M", target], check=True)
    file = {"driver": "file", "filename": str(target)}
    vm.ask("blockdev-add", driver="raw", node_name="vzdump", file=file)
    job = {"job_id": "vzdump", "device": below(vm, "qcow2"), "target": "vzdump", "sync": "full"}
    vm.ask("blockdev-backup", **job, speed=65536)
    yield
    vm.ask("block-job-set-speed", device="vzdump", speed=0)
    wait_for(
        lambda: "vzdump" not in [job["device"] for job in vm.ask("query-block-jobs")], "it ends"
    )
    vm.ask("blockdev-del", node_name="vzdump")


@THROTTLE
def test_a_backup_that_begins_during_a_vzdump_is_right_and_so_is_the_vzdump(vm: Node) -> None:
    before = backed_up(vm, 0)
    with ExitStack() as theirs:
        theirs.enter_context(vzdump(vm))
        write(vm, "virtio0", "write -P 7 40M 64k")
        with opened(source(vm), Request(name(1), parent(0, before))) as snapshot:
            write(vm, "virtio0", "write -P 6 40M 64k")
            theirs.close()  # it ends first
            write(vm, "virtio0", "write -P 6 41M 64k")
            during = pulled(snapshot, before)
            assert list(snapshot.warnings()) == []
            snapshot.keep_checkpoint()
    assert during["virtio0"][40 * MIB : 40 * MIB + 65536] == b"\7" * 65536
    assert during["virtio0"][41 * MIB :] == before["virtio0"][41 * MIB :]
    assert (vm.folder / "vzdump.raw").read_bytes() == before["virtio0"]
    write(vm, "virtio0", "write -P 8 40M 64k")
    last = backed_up(vm, 2, during)  # the bitmap was not lost with their job
    assert last["virtio0"][40 * MIB : 40 * MIB + 65536] == b"\10" * 65536


def seen_by_pve(vm: Node, disk: str) -> str:
    """The node that PVE works on: what is below the throttle, or else the drive's uppermost."""
    top = f"drive-{disk}"
    if not vm.is_blockdev:
        return top
    graph = vm.ask("x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    (found,) = [
        names[edge["child"]]
        for edge in graph["edges"]
        if names[edge["parent"]] == top and edge["name"] == "file"
    ]
    return str(found)


def test_what_pve_cannot_do_during_a_backup_is_refused_and_harms_nobody(vm: Node) -> None:
    before = backed_up(vm, 0)
    vm.ask("blockdev-add", driver="null-co", size=48 * MIB, node_name="other", read_zeroes=True)
    with opened(source(vm), Request(name(1), parent(0, before))) as snapshot:
        place = seen_by_pve(vm, "virtio0")
        job = {"job_id": "theirs", "device": place, "target": "other", "sync": "full"}
        cases: dict[str, dict[str, Any]] = {
            "blockdev-backup": job,  # vzdump
            "blockdev-mirror": job,  # a disk is moved
            "blockdev-snapshot-internal-sync": {"device": "drive-virtio0", "name": "before"},
            "nbd-server-start": {"addr": {"type": "unix", "data": {"path": f"{vm.folder}/nbd"}}},
        }
        for command, arguments in cases.items():
            with pytest.raises(SourceError, match=r"busy|support|root block node|already running"):
                vm.ask(command, **arguments)
        write(vm, "virtio0", "write -P 7 10M 64k")
        assert pulled(snapshot, before) == before
        assert list(snapshot.warnings()) == []
    assert backed_up(vm, 2)["virtio0"][10 * MIB : 10 * MIB + 65536] == b"\7" * 65536


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "full"])
@THROTTLE
def test_a_disk_that_grows_during_its_backup_ends_neither_the_vm_nor_the_backup(
    vm: Node, delta: bool
) -> None:
    before = backed_up(vm, 0)
    with opened(source(vm), Request(name(1), parent(0, before) if delta else None)) as snapshot:
        for disk in ("virtio0", "virtio1"):
            vm.ask("block_resize", node_name=f"drive-{disk}", size=64 * MIB + 512)
            write(vm, disk, "write -P 3 47M 1M")
            write(vm, disk, "write -P 4 60M 64k")
        assert pulled(snapshot, before if delta else {}) == before
        assert list(snapshot.warnings()) == []
        snapshot.keep_checkpoint()
    after = backed_up(vm, 2, before, "its size changed")
    for content in after.values():
        assert len(content) == 64 * MIB + 512
        assert content[60 * MIB : 60 * MIB + 65536] == b"\4" * 65536


def test_disks_that_come_and_go_during_a_backup_harm_neither(folder: Path) -> None:
    for number in (1, 2):
        (folder / f"{number}.raw").write_bytes(bytes([number]) * 4 * MIB)
    disks = [{"driver": "file", "filename": f"{folder}/{number}.raw"} for number in (1, 2)]
    with node(folder, scsi1=disks[0]) as vm:
        vm.start()
        vm.ask("cont")
        before = backed_up(vm, 0)
        with opened(source(vm), Request(name(1), parent(0, before))) as snapshot:
            vm.ask("device_del", id="scsi1")
            wait_for(lambda: "scsi1" not in source(vm).look(), "the disk is gone")
            vm.ask("blockdev-del", node_name="drive-scsi1")
            vm.plug("scsi2", disks[1])
            assert pulled(snapshot, before) == before
            assert list(snapshot.warnings()) == []
            snapshot.keep_checkpoint()
        vm.plug("scsi1", disks[0])  # PVE cannot attach it again before the backup has ended
        last = backed_up(vm, 2)
        assert last["scsi1"] == before["scsi1"]
        assert last["scsi2"] == bytes([2]) * 4 * MIB


def test_the_fleecing_image_of_a_vzdump_is_no_disk(folder: Path) -> None:
    image = folder / "fleecing.raw"
    image.write_bytes(bytes(MIB))
    with node(folder, is_blockdev=False) as vm:
        vm.start()
        drive = f"if=none,format=raw,id=drive-virtio0-fleecing,file={image}"
        vm.ask("human-monitor-command", command_line=f"drive_add auto {drive}")
        assert len(vm.ask("query-block")) == 4
        assert source(vm).look() == {"virtio0", "virtio1"}


def revert(vm: Node) -> subprocess.CompletedProcess[str]:
    """What `qm rollback` does to a qcow2, after the VM has been stopped."""
    command = ["qemu-img", "snapshot", "-a", "before", str(vm.disks["vda"])]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@THROTTLE
def test_a_rollback_works_and_the_disk_is_then_read_in_full(vm: Node) -> None:
    write(vm, "virtio0", "write -P 1 10M 64k")
    vm.ask("blockdev-snapshot-internal-sync", device="drive-virtio0", name="before")
    before = backed_up(vm, 0, disks=["virtio0"])
    write(vm, "virtio0", "write -P 2 10M 64k")
    after = backed_up(vm, 1, before, disks=["virtio0"])
    vm.stop()
    assert revert(vm).returncode == 0
    vm.start()
    assert backed_up(vm, 2, after, "is gone", disks=["virtio0"]) == before


@THROTTLE
def test_bitmaps_come_back_with_the_ram_of_a_snapshot_and_are_right(vm: Node) -> None:
    vm.ask("cont")
    before = backed_up(vm, 0)
    write(vm, "virtio0", "write -P 7 10M 64k")
    state = vm.folder / "state"  # PVE's snapshots with RAM, and hibernation, set this, too
    capability = {"capability": "dirty-bitmaps", "state": True}
    vm.ask("migrate-set-capabilities", capabilities=[capability])
    vm.ask("migrate", uri=f"exec:cat > {state}")
    wait_for(lambda: vm.ask("query-migrate")["status"] == "completed", "the RAM is saved")
    vm.stop()
    disks = {path: path.read_bytes() for path in vm.disks.values()}
    vm.start()
    write(vm, "virtio0", "write -P 9 20M 64k")
    vm.stop()
    for path, content in disks.items():  # the rollback
        path.write_bytes(content)
    vm.more_options = ["-incoming", f"exec:cat {state}"]
    vm.start()
    wait_for(lambda: vm.ask("query-status")["status"] != "inmigrate", "the RAM is loaded")
    after = backed_up(vm, 1, before)
    assert after == backed_up(vm, 2)
    assert after["virtio0"][10 * MIB : 10 * MIB + 65536] == b"\7" * 65536


@THROTTLE
def test_a_stored_bitmap_lasts_until_the_vm_is_on_again_and_forbids_the_rollback(vm: Node) -> None:
    settings: dict[str, Any] = {"disks": ["virtio0"], "store-bitmaps": True}
    vm.ask("blockdev-snapshot-internal-sync", device="drive-virtio0", name="before")
    before = backed_up(vm, 0, **settings)
    write(vm, "virtio0", "write -P 2 10M 64k")
    vm.stop()
    assert "active dirty bitmaps" in revert(vm).stderr
    vm.start()
    after = backed_up(vm, 1, before, **settings)
    assert after["virtio0"][10 * MIB : 10 * MIB + 65536] == b"\2" * 65536


@THROTTLE
@pytest.mark.parametrize("store", [True, False], ids=["stored", "in-memory"])
def test_backups_go_on_after_a_snapshot_as_a_volume_chain(vm: Node, store: bool) -> None:
    settings: dict[str, Any] = {"disks": ["virtio0"], "store-bitmaps": store}
    before = backed_up(vm, 0, **settings)
    overlay, image = vm.folder / "overlay.qcow2", vm.disks["vda"]
    create = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        image,
        overlay,
    ]
    subprocess.run([str(word) for word in create], check=True)
    file = {"driver": "file", "filename": str(overlay)}
    place = below(vm, "qcow2")
    vm.ask("blockdev-add", driver="qcow2", node_name="overlay", backing=None, file=file)
    vm.ask("blockdev-snapshot", node=place, overlay="overlay")
    write(vm, "virtio0", "write -P 2 10M 64k")
    after = backed_up(vm, 1, before, "is gone", **settings)
    assert after["virtio0"][10 * MIB : 10 * MIB + 65536] == b"\2" * 65536
    write(vm, "virtio0", "write -P 3 20M 64k")
    last = backed_up(vm, 2, after, **settings)
    assert last["virtio0"][20 * MIB : 20 * MIB + 65536] == b"\3" * 65536


def test_the_configuration_and_the_tpm_come_with_each_revision_or_a_warning(folder: Path) -> None:
    with node(folder) as vm:
        tpm, gone = folder / "vm-100-disk-4.raw", folder / "gone"
        tpm.write_bytes(b"state".ljust(4 * MIB, b"\0"))
        files = {"vm.conf": str(vm.configuration), "tpmstate0": str(tpm), "firewall": str(gone)}
        images = {"virtio0": str(vm.disks["vda"])}
        for start in (vm.start, vm.stop):  # on, and off
            start()
            qemu = source(vm, files=files, images=images, disks=["virtio0"])
            with opened(qemu, Request(name(0))) as snapshot:
                assert snapshot.files["vm.conf"] == vm.configuration.read_bytes()
                packed = snapshot.files["tpmstate0.zst"]
                assert zstandard.decompress(packed) == tpm.read_bytes()
                assert "firewall" not in snapshot.files
                assert list(snapshot.warnings()) == [
                    f"{gone} was not saved: No such file or directory"
                ]


def test_a_vm_that_is_started_while_its_images_are_read_fails_the_backup(folder: Path) -> None:
    with node(folder) as vm:
        images = {"virtio0": str(vm.disks["vda"])}
        with opened(source(vm, images=images), Request(name(0))) as snapshot:
            pulled(snapshot)
            vm.start()
            with pytest.raises(SourceError, match="was started while"):
                snapshot.warnings()


def test_a_link_is_not_followed_to_another_file(folder: Path) -> None:
    link = folder / "link"
    link.symlink_to("/etc/hostname")
    with node(folder) as vm:
        vm.start()
        with opened(source(vm, files={"vm.conf": str(link)}), Request(name(0))) as snapshot:
            assert snapshot.files == {}
            assert len(list(snapshot.warnings())) == 1


def test_the_variables_of_uefi_are_a_disk(folder: Path) -> None:
    with node(folder) as vm:
        vm.has_uefi = True
        vm.start()
        disks = {"efidisk0": "drive-efidisk0", "virtio0": "virtio0"}
        before = backed_up(vm, 0, disks=disks)
        assert before["efidisk0"] == vm.efi.read_bytes()
        assert backed_up(vm, 1, before, disks=disks) == before


@needs_loop_devices
def test_a_block_device_such_as_a_volume_of_lvm_zfs_or_krbd(folder: Path) -> None:
    (folder / "volume").write_bytes(b"volume".ljust(4 * MIB, b"\1"))
    with loop_device(folder / "volume") as device:
        disk = {"driver": "host_device", "filename": str(device)}
        with node(folder, scsi1=disk) as vm:
            vm.start()
            before = backed_up(vm, 0)
            assert before["scsi1"] == device.read_bytes()
            write(vm, "scsi1", "write -P 9 1M 64k")
            after = backed_up(vm, 1, before)
            assert after["scsi1"][MIB : MIB + 65536] == b"\t" * 65536
            vm.stop()  # bitmaps are gone, the disk is read from its device
            images = {"scsi1": {"path": str(device), "format": "raw"}}
            off = source(vm, images=images, disks=["scsi1"])
            with opened(off, Request(name(2), parent(1, after))) as snapshot:
                assert pulled(snapshot)["scsi1"] == after["scsi1"]
                assert snapshot.full_read_reasons == {"scsi1": "the VM is off"}


def test_an_image_of_ceph_that_qemu_reads_itself(folder: Path, ceph: Cluster) -> None:
    image = ceph.create(f"rbd/{unique('vm-100-disk-')}", 8 * MIB)
    ceph.write(image, "write -P 5 1M 1M")
    disk = {"driver": "rbd", "pool": "rbd", "image": image[4:], "conf": str(ceph.conf)}
    with node(folder, scsi1=disk) as vm:
        vm.start()
        before = backed_up(vm, 0)
        assert before["scsi1"] == ceph.export(image)
        write(vm, "scsi1", "write -P 6 2M 64k")
        after = backed_up(vm, 1, before)
        assert after["scsi1"] == ceph.export(image) != before["scsi1"]


class Poller(threading.Thread):
    """Asks at the monitor as PVE does: a connection a command, and no answer in 5 s is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.ends, self.count = path, threading.Event(), 0
        self.errors: list[str] = []

    def run(self) -> None:
        while not self.ends.is_set():
            for command in ("query-status", "query-blockstats", "query-block-jobs"):
                try:
                    self._ask(command)
                    self.count += 1
                except OSError as error:
                    self.errors.append(f"{command}: {error}")
            time.sleep(0.005)

    def _ask(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(5)
            connected.connect(str(self.path))
            with connected.makefile("rwb") as stream:
                for each in ("qmp_capabilities", command):
                    stream.write(json.dumps({"execute": each, "id": each}).encode())
                    stream.flush()
                    answer: dict[str, Any] = {}
                    while answer.get("id") != each:
                        if not (line := stream.readline()):
                            raise OSError("it hung up")
                        answer = json.loads(line)


@THROTTLE
def test_pve_and_backy_share_the_monitor(vm: Node) -> None:
    poller = Poller(vm.socket)
    poller.start()
    content: dict[str, bytes] = {}
    try:
        for number in range(4):
            write(vm, "virtio0", f"write -P {number} 10M 64k")
            content = backed_up(vm, number, content)
    finally:
        poller.ends.set()
        poller.join(20)
    assert poller.errors == []
    assert poller.count > 20
    assert content["virtio0"][10 * MIB : 10 * MIB + 65536] == b"\3" * 65536


def test_with_a_monitor_of_its_own_backy_waits_for_nobody(folder: Path) -> None:
    with node(folder) as vm:
        vm.more_options = [
            "-chardev", f"socket,id=backy,path={vm.own_monitor},server=on,wait=off",
            "-mon", "chardev=backy,mode=control",
        ]  # fmt: skip
        vm.start()
        with socket.socket(socket.AF_UNIX) as held:
            held.connect(str(vm.socket))
            assert b"QMP" in held.recv(4096)
            assert set(backed_up(vm, 0, qmp=str(vm.own_monitor))) == {"virtio0", "virtio1"}


def on_the_page(vm: Node, *, hold: bool = False, **more: object) -> Path:
    """The configuration that the page shows, for this node; `more` of the source.

    `hold`: with the hooks that lock the VM.
    """
    yaml_blocks = [each.text for each in blocks(PAGE.read_text()) if each.language == "yaml"]
    shown, _, check, holds = map(yaml.safe_load, yaml_blocks)
    text = json.dumps(shown | (holds if hold else check))
    hook = vm.folder / "usr/local/lib/backy/proxmox-lock"
    hook.parent.mkdir(parents=True)
    shutil.copy(PROJECT / "contrib/proxmox/proxmox-lock", hook)
    for place in ("/run/qemu-server", "/etc/pve", "/var/lib/vz", "/mnt/backy", "/usr/local"):
        text = text.replace(place, f"{vm.folder}{place}")
    configuration = json.loads(text)
    settings = configuration["jobs"]["100-shop"]["source"] | more
    if not vm.has_uefi:
        del settings["disks"]["efidisk0"]
    configuration["jobs"]["100-shop"]["source"] = settings
    configuration["global"]["base-dir-must-be-mounted"] = False
    for folder in (Path(settings["scratch"]), Path(configuration["global"]["base-dir"])):
        folder.mkdir(parents=True)
    path = vm.folder / "backy.yaml"
    path.write_text(json.dumps(configuration))
    return path


def test_a_guest_is_backed_up_and_restored_in_place_as_the_page_says(folder: Path) -> None:
    with node(folder) as vm:
        vm.boot()
        config = on_the_page(vm)

        def backy(*words: str, code: int = 0) -> str:
            settings = environment(PVE_VMS=str(vm.etc), BACKY_HELD=str(folder / "held"))
            done = ran([*PROGRAM, "--config", str(config), *words], settings)
            assert done.code == code, done
            return done.out + done.err

        base = folder / "mnt/backy/100-shop/revisions"

        def newest() -> dict[str, Any]:
            record: dict[str, Any] = json.loads((max(base.iterdir()) / "revision.json").read_text())
            return record

        backy("backup", "100-shop")
        assert newest()["consistency"] == "filesystem"  # the hook that looks for locks is no freeze
        backy("backup", "100-shop")
        assert newest()["warnings"] == []
        assert {disk["image_format"] for disk in newest()["disks"].values()} == {"qcow2", "raw"}
        vm.write_configuration(lock="backup")
        assert "lock: backup" in backy("backup", "100-shop", code=11)
        away = vm.configuration.rename(folder / "moved.conf")  # to another node
        backy("backup", "100-shop", code=11)
        away.rename(vm.configuration)
        vm.write_configuration()
        vm.stop()

        rest = ["--overwrite", "--disk", f"virtio1=file:{vm.disks['vdb']}"]
        command = ["restore", "100-shop", "--disk", f"virtio0=qcow2:{vm.disks['vda']}", *rest]
        vm.disks["vdb"].write_bytes(bytes(48 * MIB))
        subprocess.run(["qemu-io", "-c", "write -P 9 0 4M", vm.disks["vda"]], check=True)
        backy(*command)
        backy("restore", "100-shop", "--verify", *command[2:5], *rest[1:])
        (folder / "all").mkdir()
        backy("restore", "100-shop", str(folder / "all"))
        names = {path.name for path in (folder / "all").iterdir()}
        assert names == {"virtio0.qcow2", "virtio1.img", "vm.conf"}
        assert (folder / "all/vm.conf").read_bytes() == vm.configuration.read_bytes()
        vm.start()
        backy("backup", "100-shop")
        reasons = {disk: each.get("whole") for disk, each in newest()["disks"].items()}
        assert all("is gone" in str(reason) for reason in reasons.values())


def test_pve_cannot_touch_a_vm_while_its_backup_holds_the_lock(folder: Path) -> None:
    with node(folder) as vm:
        vm.start()
        config = on_the_page(vm, hold=True, freeze=False)
        settings = json.loads(config.read_text())
        during = folder / "during"
        look = {"command": ["/bin/cp", str(vm.configuration), str(during)]}
        settings["hooks"]["after-snapshot"] = look
        config.write_text(json.dumps(settings))
        path = f"{make_qm(folder / 'bin')}:{os.environ['PATH']}"
        given = environment(PVE_VMS=str(vm.etc), BACKY_HELD=str(folder / "held"), PATH=path)

        def backup() -> int:
            return ran([*PROGRAM, "--config", str(config), "backup", "100-shop"], given).code

        assert backup() == 0
        assert during.read_text().startswith("lock: backup")
        assert "lock:" not in vm.configuration.read_text()
        vm.write_configuration(lock="backup")  # by vzdump
        assert backup() == 11
        assert "lock: backup" in vm.configuration.read_text()
        vm.write_configuration()
        settings["jobs"]["100-shop"]["source"]["disks"] = {"gone": "gone"}
        config.write_text(json.dumps(settings))
        assert backup() == 4
        assert "lock:" not in vm.configuration.read_text()


@contextmanager
def migrating(vm: Node, to: str) -> Iterator[Node]:
    """The VM on another node of the cluster, with shared storage, before it comes."""
    other = copy.copy(vm)
    other.process, address = None, f"unix:{vm.folder}/{to}"
    other.socket, other.agent = (vm.socket.with_name(f"{to}.{end}") for end in ("qmp", "qga"))
    other.more_options = ["-incoming", address]
    try:
        other.start()
        for each in (vm, other):
            capability = {"capability": "dirty-bitmaps", "state": True}  # PVE sets it
            each.ask("migrate-set-capabilities", capabilities=[capability])
        vm.ask("migrate", uri=address)
        wait_for(lambda: vm.ask("query-migrate")["status"] in {"completed", "failed"}, "it moves")
        yield other
    finally:
        other.stop()


@THROTTLE
def test_the_bitmaps_move_with_the_vm_to_another_node(vm: Node) -> None:
    vm.ask("block-dirty-bitmap-add", node=below(vm, "raw"), name=THEIRS)
    vm.ask("cont")
    before = backed_up(vm, 0)
    write(vm, "virtio0", "write -P 7 10M 64k")
    with migrating(vm, "node2") as other:
        assert vm.ask("query-migrate")["status"] == "completed"
        with pytest.raises(SourceError, match=r"moving .*postmigrate"):  # its disks are elsewhere
            backed_up(vm, 1, before)
        vm.stop()
        after = backed_up(other, 1, before)
        assert after["virtio0"][10 * MIB : 10 * MIB + 65536] == b"\7" * 65536
        assert set(bitmaps(other)["raw"]) == {THEIRS, f"backy-{name(1)}-cluster1"}


@THROTTLE
def test_a_migration_during_a_backup_fails_and_the_vm_stays_where_it_is(vm: Node) -> None:
    vm.ask("cont")
    before = backed_up(vm, 0)
    with opened(source(vm), Request(name(1), parent(0, before))) as snapshot:
        with migrating(vm, "node2"):
            assert vm.ask("query-migrate")["status"] == "failed"
            assert vm.ask("query-status")["status"] == "running"
        assert pulled(snapshot, before) == before
        assert list(snapshot.warnings()) == []


@THROTTLE
def test_a_vm_that_is_just_coming_from_another_node_is_not_backed_up(vm: Node) -> None:
    other = copy.copy(vm)
    other.process, other.socket = None, vm.socket.with_name("node2.qmp")
    other.agent = vm.agent.with_name("node2.qga")
    other.more_options = ["-incoming", "defer"]
    try:
        other.start()
        with pytest.raises(SourceError, match=r"moving .*inmigrate"):
            backed_up(other, 0)
        assert backed_up(vm, 0)
    finally:
        other.stop()
