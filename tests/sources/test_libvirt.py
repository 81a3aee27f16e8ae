"""Domains of a real libvirtd, whose QEMU runs without a guest in it: what it writes we tell it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import backy
from backy.errors import ConfigError, SourceError, TargetError
from backy.model.revision import Consistency
from backy.operations.backup import backup
from backy.operations.restore import restore_job
from backy.operations.site import Site
from backy.sources import Request
from backy.sources.libvirt import LibvirtSource
from tests.cli.runner import wait_for
from tests.conformance.image import read
from tests.lab.libvirt import MIB, Libvirt, Machine, disk_xml
from tests.lab.repositories import Made
from tests.lab.volumes import file_system
from tests.snapshots import opened, pulled
from tests.sources.libvirt_machine import (
    IDS,
    SERVER,
    checkpoint,
    leftovers,
    published,
    revision,
    same,
    scratch,
    sizes,
    source,
)

CLUSTER = 65536  # bytes; what qcow2 and its bitmaps count in
SIZE = 4 * MIB


@pytest.fixture
def machine(libvirtd: Libvirt, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A running domain with two disks of qcow2 and one raw one."""
    name = f"vm-{abs(hash(request.node.nodeid))}"
    with libvirtd.domain(name, "vda.qcow2", "vdb.qcow2", "vdc.raw") as made:
        made.start()
        yield made


def on_disk(machine: Machine, file: str) -> bytes:
    """What a domain that is off has on a disk, by qemu-img."""
    raw = machine.folder / "converted"
    kind = file.partition(".")[2]
    command: list[str | Path] = [
        "qemu-img",
        "convert",
        "-f",
        kind,
        "-O",
        "raw",
        machine.folder / file,
        raw,
    ]
    subprocess.run(command, check=True)
    return raw.read_bytes()


def test_a_full_and_deltas_are_what_the_disks_hold(machine: Machine) -> None:
    for disk in ("vda", "vdb", "vdc"):
        machine.write(disk, CLUSTER, 3 * CLUSTER, 0x11)
    parent, got = published(machine)
    for number in range(1, 4):
        machine.write("vda", (10 + number) * CLUSTER, 512, number)
        machine.write("vdc", (20 + number) * CLUSTER, 512, number)
        source(machine).remove_all_except([parent.id])
        with opened(source(machine), Request(IDS[number], parent)) as snapshot:
            assert same(snapshot.disks["vda"]) == SIZE - CLUSTER
            assert same(snapshot.disks["vdb"]) == SIZE
            assert same(snapshot.disks["vdc"]) == 0
            assert snapshot.full_read_reasons.keys() == {"vdc"}
            assert "raw" in snapshot.full_read_reasons["vdc"]
            assert snapshot.consistency is Consistency.CRASH
            got = pulled(snapshot, got)
            parent = revision(number, **sizes(snapshot))
            snapshot.keep_checkpoint()
        source(machine).remove_all_except([parent.id])
        assert machine.checkpoints() == [checkpoint(number)]
    machine.stop()
    for file in ("vda.qcow2", "vdb.qcow2", "vdc.raw"):
        assert got[file[:3]] == on_disk(machine, file)


def test_backups_of_a_running_domain_read_and_keep_what_changed(
    machine: Machine, tmp_path: Path
) -> None:
    made = Made(tmp_path)
    for disk in ("vda", "vdb", "vdc"):
        machine.write(disk, 0, SIZE, 0x11)
    first = backup(made.repository, source(machine))
    machine.write("vda", 10 * CLUSTER, 512, 0x22)
    second = backup(made.repository, source(machine))
    assert second.parent == first.id
    assert machine.checkpoints() == [f"backy-{second.id}-{SERVER}"]
    assert first.disks["vda"].read == SIZE
    assert second.disks["vda"].read < SIZE
    assert second.disks["vda"].changed == CLUSTER
    assert any("vdc" in warning for warning in second.warnings)
    saved = made.repository.folder_of(second).path / "domain.xml"
    assert machine.uuid in saved.read_text()
    machine.stop()
    for file in ("vda.qcow2", "vdb.qcow2", "vdc.raw"):
        assert made.read(second, file[:3]) == on_disk(machine, file)
        # The settings of the source do not name it, but what was saved of the domain does.
        with pytest.raises(TargetError, match=f"{file} is the source of disk"):
            restore_job(Site(made.base), "vm1", {file[:3]: str(machine.folder / file)})


