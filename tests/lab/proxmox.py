"""A machine laid out like a node of Proxmox VE: no PVE, but its paths, names and block graphs.

QEMU is Debian's, without PVE's patches. Files lie below `root` where a node has them below /.
The layout was read in PVE's sources, qemu-server 9.2.6 and pve-qemu 11.0.0:
https://git.proxmox.com/?p=qemu-server.git
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from backy.errors import SourceError
from tests.lab.guest import Guest

VMID = 100
_IDS = {"vda": "virtio0", "vdb": "virtio1"}


class Node(Guest):
    """A node with one VM. `vda` is its qcow2 disk virtio0, `vdb` its raw disk virtio1.

    `more` has raw disks that the guest's kernel does not see, by id: the block node below
    "raw", as QEMU wants it. `is_blockdev`: the graph of machine types since 10.0, a throttle node
    on top of each disk; without it the drives of older ones. `cdrom` is an ISO 9660 of cloud-init.
    """

    def __init__(self, root: Path, *, is_blockdev: bool = True, **more: Mapping[str, Any]) -> None:
        super().__init__(root)
        self.is_blockdev, self.more = is_blockdev, more
        run, self.etc = root / "run/qemu-server", root / "etc/pve/qemu-server"
        images = root / f"var/lib/vz/images/{VMID}"
        for folder in (run, self.etc, images):
            folder.mkdir(parents=True)
        self.socket, self.agent = run / f"{VMID}.qmp", run / f"{VMID}.qga"
        for number, name in enumerate(_IDS):
            path = self.disks[name]
            self.disks[name] = path.rename(images / f"vm-{VMID}-disk-{number}{path.suffix}")
        self.efi = images / f"vm-{VMID}-disk-2.raw"
        self.efi.write_bytes(b"variables of the firmware".ljust(540672, b"\xff"))
        self.cdrom = images / f"vm-{VMID}-cloudinit.raw"
        self.cdrom.write_bytes(bytes(65536))
        self.own_monitor = run / f"{VMID}.backy"
        self.more_options: list[str] = []
        self.filter = ""  # a driver between throttle and image
        self.has_uefi = False
        self.configuration = self.etc / f"{VMID}.conf"
        self.write_configuration()

    def write_configuration(self, lock: str = "") -> None:
        """Write the VM's file as PVE has it, with a lock such as "backup"."""
        more = [f"{name}: krbd:vm-{VMID}-{name},size=1M" for name in self.more]
        lines = [
            "#web server%3A of the shop", "agent: 1", "bios: ovmf", "boot: order=virtio0",
            f"efidisk0: local:{VMID}/{self.efi.name},efitype=4m,size=528K",
            f"ide2: local:{VMID}/{self.cdrom.name},media=cdrom", "memory: 128", "name: shop",
            f"unused0: local:{VMID}/vm-{VMID}-disk-9.raw",
            f"virtio0: local:{VMID}/{self.disks['vda'].name},discard=on,iothread=1,size=48M",
            f"virtio1: local:{VMID}/{self.disks['vdb'].name},backup=0,size=48M", *more,
            *([f"lock: {lock}"] if lock else []),
            "", "[before]", "memory: 64", f"virtio0: local:{VMID}/old.qcow2,size=48M",
        ]  # fmt: skip
        self.configuration.write_text("\n".join(lines) + "\n")

    def _command(self) -> list[str]:
        command = [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "128",
            "-name", "shop", "-no-shutdown",
            "-chardev", f"socket,id=qmp,path={self.socket},server=on,wait=off",
            "-mon", "chardev=qmp,mode=control",
            "-pidfile", str(self.socket.with_suffix(".pid")),
            "-nodefaults", "-display", "none", "-serial", f"file:{self.folder / 'console'}",
            "-chardev", f"socket,path={self.agent},server=on,wait=off,id=qga0",
            "-device", "virtio-serial,id=qga0",
            "-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0",
            "-device", "virtio-scsi-pci,id=scsihw0",
            "-blockdev", json.dumps(self._cdrom()), "-device", "ide-cd,drive=drive-ide2,id=ide2",
        ]  # fmt: skip
        for name, disk in _IDS.items():
            path = self.disks[name]
            # PVE's QEMU locks no files.
            file = {"driver": "file", "filename": str(path), "locking": "off"}
            command += self._drive(disk, path.suffix[1:], file)
            command += ["-device", f"virtio-blk-pci,drive=drive-{disk},id={disk}"]
        for number, (disk, node) in enumerate(self.more.items()):
            command += self._drive(disk, "raw", node)
            place = f"bus=scsihw0.0,scsi-id={number},drive=drive-{disk},id={disk}"
            command += ["-device", f"scsi-hd,{place}"]
        machine = "type=pc"
        if self.has_uefi:
            firmware = {"driver": "file", "filename": "/usr/share/OVMF/OVMF_CODE_4M.fd"}
            code = {"driver": "raw", "read-only": True, "file": firmware, "node-name": "pflash0"}
            command += ["-blockdev", json.dumps(code)]
            command += self._drive("efidisk0", "raw", {"driver": "file", "filename": str(self.efi)})
            machine = "type=q35,pflash0=pflash0,pflash1=drive-efidisk0"
        return [*command, "-machine", machine, *self.more_options]

    def plug(self, disk: str, node: Mapping[str, Any]) -> None:
        """Attach a raw disk while the VM is on, as PVE does since 10.0; a left-over group stays."""
        _, group, _, block = self._drive(disk, "raw", node)
        with suppress(SourceError):
            self.ask("object-add", **json.loads(group))
        self.ask("blockdev-add", **json.loads(block))
        place = {"bus": "scsihw0.0", "scsi-id": int(disk[4:]) + 100, "drive": f"drive-{disk}"}
        self.ask("device_add", driver="scsi-hd", id=disk, **place)

    def _cdrom(self) -> dict[str, object]:
        file = {"driver": "file", "filename": str(self.cdrom), "read-only": True}
        return {"driver": "raw", "node-name": "drive-ide2", "read-only": True, "file": file}

    def _drive(self, disk: str, driver: str, file: Mapping[str, Any]) -> list[str]:
        """The options of a disk's block nodes, with PVE's names."""
        if not self.is_blockdev:
            place = ",".join(f"file.{key}={value}" for key, value in file.items())
            return ["-drive", f"{place},if=none,id=drive-{disk},format={driver},discard=on"]
        key = sha256(f"drive={disk}".encode()).hexdigest()[:30]
        common = {"discard": "unmap", "detect-zeroes": "unmap", "read-only": False}
        lowest = {**file, "node-name": f"e{key}", **common}
        middle = {"driver": driver, "file": lowest, "node-name": f"f{key}", **common}
        if self.filter:  # after a disk has moved PVE's is "zeroinit", which Debian's QEMU lacks
            middle = {"driver": self.filter, "file": middle, "node-name": f"z{key}"}
        top = {"driver": "throttle", "throttle-group": f"throttle-drive-{disk}", "file": middle}
        group = {"id": f"throttle-drive-{disk}", "limits": {}, "qom-type": "throttle-group"}
        node = json.dumps(top | {"node-name": f"drive-{disk}", **common})
        return ["-object", json.dumps(group), "-blockdev", node]


def make_qm(folder: Path) -> Path:
    """A `qm` in a folder of its own, for PATH: it changes locks in the VM's file, as PVE's does."""
    folder.mkdir()
    program = folder / "qm"
    program.write_text(
        "#!/bin/sh -e\n"
        'f="$PVE_VMS/$2.conf"\n'
        "case $1 in\n"
        'set) ! sed "/^\\[/,\\$d" "$f" | grep -q "^lock:"; sed -i "1i lock: $4" "$f" ;;\n'
        'unlock) sed -i "/^lock:/d" "$f" ;;\n'
        "esac\n"
    )
    program.chmod(0o755)
    return folder


@contextmanager
def node(root: Path, *, is_blockdev: bool = True, **more: Mapping[str, Any]) -> Iterator[Node]:
    """A node whose VM is off; nothing of it runs after the body."""
    made = Node(root, is_blockdev=is_blockdev, **more)
    try:
        yield made
    finally:
        made.stop()
