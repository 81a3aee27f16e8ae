"""A new domain is made of what a repository kept, and reaches no further into the host."""

import re
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring, tostring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.clients.libvirt_xml import new_domain
from backy.errors import SourceError
from tests.lab.libvirt import Libvirt

DISKS = {"vda": (Path("/new/vm2-vda.qcow2"), "qcow2"), "sdb": (Path("/new/vm2-sdb.img"), "raw")}
OWN = {"/new/vm2-vda.qcow2", "/new/vm2-sdb.img", "/new/vm2-nvram.fd", "/dev/urandom"}
FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
OLD = f"""
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>vm1</name><uuid>11111111-2222-4333-8444-555555555555</uuid>
  <genid>99999999-2222-4333-8444-555555555555</genid>
  <memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>{FIRMWARE}</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/host/vm1_VARS.fd</nvram>
    <!-- os --><boot dev='hd'/>
  </os>
  <features><acpi/></features>
  <clock offset='timezone' timezone='Europe/Berlin'/>
  <on_crash>coredump-destroy</on_crash>
  <!-- domain -->
  <devices>
    <emulator>/host/emulator</emulator>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none' discard='unmap'/>
      <source dev='/host/vda'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file'><format type='raw'/><source file='/host/base'/></backingStore>
      <target dev='vda' bus='virtio'/><serial>vda-1</serial>
    </disk>
    <disk type='network' device='lun' rawio='yes'>
      <source protocol='rbd' name='pool/vm1'><host name='mon'/><auth username='x'/></source>
      <target dev='sdb' bus='sata'/>
    </disk>
    <disk type='file' device='disk'>
      <source file='/host/vdc'/><target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='/host/cd.iso'/><target dev='sdc' bus='sata'/>
      <readonly/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:11:22:33'/><source bridge='br-customer'/><target dev='tap-vm1'/>
      <model type='virtio'/><script path='/host/up'/>
    </interface>
    <serial type='pty'><source path='/host/pts'/><log file='/host/serial.log'/></serial>
    <channel type='unix'>
      <source mode='bind' path='/host/agent'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <graphics type='vnc' port='5901' listen='0.0.0.0' passwd='x'>
      <listen type='address' address='0.0.0.0'/>
    </graphics>
    <video><model type='vga'/></video>
    <rng model='virtio'><backend model='random'>/host/rng</backend></rng>
    <tpm model='tpm-crb'><backend type='passthrough'><device path='/host/tpm'/></backend></tpm>
    <memballoon model='none'/>
    <!-- devices -->
  </devices>
  <seclabel type='dynamic' model='dac'/>
  <qemu:commandline><qemu:arg value='-host'/></qemu:commandline>
</domain>
"""


def made(more: str = "", place: str = "devices") -> tuple[Element, list[str]]:
    """The new domain of the old one, with more in it, and the notes."""
    xml = OLD.replace(f"<!-- {place} -->", more, 1)
    domain, notes = new_domain(xml.encode(), "vm2", DISKS, nvram=Path("/new/vm2-nvram.fd"))
    return fromstring(tostring(domain)), notes


def paths(domain: Element) -> set[str]:
    """All values that could be a path, but for a time zone."""
    texts = {each.text or "" for each in domain.iter()}
    values = {value for each in domain.iter() for value in each.attrib.values()}
    return {value for value in texts | values if "/" in value} - {"Europe/Berlin"}


def described(disk: Element) -> dict[str, dict[str, str]]:
    """The attributes of an element and of all in it, by tag."""
    return {each.tag: each.attrib for each in disk.iter()}


def test_the_new_domain_has_its_own_name_disks_and_addresses_and_the_hardware_of_the_old() -> None:
    domain, notes = made()
    assert domain.findtext("name") == "vm2"
    assert domain.find("uuid") is None
    assert domain.find("devices/interface/mac") is None
    assert domain.findtext("genid") == ""
    assert paths(domain) == OWN | {FIRMWARE}
    assert [described(disk) for disk in domain.iterfind("devices/disk")] == [
        {
            "disk": {"type": "file", "device": "disk"},
            "target": {"dev": "vda", "bus": "virtio"},
            "serial": {},
            "driver": {"name": "qemu", "type": "qcow2", "cache": "none", "discard": "unmap"},
            "source": {"file": "/new/vm2-vda.qcow2"},
        },
        {
            "disk": {"type": "file", "device": "disk"},
            "target": {"dev": "sdb", "bus": "sata"},
            "driver": {"name": "qemu", "type": "raw"},
            "source": {"file": "/new/vm2-sdb.img"},
        },
        {
            "disk": {"type": "file", "device": "cdrom"},
            "target": {"dev": "sdc", "bus": "sata"},
            "driver": {"name": "qemu", "type": "raw"},
        },
    ]
    assert notes == [
        "disk vdc: left out",
        "disk sdc: empty",
        "interface tap-vm1: connected to br-customer",
        "graphics vnc: listens on 127.0.0.1",
        "tpm: left out",
        "commandline: left out",
    ]