def test_what_is_written_later_is_not_in_the_snapshot(machine: Machine) -> None:
    machine.write("vda", 0, CLUSTER, 0x11)
    machine.write("vdc", 0, CLUSTER, 0x11)
    with opened(source(machine), Request(IDS[0], None)) as snapshot:
        machine.write("vda", 0, 2 * CLUSTER, 0x22)
        machine.write("vdc", 0, 2 * CLUSTER, 0x22)
        for disk in ("vda", "vdc"):
            assert read(snapshot.disks[disk], 0, 2 * CLUSTER) == b"\x11" * CLUSTER + bytes(CLUSTER)


def test_what_is_written_before_it_is_opened_is_not_in_the_snapshot(machine: Machine) -> None:
    """A guest that hooks have frozen goes on when the snapshot was taken."""
    parent, before = published(machine)
    with source(machine).snapshot(Request(IDS[1], parent)) as taken:
        for disk in ("vda", "vdc"):
            machine.write(disk, 0, SIZE, 0x22)
        with taken.open() as snapshot:
            assert same(snapshot.disks["vda"]) == SIZE
            assert read(snapshot.disks["vdc"], 0, SIZE) == before["vdc"]


def test_nothing_is_left_of_a_snapshot_that_was_not_kept(machine: Machine) -> None:
    parent, _ = published(machine)
    with opened(source(machine), Request(IDS[1], parent)):
        assert machine.has_job()
        assert checkpoint(1) in machine.checkpoints()
    assert not machine.has_job()
    assert machine.checkpoints() == [checkpoint(0)]
    assert leftovers(machine) == []


def test_changes_before_a_snapshot_that_failed_are_in_the_next(machine: Machine) -> None:
    parent, _ = published(machine)
    machine.write("vda", 0, 512, 0x11)
    with pytest.raises(KeyboardInterrupt), opened(source(machine), Request(IDS[1], parent)):
        raise KeyboardInterrupt
    machine.write("vda", 5 * CLUSTER, 512, 0x11)
    with opened(source(machine), Request(IDS[2], parent)) as snapshot:
        assert same(snapshot.disks["vda"]) == SIZE - 2 * CLUSTER
        assert read(snapshot.disks["vda"], 0, 512) == b"\x11" * 512


def test_checkpoints_of_others_are_never_touched(machine: Machine) -> None:
    others = ["mine", checkpoint(3, "another"), f"backy-{SERVER}"]
    for name in others:
        machine.virsh("checkpoint-create-as", "--name", name, "--diskspec", "vda")
    published(machine)
    source(machine).remove_all_except([])
    assert sorted(machine.checkpoints()) == sorted(others)


def test_a_new_disk_is_read_whole_and_the_others_are_not(machine: Machine) -> None:
    parent, _ = published(machine)
    xml = disk_xml(machine.make("vdd.qcow2"))
    machine.virsh("attach-device", "/dev/stdin", "--live", stdin=xml)
    with opened(source(machine), Request(IDS[1], parent)) as snapshot:
        assert same(snapshot.disks["vda"]) == SIZE
        assert same(snapshot.disks["vdd"]) == 0
        assert set(snapshot.full_read_reasons) == {"vdc"}
        snapshot.keep_checkpoint()
        parent = revision(1, **sizes(snapshot))
    with opened(source(machine), Request(IDS[2], parent)) as snapshot:
        assert same(snapshot.disks["vdd"]) == SIZE


def test_a_disk_that_was_removed_is_missing_and_the_others_go_on(machine: Machine) -> None:
    parent, _ = published(machine)
    machine.stop()
    machine.define(machine.folder / "vda.qcow2")
    machine.start()
    with opened(source(machine), Request(IDS[1], parent)) as snapshot:
        assert sizes(snapshot) == {"vda": SIZE}
        assert same(snapshot.disks["vda"]) == SIZE


