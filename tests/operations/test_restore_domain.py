"""The disks of a domain of a real libvirtd come back in place, or as a new domain."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from backy.clients.virsh import attribute
from backy.errors import TargetError
from backy.model.revision import Revision
from backy.operations.backup import backup
from backy.operations.restore_domain import _word_in_place
from tests.cli.runner import Backy, Refusal
from tests.lab.ceph import Cluster
from tests.lab.libvirt import MIB, Libvirt, Machine
from tests.lab.repositories import Made
from tests.sources.libvirt_machine import source

CLUSTER = 65536  # bytes
FILES = ("vda.qcow2", "vdb.raw")
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = FIRMWARE.with_name("OVMF_VARS_4M.fd")
MORE = """
<disk type='file' device='cdrom'><source file='{0}/cd.iso'/><target dev='sda' bus='sata'/></disk>
<interface type='user'><mac address='52:54:00:11:22:33'/></interface>
<serial type='file'><source path='{0}/serial.log'/></serial>
"""


@dataclass(frozen=True, slots=True)
class Vm:
    """A domain that is off, called `machine.name`, and its job vm1."""

    machine: Machine
    made: Made
    backy: Backy

    @property
    def libvirt(self) -> Libvirt:
        return self.machine.libvirt

    def word(self, name: str = "", place: str = "") -> str:
        """A target; the machine itself, unless another `name` is given."""
        return f"libvirt:{name or self.machine.name}?{place}&uri={self.libvirt.uri}".replace(
            "?&", "?"
        )

    def back_up(self) -> Revision:
        return backup(self.made.repository, source(self.machine))

    def refuses(self, *words: str) -> Refusal:
        return self.backy.refuses(10, "restore", "vm1", *words)

    def has(self, revision: Revision, *files: Path) -> None:
        """Fail unless these images have its disks, one after the other."""
        for path, disk in zip(files, revision.disks, strict=True):
            truth = self.machine.folder / f"truth-{disk}"
            truth.write_bytes(self.made.read(revision, disk))
            kind = {".qcow2": "qcow2"}.get(path.suffix, "raw")
            command: list[str | Path] = [
                "qemu-img",
                "compare",
                "-f",
                kind,
                "-F",
                "raw",
                path,
                truth,
            ]
            subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def vm(libvirtd: Libvirt, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Vm]:
    made = Made(tmp_path)
    with libvirtd.domain(f"vm-{abs(hash(request.node.nodeid))}", *FILES) as machine:
        (machine.folder / "cd.iso").write_bytes(bytes(CLUSTER))
        images = [machine.folder / file for file in FILES]
        machine.define(*images, more=MORE.format(machine.folder))
        fill(machine, 0x11)
        yield Vm(machine, made, Backy(made.base))


def fill(machine: Machine, byte: int) -> None:
    """Write to both disks of a domain that is off."""
    for file in FILES:
        path = machine.folder / file
        words = f"write -P {byte} {byte * CLUSTER // 0x11} {3 * CLUSTER}"
        command: list[str | Path] = [
            "qemu-io",
            "-f",
            path.suffix.removeprefix("."),
            "-c",
            words,
            path,
        ]
        subprocess.run(command, check=True, capture_output=True)


def snapshot(image: Path, name: str) -> bytes:
    """What an internal snapshot of a qcow2 has."""
    raw = image.with_name("snapshot")
    options = ["-l", name, "-f", "qcow2", "-O", "raw"]
    subprocess.run(["qemu-img", "convert", *options, image, raw], check=True)
    return raw.read_bytes()


@pytest.fixture
def job(tmp_path: Path) -> Backy:
    """One that has a backup of a disk, and no domain."""
    made = Made(tmp_path)
    made.backup(vda=b"x")
    return Backy(made.base)


@pytest.fixture
def vm2(libvirtd: Libvirt) -> Iterator[str]:
    """The name of a domain that a test may define."""
    yield "vm2"
    with suppress(subprocess.CalledProcessError):
        libvirtd.virsh("destroy", "vm2")
    with suppress(subprocess.CalledProcessError):
        libvirtd.virsh("undefine", "vm2", "--nvram")


def test_a_domain_that_is_off_gets_its_disks_back_in_place(vm: Vm) -> None:
    images = [vm.machine.folder / file for file in FILES]
    vm.machine.start()
    first = vm.back_up()
    vm.machine.write("vda", 2 * CLUSTER, 9 * CLUSTER, 0x22)
    vm.machine.write("vdb", 2 * CLUSTER, 9 * CLUSTER, 0x22)
    vm.back_up()
    said = vm.refuses(vm.word(), "--over-source")
    assert "runs, or is paused" in said.message
    assert f"virsh shutdown {vm.machine.name}" in said.hint
    vm.machine.virsh("managedsave")
    said = vm.refuses(vm.word(), "--over-source")
    assert "saved state" in said.message
    vm.libvirt.virsh(*re.findall(r"virsh (\S+) (\S+)", said.hint)[0])

    said = vm.refuses(vm.word(), "--overwrite")
    assert f"{images[0]} is the source of disk" in said.message
    assert "--over-source" in said.hint
    told = vm.backy.ok("restore", "vm1", vm.word(), "--over-source", "-r", first.id)
    assert f"vda restored to qcow2:{images[0]}" in told.out
    assert "576.0 KiB differed" in told.out
    vm.has(first, *images)
    assert f"  {vm.word()} vda=qcow2:" in vm.backy.quiet("history", "vm1").out

    # What libvirt tells of changes is still true, and the next delta has what the restore wrote.
    vm.machine.start()
    third = vm.back_up()
    vm.machine.stop()
    assert not third.disks["vda"].whole
    vm.has(third, *images)
    vm.has(first, *images)


def test_a_new_domain_gets_the_disks_under_its_name_and_runs(vm: Vm, vm2: str) -> None:
    revision = vm.back_up()
    folder = vm.machine.folder / "new"
    folder.mkdir(0o755)
    word = vm.word(vm2, f"folder={folder}")
    vm.backy.quiet("restore", "vm1", word, "--dry-run", "--overwrite")
    assert not list(folder.iterdir())
    told = vm.backy.ok("restore", "vm1", word)
    assert "domain vm2: disk sda: empty" in told.err
    assert "domain vm2: serial file: a pty now" in told.err
    assert "domain vm2 is defined, and off" in told.err
    vm.has(revision, folder / "vm2-vda.qcow2", folder / "vm2-vdb.img")
    assert word in vm.backy.quiet("history", "vm1").out

    domain = fromstring(vm.libvirt.virsh("dumpxml", "--inactive", vm2))
    assert domain.findtext("uuid") not in {None, vm.machine.uuid}
    assert attribute(domain, "devices/interface/mac", "address") not in {"", "52:54:00:11:22:33"}
    sources = [attribute(disk, "source", "file") for disk in domain.iterfind("devices/disk")]
    assert sources == [f"{folder}/vm2-vda.qcow2", f"{folder}/vm2-vdb.img", ""]
    vm.libvirt.virsh("start", vm2)

    said = vm.refuses(word, "--overwrite")
    assert "there is a domain vm2 already" in said.message


def test_a_new_domain_boots_with_the_variables_of_its_firmware(
    vm: Vm, vm2: str, tmp_path: Path
) -> None:
    revision = vm.back_up()
    saved = vm.made.repository.folder_of(revision).path
    xml = (saved / "domain.xml").read_text()
    loader = f"<loader readonly='yes' type='pflash'>{FIRMWARE}</loader><nvram>/old</nvram>"
    (saved / "domain.xml").write_text(xml.replace("</os>", f"{loader}</os>"))
    (saved / "nvram.fd").write_bytes(VARIABLES.read_bytes())
    pool = f"<pool type='dir'><name>p</name><target><path>{tmp_path}</path></target></pool>"
    vm.libvirt.virsh("pool-define", "/dev/stdin", stdin=pool)
    try:
        told = vm.backy.ok("restore", "vm1", vm.word(vm2, "pool=p"), "--disk", "vda")
        nvram = tmp_path / "vm2-nvram.fd"
        assert f"nvram.fd restored to {nvram}" in told.err
        assert "disk vdb: left out" in told.err
        assert nvram.read_bytes() == VARIABLES.read_bytes()
        assert f">{nvram}</nvram>" in vm.libvirt.virsh("dumpxml", vm2)
        vm.libvirt.virsh("undefine", vm2, "--keep-nvram")
        (tmp_path / "vm2-vda.qcow2").unlink()
        assert "--overwrite" in vm.refuses(vm.word(vm2, "pool=p"), "--disk", "vda").hint
    finally:
        vm.libvirt.virsh("pool-undefine", "p")


def test_what_cannot_become_a_domain_is_refused_before_anything_is_written(vm: Vm) -> None:
    revision = vm.back_up()
    iscsi = (
        "<pool type='iscsi'><name>i</name><source><host name='h'/><device path='iqn.x:y'/></source>"
        "<target><path>/dev/disk/by-path</path></target></pool>"
    )
    vm.libvirt.virsh("pool-define", "/dev/stdin", stdin=iscsi)
    try:
        said = vm.refuses(vm.word("vm2", "pool=i"))
        assert "pool i is of type iscsi, no folder" in said.message
        assert "--disk" in said.hint
    finally:
        vm.libvirt.virsh("pool-undefine", "i")
    assert "Storage pool not found" in vm.refuses(vm.word("vm2", "pool=none")).message
    assert "failed to get domain 'vm3'" in vm.refuses(vm.word("vm3")).message
    saved = vm.made.repository.folder_of(revision).path / "domain.xml"
    place = f"folder={vm.machine.folder}"
    for text, why in {"<!DOCTYPE d><domain/>": "DOCTYPE", "<domain/>": "not of a virtual"}.items():
        saved.write_text(text)
        assert why in vm.refuses(vm.word("vm2", place)).message
    saved.unlink()
    said = vm.refuses(vm.word("vm2", place))
    assert "reading domain.xml" in said.message
    assert "--disk" in said.hint
    assert not list(vm.machine.folder.glob("vm2*"))
    assert vm.backy.quiet("history", "vm1", "--json").last()["restores"] == []


def test_the_disks_of_the_backup_and_of_the_domain_are_compared(vm: Vm) -> None:
    revision = vm.back_up()
    image = vm.machine.make("vdc.raw")
    vda, vdb = (vm.machine.folder / file for file in FILES)
    vm.machine.define(vda, image, more=MORE.format(vm.machine.folder))
    said = vm.refuses(vm.word(), "--over-source")
    assert "has no disk vdb" in said.message
    assert "It has: vda, vdc." in said.hint
    told = vm.backy.ok("restore", "vm1", vm.word(), "--over-source", "--disk", "vda")
    assert "disk vdc stays as it is" in told.err
    assert "sda" not in told.err
    vm.machine.define(vda, vdb, image)
    fill(vm.machine, 0x33)
    subprocess.run(["qemu-img", "snapshot", "-c", "mine", vda], check=True)
    before = snapshot(vda, "mine")
    vm.backy.ok("restore", "vm1", vm.word(), "--over-source")
    vm.has(revision, vda, vdb)
    assert snapshot(vda, "mine") == before
    assert not any(image.read_bytes())


@pytest.mark.parametrize(
    ("disk", "word"),
    [
        ("<disk><source file='/a b'/></disk>", "file:/a b"),
        ("<disk><driver type='qcow2'/><source file='/a'/></disk>", "qcow2:/a"),
        ("<disk><driver type='raw'/><source dev='/dev/vg/a'/></disk>", "device:/dev/vg/a"),
        ("<disk><source protocol='rbd' name='p/n/a'/></disk>", "rbd:p/n/a"),
        (
            "<disk><source protocol='rbd' name='p/a'><auth username='u'/></source></disk>",
            "rbd:p/a?user=u",
        ),
        (
            "<disk><source protocol='rbd' name='p/a'><config file='/c'/></source></disk>",
            "rbd:p/a?conf=/c",
        ),
        ("<disk><driver type='qcow2'/><source dev='/dev/vg/a'/></disk>", None),
        ("<disk><driver type='vdi'/><source file='/a'/></disk>", None),
        ("<disk><driver type='qcow2'/><source protocol='rbd' name='p/a'/></disk>", None),
        ("<disk><source pool='p' volume='a'/></disk>", None),
        ("<disk/>", None),
    ],
)
def test_a_disk_is_written_in_its_own_format_where_the_domain_has_it(
    disk: str, word: str | None
) -> None:
    if word:
        assert _word_in_place("vda", fromstring(disk)) == word
    else:
        with pytest.raises(TargetError, match="in a storage that is no target") as caught:
            _word_in_place("vda", fromstring(disk))
        assert "--disk" in caught.value.hint


@pytest.mark.parametrize(
    "word",
    [
        "libvirt:",
        "libvirt:-x",
        "libvirt:../x?folder=/a",
        "libvirt:a/b?folder=/a",
        "libvirt:a?folder=",
        "libvirt:a?folder=/a&pool=b",
        "libvirt:a?size=1",
        "libvirt:a?uri=qemu+ssh://host/system",
        "libvirt:a?uri=qemu://host/system",
        "libvirt:a?folder=/a&uri=test:///default",
    ],
)
def test_what_names_no_domain_of_this_machine_is_refused(job: Backy, word: str) -> None:
    said = job.refuses(2, "restore", "vm1", word)
    assert "libvirt:DOMAIN" in said.hint


def test_a_domain_is_no_target_for_one_disk_of_several_targets(job: Backy) -> None:
    said = job.refuses(2, "restore", "vm1", "--disk", "vda=libvirt:vm1")
    assert "backy restore JOB libvirt:vm1" in said.hint


def test_a_disk_in_ceph_is_written_there(libvirtd: Libvirt, ceph: Cluster, tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.backup(vda=b"from the backup".ljust(MIB, b"."))
    image = ceph.create("rbd/of-a-domain", MIB)
    disk = f"""
        <disk type='network' device='disk'><source protocol='rbd' name='{image}'>
        <host name='127.0.0.1'/><config file='{ceph.conf}'/></source>
        <target dev='vda' bus='virtio'/></disk>
    """
    with libvirtd.domain("vm-in-ceph") as machine:
        machine.define(more=disk)
        word = f"libvirt:vm-in-ceph?uri={libvirtd.uri}"
        said = Backy(made.base).ok("restore", "vm1", word).out
    assert f"vda restored to rbd:{image}?conf={ceph.conf}" in said
    assert ceph.export(image).startswith(b"from the backup....")