@pytest.mark.parametrize(
    "device",
    [
        "<hostdev mode='subsystem' type='pci'><source><address domain='0'/></source></hostdev>",
        "<filesystem type='mount'><source dir='/host'/><target dir='host'/></filesystem>",
        "<shmem name='host'/>",
        "<memory model='nvdimm'><source><path>/host/nvdimm</path></source></memory>",
        "<interface type='direct'><source dev='eth0' mode='vepa'/></interface>",
        "<interface type='hostdev'><source><address type='pci'/></source></interface>",
        "<interface type='ethernet'><target dev='eth0'/></interface>",
        "<interface type='vhostuser'><source type='unix' path='/host/s'/></interface>",
        "<interface type='server'><source address='0.0.0.0' port='1'/></interface>",
        "<interface/>",
        "<input type='evdev'><source dev='/dev/input/event0'/></input>",
        "<input type='passthrough'><source evdev='/dev/input/event0'/></input>",
        "<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>",
        "<vsock model='virtio'><cid address='3'/></vsock>",
        "<smartcard mode='host'/>",
        "<redirdev bus='usb' type='tcp'><source mode='connect' host='h' service='1'/></redirdev>",
        "<lease><target path='/host/lease'/></lease>",
        "<qemu:device/>",
    ],
)
def test_a_device_of_the_host_is_left_out_and_told(device: str) -> None:
    domain, notes = made(device)
    usual, usual_notes = made()
    assert tostring(domain) == tostring(usual)
    [note] = set(notes) - set(usual_notes)
    assert re.fullmatch(r"\w+ ?[\w-]*: left out", note)


@pytest.mark.parametrize(
    "piece",
    [
        "<launchSecurity type='sev'><dhCert>x</dhCert></launchSecurity>",
        "<memoryBacking><source type='file'/></memoryBacking>",
        "<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>",
        "<bootloader>/host/loader</bootloader>",
        "<cputune><vcpupin vcpu='0' cpuset='1'/></cputune>",
        "<qemu:override/>",
    ],
)
def test_what_is_of_the_host_in_the_domain_is_left_out_and_told(piece: str) -> None:
    domain, notes = made(piece, "domain")
    usual, usual_notes = made()
    assert tostring(domain) == tostring(usual)
    [note] = set(notes) - set(usual_notes)
    assert note.endswith(": left out")


@pytest.mark.parametrize(
    "piece",
    [
        "<kernel>/host/vmlinuz</kernel>",
        "<initrd>/host/initrd</initrd>",
        "<dtb>/host/dtb</dtb>",
        "<cmdline>root=x</cmdline>",
        "<loader>/host/firmware.fd</loader>",
        "<loader>/usr/share/OVMF/../../../host/firmware.fd</loader>",
        "<loader>/usr/share/OVMF/x\n/host</loader>",
        "<nvram format='qcow2'>/host/nvram.qcow2</nvram>",
        "<acpi><table type='slic'>/host/slic</table></acpi>",
        "<init>/host/init</init>",
    ],
)
def test_nothing_is_booted_but_the_disks_and_installed_firmware(piece: str) -> None:
    domain, notes = made(piece, "os")
    usual, usual_notes = made()
    assert tostring(domain) == tostring(usual)
    assert len(set(notes) - set(usual_notes)) == 1


def test_installed_firmware_cannot_be_written_to() -> None:
    domain, _ = made(f"<loader readonly='no' type='pflash'>{FIRMWARE}</loader>", "os")
    loaders = domain.findall("os/loader")
    assert [loader.attrib for loader in loaders] == [{"readonly": "yes", "type": "pflash"}] * 2