def lose_a_bitmap(machine: Machine) -> None:
    """As somebody with qemu-img does while the domain is off."""
    machine.stop()
    image = machine.folder / "vda.qcow2"
    subprocess.run(["qemu-img", "bitmap", "--remove", image, checkpoint(0)], check=True)
    machine.start()


def replace_an_image(machine: Machine) -> None:
    """As a restore does."""
    machine.stop()
    machine.make("vda.qcow2")
    machine.start()


def lose_a_checkpoint(machine: Machine) -> None:
    machine.virsh("checkpoint-delete", checkpoint(0))


def define_again(machine: Machine) -> None:
    """As on the server that a domain was migrated to: libvirt knows no checkpoints there."""
    machine.stop()
    machine.virsh("undefine", "--checkpoints-metadata")
    machine.define(*sorted(machine.folder.glob("vd?.*")))
    machine.start()


def crash(machine: Machine) -> None:
    """QEMU has no time to save its bitmaps."""
    pid = next(machine.libvirt.folder.glob(f"run/qemu/{machine.name}.pid")).read_text()
    inside = [p for p in Path("/proc").glob("[0-9]*") if is_qemu(p, machine.name)]
    assert len(inside) == 1, pid
    os.kill(int(inside[0].name), signal.SIGKILL)
    wait_for(lambda: machine.virsh("domstate").strip() == "shut off", "the domain is off")
    machine.start()


def is_qemu(process: Path, name: str) -> bool:
    with suppress(OSError):
        return f"guest={name},".encode() in (process / "cmdline").read_bytes()
    return False


@pytest.mark.parametrize(
    ("lose", "lost"),
    [
        pytest.param(lose_a_bitmap, {"vda"}, id="bitmap-of-one-disk"),
        pytest.param(replace_an_image, {"vda"}, id="image-of-one-disk"),
        pytest.param(lose_a_checkpoint, {"vda", "vdb"}, id="checkpoint"),
        pytest.param(define_again, {"vda", "vdb"}, id="migrated"),
        pytest.param(crash, {"vda", "vdb"}, id="qemu-crashed"),
    ],
)
def test_a_disk_whose_checkpoint_is_lost_is_read_whole(
    machine: Machine, lose: Callable[[Machine], None], lost: set[str]
) -> None:
    machine.write("vda", 0, SIZE, 0x11)
    parent, got = published(machine)
    lose(machine)
    source(machine).remove_all_except([parent.id])
    machine.write("vda", 0, CLUSTER, 0x22)
    with opened(source(machine), Request(IDS[1], parent)) as snapshot:
        for disk in ("vda", "vdb"):
            assert same(snapshot.disks[disk]) == (0 if disk in lost else SIZE)
        assert set(snapshot.full_read_reasons) == lost | {"vdc"}
        assert checkpoint(0) in snapshot.full_read_reasons["vda"]
        got = pulled(snapshot, got)
        assert got["vda"][:CLUSTER] == b"\x22" * CLUSTER
        parent = revision(1, **sizes(snapshot))
        snapshot.keep_checkpoint()
    source(machine).remove_all_except([parent.id])
    assert machine.checkpoints() == [checkpoint(1)]
    with opened(source(machine), Request(IDS[2], parent)) as snapshot:
        assert same(snapshot.disks["vda"]) == SIZE
    machine.stop()
    assert got["vda"] == on_disk(machine, "vda.qcow2")


def test_a_disk_that_was_resized_is_read_whole(machine: Machine) -> None:
    parent, _ = published(machine)
    machine.virsh("blockresize", "vda", f"{2 * SIZE}B")
    with opened(source(machine), Request(IDS[1], parent)) as snapshot:
        assert snapshot.disks["vda"].size == 2 * SIZE
        assert same(snapshot.disks["vda"]) == 0
        assert snapshot.full_read_reasons["vda"] == "it was resized"
        assert same(snapshot.disks["vdb"]) == SIZE


def test_an_image_that_can_have_no_checkpoint_is_backed_up_with_a_warning(
    libvirtd: Libvirt,
) -> None:
    """Version 2 of qcow2 has no place for bitmaps."""
    with libvirtd.domain("aged", "vda.qcow2") as aged:
        amend = ["qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10"]
        subprocess.run([*amend, aged.folder / "vda.qcow2"], check=True)
        aged.start()
        for number in range(2):
            parent = revision(0, vda=SIZE) if number else None
            with opened(source(aged), Request(IDS[number], parent)) as snapshot:
                assert same(snapshot.disks["vda"]) == 0
                [warning] = snapshot.warnings()
                assert "the next backup will read everything" in warning
                assert "bitmap" in warning
                snapshot.keep_checkpoint()
        assert aged.checkpoints() == []


def test_the_disks_of_a_domain_that_is_off_are_read_directly(machine: Machine) -> None:
    machine.write("vda", 0, CLUSTER, 0x11)
    machine.write("vdc", 0, CLUSTER, 0x33)
    parent, before = published(machine)
    machine.stop()
    source(machine).remove_all_except([parent.id])
    with opened(source(machine), Request(IDS[1], parent)) as snapshot:
        assert pulled(snapshot) == before
        assert set(snapshot.full_read_reasons.values()) == {"the domain is off"}
        assert snapshot.consistency is Consistency.CRASH
        assert list(snapshot.warnings()) == []
        assert "domain.xml" in snapshot.files
        with pytest.raises(subprocess.CalledProcessError) as refused:
            machine.start()
        assert "lock" in refused.value.stderr
        snapshot.keep_checkpoint()
    source(machine).remove_all_except([IDS[1]])
    machine.start()
    source(machine).remove_all_except([IDS[1]])
    assert machine.checkpoints() == []


def test_an_image_on_top_of_another_is_read_with_it(machine: Machine) -> None:
    machine.write("vda", 0, CLUSTER, 0x11)
    machine.virsh(
        "snapshot-create-as", "--disk-only", "--no-metadata", "--diskspec", "vda,snapshot=external"
    )
    machine.write("vda", 2 * CLUSTER, CLUSTER, 0x22)
    with opened(source(machine), Request(IDS[0], None)) as snapshot:
        running = pulled(snapshot)
    assert running["vda"][: 3 * CLUSTER] == b"\x11" * CLUSTER + bytes(CLUSTER) + b"\x22" * CLUSTER
    machine.stop()
    with opened(source(machine), Request(IDS[1], None)) as snapshot:
        assert pulled(snapshot) == running


def test_a_paused_domain_is_backed_up_without_a_freeze(machine: Machine) -> None:
    parent, _ = published(machine)
    machine.virsh("suspend")
    with opened(source(machine, freeze=True), Request(IDS[1], parent)) as snapshot:
        assert same(snapshot.disks["vda"]) == SIZE
        assert snapshot.consistency is Consistency.CRASH
        assert list(snapshot.warnings()) == []


def test_without_an_agent_it_is_said_that_nothing_was_frozen(machine: Machine) -> None:
    with opened(source(machine, freeze=True), Request(IDS[0], None)) as snapshot:
        assert snapshot.consistency is Consistency.CRASH
        [warning] = snapshot.warnings()
        assert "not frozen" in warning
        assert "agent is not configured" in warning


def test_a_guest_that_hooks_have_frozen_is_left_to_them(machine: Machine) -> None:
    request = Request(IDS[0], None, is_frozen=True)
    with opened(source(machine, freeze=True), request) as snapshot:
        assert list(snapshot.warnings()) == []


HOLD = """
import sys, time
from backy.sources import Request
from backy.sources.libvirt import LibvirtSource
from backy.system.signals import cancellable
domain, uri, server, scratch, revision = sys.argv[1:]
source = LibvirtSource(domain=domain, uri=uri, server=server, scratch=scratch, freeze=False)
with cancellable(), source.snapshot(Request(revision, None)) as taken, taken.open():
    print("taken", flush=True)
    time.sleep(600)
"""