@pytest.mark.parametrize("tag", ["serial", "parallel", "console", "channel"])
@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("file", "path='/host/log'"),
        ("pipe", "path='/host/pipe'"),
        ("dev", "path='/dev/ttyS0'"),
        ("tcp", "mode='bind' host='0.0.0.0' service='1'"),
        ("udp", "mode='connect' host='192.0.2.1' service='1'"),
        ("stdio", ""),
    ],
)
def test_a_port_that_ends_in_the_host_ends_in_a_pty(tag: str, kind: str, source: str) -> None:
    domain, notes = made(f"<{tag} type='{kind}'><source {source}/><target port='1'/></{tag}>")
    new = domain.findall(f"devices/{tag}")[-1]
    assert (new.get("type"), [part.tag for part in new]) == ("pty", ["target"])
    assert f"{tag} {kind}: a pty now" in notes


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "is not XML in UTF-8"),
        ("<domain", "is not XML in UTF-8"),
        ("<a/>", "is not of a virtual machine of QEMU"),
        (OLD.replace("'qemu' ", "'lxc' "), "is not of a virtual machine of QEMU"),
        (OLD.replace("hvm", "exe"), "is not of a virtual machine of QEMU"),
        (OLD.replace("dev='vda'", "dev='vdb'"), "domain.xml has no disk vda"),
        ("<!DOCTYPE d [<!ENTITY e SYSTEM '/etc/passwd'>]>" + OLD.strip(), "a DOCTYPE, or"),
        (OLD + " " * 1024**2, "more than 1 MiB"),
    ],
    ids=["empty", "half", "no-domain", "lxc", "exe", "no-disk", "entities", "large"],
)
def test_what_is_no_domain_with_these_disks_is_an_error(xml: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        new_domain(xml.encode(), "vm2", DISKS)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7"])
def test_no_other_encoding_can_hide_a_doctype(encoding: str) -> None:
    text = f"<?xml version='1.0' encoding='{encoding}'?><!DOCTYPE d>{OLD.strip()}"
    with pytest.raises(SourceError, match="a DOCTYPE, or zero bytes"):
        new_domain(text.encode(encoding), "vm2", DISKS)


def test_elements_in_one_another_without_end_are_cut() -> None:
    domain, _ = made("<video>" + "<model>" * 40_000 + "</model>" * 40_000 + "</video>")
    assert len(domain.findall("devices/video")[-1].findall(".//model")) < 10


def test_notes_are_bounded() -> None:
    _, notes = made(
        "".join(f"<shmem name='{number}' model='{'x' * 200}{number}'/>" for number in range(999))
    )
    assert len(notes) <= 100
    assert max(map(len, notes)) < 200


def grown(parent: Element, text: str, child: Element) -> Element:
    parent.text = text
    parent.append(child)
    return parent


tags = st.sampled_from([*sorted(set(re.findall(r"<(\w+)", OLD))), "log", "gl", "alias", "kernel"])
keys = st.sampled_from([*sorted(set(re.findall(r"(\w+)='", OLD))), "rendernode", "socket"])
values = st.sampled_from(
    ["/host/file", "file:/host", "../host", " /host", "\n/host", "Host/../host", "x,path=/host"]
)
elements = st.builds(Element, tags, st.dictionaries(keys, values))
trees = st.recursive(
    elements, lambda inner: st.builds(grown, elements, values, inner), max_leaves=6
)


@given(trees, st.sampled_from(["os", "domain", "devices"]))
def test_no_path_of_the_host_is_left_wherever_it_stood(tree: Element, place: str) -> None:
    domain, _ = made(tostring(tree, encoding="unicode"), place)
    assert paths(domain) == OWN | {FIRMWARE}


def test_libvirt_takes_it_and_gives_it_new_addresses(libvirtd: Libvirt) -> None:
    domain, _ = new_domain(OLD.encode(), "vm2", DISKS)
    libvirtd.virsh("define", "--validate", "/dev/stdin", stdin=tostring(domain, "unicode"))
    try:
        kept = libvirtd.virsh("dumpxml", "--inactive", "vm2")
    finally:
        libvirtd.virsh("undefine", "vm2", "--nvram")
    assert "<mac address=" in kept
    assert "52:54:00:11:22:33" not in kept
    assert "11111111-2222" not in kept
    assert "99999999-2222" not in kept
    assert "/new/vm2-vda.qcow2" in kept