@contextmanager
def held(machine: Machine, number: int, server: str = SERVER) -> Iterator[subprocess.Popen[str]]:
    """Another process that has taken a snapshot, and is at work with it."""
    where = [machine.name, machine.libvirt.uri, server, scratch(machine), IDS[number]]
    command = [sys.executable, "-c", HOLD, *where]
    environment = os.environ | {"PYTHONPATH": str(Path(backy.__file__).parents[1])}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == "taken\n"
            yield child
        finally:
            child.kill()


def test_what_a_killed_backup_left_is_found_and_removed(machine: Machine) -> None:
    parent, _ = published(machine)
    with held(machine, 1) as child:
        child.kill()
    assert machine.has_job()
    assert leftovers(machine)
    source(machine).remove_all_except([parent.id])
    assert not machine.has_job()
    assert machine.checkpoints() == [checkpoint(0)]
    assert leftovers(machine) == []
    with opened(source(machine), Request(IDS[2], parent)) as snapshot:
        assert same(snapshot.disks["vda"]) == SIZE


def test_a_backup_that_is_told_to_stop_leaves_nothing(machine: Machine) -> None:
    with held(machine, 0) as child:
        child.terminate()
        child.wait(60)
    assert not machine.has_job()
    assert machine.checkpoints() == []
    assert leftovers(machine) == []


def test_a_job_of_somebody_else_is_not_ended(machine: Machine) -> None:
    with held(machine, 0, "another"):
        source(machine).remove_all_except([])
        assert machine.has_job()
        assert machine.checkpoints() == [checkpoint(0, "another")]


def test_a_domain_that_is_stopped_meanwhile_fails_the_backup(machine: Machine) -> None:
    machine.write("vda", 0, SIZE, 0x11)
    with opened(source(machine), Request(IDS[0], None)) as snapshot:
        machine.stop()
        with pytest.raises(SourceError):
            pulled(snapshot)
    assert leftovers(machine) == []
    machine.start()
    source(machine).remove_all_except([])
    assert machine.checkpoints() == []


def test_a_guest_that_its_qemu_could_not_survive_is_not_backed_up(libvirtd: Libvirt) -> None:
    """Version 7.2 ends with an assertion when the first connection to such a disk is closed."""
    with libvirtd.domain("threaded", "vda.qcow2") as threaded:
        xml = threaded.virsh("dumpxml").replace("<os>", "<iothreads>1</iothreads><os>")
        xml = xml.replace("discard='unmap'", "discard='unmap' iothread='1'")
        libvirtd.virsh("define", "/dev/stdin", stdin=xml)
        threaded.start()
        one = source(threaded)
        if "QEMU 7.2" in libvirtd.virsh("version"):
            with pytest.raises(SourceError, match="iothread"), opened(one, Request(IDS[0], None)):
                pytest.fail("a snapshot was taken")
        else:
            with opened(one, Request(IDS[0], None)) as snapshot:
                pulled(snapshot)
        assert threaded.virsh("domstate").strip() == "running"
        assert leftovers(threaded) == []


def test_a_scratch_folder_without_room_is_refused(machine: Machine) -> None:
    """Else the guest's writes would fail when it is full."""
    with file_system("tmpfs", MIB) as small:
        machine.virsh("attach-device", "/dev/stdin", "--live", stdin=large(machine))
        with (
            pytest.raises(SourceError, match="are free") as caught,
            opened(source(machine, scratch=str(small)), Request(IDS[0], None)),
        ):
            pytest.fail("a snapshot was taken")
        assert "scratch" in caught.value.hint
        assert not list(small.iterdir())


def large(machine: Machine) -> str:
    """A disk that takes 16 MiB."""
    path = machine.folder / "vdd.raw"
    path.write_bytes(os.urandom(16 * MIB))
    return disk_xml(path)


TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"


@pytest.fixture
def firm(libvirtd: Libvirt) -> Iterator[Machine]:
    """A domain that is off, with firmware that has variables, and a TPM."""
    with libvirtd.domain("firm", "vda.qcow2") as made:
        xml = made.virsh("dumpxml")
        loader = made.folder / "code.fd"
        loader.touch()
        parts = f"<loader readonly='yes' type='pflash'>{loader}</loader>"
        parts += f"<nvram>{made.folder}/vars.fd</nvram></os>"
        xml = xml.replace("</os>", parts).replace("</devices>", f"{TPM}</devices>")
        libvirtd.virsh("define", "/dev/stdin", stdin=xml)
        (made.folder / "swtpm" / made.uuid / "tpm2").mkdir(parents=True)
        yield made


def state(machine: Machine) -> Path:
    return machine.folder / "swtpm" / machine.uuid / "tpm2" / "tpm2-00.permall"


def test_the_files_of_firmware_and_tpm_are_saved_and_define_it_again(firm: Machine) -> None:
    variables, secret = os.urandom(540_672), os.urandom(9000)
    (firm.folder / "vars.fd").write_bytes(variables)
    state(firm).write_bytes(secret)
    with opened(source(firm), Request(IDS[0], None)) as snapshot:
        saved = dict(snapshot.files)
        assert list(snapshot.warnings()) == []
    uuid = firm.uuid
    assert saved["nvram.fd"] == variables
    assert saved["tpm.permall"] == secret
    firm.virsh("undefine", "--keep-nvram")
    firm.libvirt.virsh("define", "/dev/stdin", stdin=saved["domain.xml"].decode())
    assert firm.uuid == uuid
    assert f"{firm.folder}/vars.fd" in firm.virsh("dumpxml")


def test_secrets_are_not_saved(firm: Machine) -> None:
    graphics = "<graphics type='vnc' passwd='hushhush'/>"
    xml = firm.virsh("dumpxml").replace("</devices>", f"{graphics}</devices>")
    firm.libvirt.virsh("define", "/dev/stdin", stdin=xml)
    with opened(source(firm), Request(IDS[0], None)) as snapshot:
        assert b"type='vnc'" in snapshot.files["domain.xml"]
        assert b"hushhush" not in snapshot.files["domain.xml"]


def test_a_large_nvram_is_compressed(firm: Machine, tmp_path: Path) -> None:
    variables = os.urandom(200_000) + b"\xff" * (64 * MIB - 200_000)
    (firm.folder / "vars.fd").write_bytes(variables)
    with opened(source(firm), Request(IDS[0], None)) as snapshot:
        (tmp_path / "nvram.zst").write_bytes(snapshot.files["nvram.fd.zst"])
        assert len(snapshot.files["nvram.fd.zst"]) < MIB
    subprocess.run(["zstd", "-q", "-d", tmp_path / "nvram.zst"], check=True)
    assert (tmp_path / "nvram").read_bytes() == variables


@pytest.mark.parametrize("problem", ["missing", "link", "huge", "random"])
def test_a_file_that_cannot_be_saved_is_told_and_the_disks_are(firm: Machine, problem: str) -> None:
    path = firm.folder / "vars.fd"
    state(firm).touch()
    match problem:
        case "link":
            path.symlink_to("/etc/passwd")
        case "huge":
            path.touch()
            os.truncate(path, 1 << 40)
        case "random":
            path.write_bytes(os.urandom(2 * MIB))
        case _:
            pass
    with opened(source(firm), Request(IDS[0], None)) as snapshot:
        assert sizes(snapshot) == {"vda": SIZE}
        assert set(snapshot.files) == {"domain.xml", "tpm.permall"}
        [warning] = snapshot.warnings()
        assert "was not saved" in warning


def test_disks_are_included_and_excluded_by_name(machine: Machine) -> None:
    with opened(source(machine, disks=["vdb"]), Request(IDS[0], None)) as snapshot:
        assert set(snapshot.disks) == {"vdb"}
    with opened(source(machine, exclude=["vdb"]), Request(IDS[1], None)) as snapshot:
        assert set(snapshot.disks) == {"vda", "vdc"}


def test_only_raw_disks_need_no_checkpoint(machine: Machine) -> None:
    with opened(source(machine, disks=["vdc"]), Request(IDS[0], None)) as snapshot:
        assert set(snapshot.disks) == {"vdc"}
        snapshot.keep_checkpoint()
    assert machine.checkpoints() == []


def test_what_a_guest_cannot_change_is_no_disk_to_back_up(libvirtd: Libvirt) -> None:
    with libvirtd.domain("few", "vda.qcow2") as few:
        cdrom = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"
        fixed = disk_xml(few.make("vdb.qcow2"), "<readonly/>")
        few.define(few.folder / "vda.qcow2", more=cdrom + fixed)
        few.start()
        with opened(source(few), Request(IDS[0], None)) as snapshot:
            assert set(snapshot.disks) == {"vda"}


@pytest.mark.parametrize(
    ("settings", "more", "says"),
    [
        pytest.param({"disks": ["vdx", "vda"]}, "", "no disk vdx", id="missing"),
        pytest.param({"exclude": ["vda"]}, "", "has no disk to back up", id="none"),
        pytest.param({}, "shareable", "others may write to it", id="shared"),
        pytest.param({}, "network", "no local file or device", id="network"),
    ],
)
def test_a_disk_that_cannot_be_backed_up_is_named(
    libvirtd: Libvirt, settings: dict[str, object], more: str, says: str
) -> None:
    with libvirtd.domain("odd", "vda.qcow2") as odd:
        network = (
            "<disk type='network' device='disk'><driver type='raw'/><source protocol='nbd'>"
            "<host name='localhost'/></source><target dev='vdn'/></disk>"
        )
        pieces = {
            "shareable": disk_xml(odd.make("vdb.raw"), "<shareable/>"), "network": network, "": "",
        }  # fmt: skip
        odd.define(odd.folder / "vda.qcow2", more=pieces[more])
        with (
            pytest.raises(SourceError, match=says) as caught,
            opened(source(odd, **settings), Request(IDS[0], None)),
        ):
            pytest.fail("a snapshot was taken")
        assert caught.value.hint


def test_a_domain_that_is_not_there_is_told_with_the_next_step(machine: Machine) -> None:
    there = source(machine, domain="moved-away")
    with pytest.raises(SourceError, match="moved-away") as caught:
        there.remove_all_except([])
    assert "list --all" in caught.value.hint
    with pytest.raises(SourceError, match="moved-away"), opened(there, Request(IDS[0], None)):
        pytest.fail("a snapshot was taken")


def test_the_number_of_a_running_domain_is_not_its_name(machine: Machine) -> None:
    number = machine.virsh("domid").strip()
    with pytest.raises(SourceError, match=f"no domain called {number}"):
        source(machine, domain=number).remove_all_except([])
    source(machine, domain=machine.uuid).remove_all_except([])


def test_a_libvirtd_that_is_not_there_is_told(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file") as caught:
        source(machine, uri=f"qemu+unix:///system?socket={tmp_path}/none").remove_all_except([])
    assert "libvirtd" in caught.value.hint


def test_a_libvirtd_that_hangs_fails_the_job(machine: Machine) -> None:
    with pytest.raises(SourceError, match="1 s"), frozen_libvirtd(machine.libvirt):
        source(machine, timeout=1).remove_all_except([])


@contextmanager
def frozen_libvirtd(libvirt: Libvirt) -> Iterator[None]:
    """It takes connections and answers nothing."""
    [pid] = [p.name for p in Path("/proc").glob("[0-9]*") if is_libvirtd(p, libvirt)]
    os.kill(int(pid), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(int(pid), signal.SIGCONT)


def is_libvirtd(process: Path, libvirt: Libvirt) -> bool:
    with suppress(OSError):
        words = (process / "cmdline").read_bytes().split(b"\0")
        mounts = (process / "mountinfo").read_text()
        return words[0].endswith(b"libvirtd") and f"{libvirt.folder}/run" in mounts
    return False


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"domain": ""},
        {"domain": "--all"},
        {"domain": "vm1", "uri": "qemu+ssh://host/system"},
        {"domain": "vm1", "uri": "qemu://host/system"},
        {"domain": "vm1", "uri": "xen:///system"},
        {"domain": "vm1", "disks": ["../vda"]},
        {"domain": "vm1", "freeze-timeout": 0},
        {"domain": "vm1", "pool": "rbd"},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LibvirtSource(**settings)
