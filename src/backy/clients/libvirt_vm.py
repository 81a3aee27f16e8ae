"""A libvirt domain as the VM of a boot, through virsh."""

import grp
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5
from xml.etree.ElementTree import Element, SubElement

from backy.clients.hardware import accelerator
from backy.clients.libvirt_xml import new_domain
from backy.clients.virsh import Virsh
from backy.clients.vm import RECONNECT_SECONDS, Machine, Overlay
from backy.errors import SourceError
from backy.system import folders

_SECONDS = 60
_DONE = re.compile("cur=([0-9]{1,19})")  # bytes, as virsh blockjob --raw prints it


@dataclass(frozen=True, slots=True)
class Definition:
    """What a domain is made from: its name, a saved domain.xml, disks, and variables of UEFI.

    `network` is one of libvirt; without it the domain has no network.
    """

    name: str
    xml: bytes
    overlays: Collection[Overlay]
    nvram: Path | None
    network: str


class LibvirtDomain(Machine):
    """A domain; see Machine for the contract. Each folder has a domain of its own."""

    def __init__(self, folder: Path, definition: Definition, tell: Callable[[str], None]) -> None:
        """`tell` hears what is not as in the saved definition."""
        self._folder, self._definition, self._tell = folder, definition, tell
        self._uuid = str(uuid5(NAMESPACE_URL, f"backy:{os.uname().nodename}:{folder}"))
        uri = os.environ.get("LIBVIRT_DEFAULT_URI", "qemu:///system")
        self._virsh = Virsh(uri, definition.name, _SECONDS)

    def server_options(self) -> list[str]:
        """See Machine. The group of libvirt's QEMU may use the server."""
        labels = self._virsh.xml("capabilities").iterfind("host/secmodel[model='dac']/baselabel")
        numbers = [(label.text or "").rpartition("+")[2] for label in labels]
        if not numbers or not numbers[0].isdecimal():
            raise SourceError("libvirt does not say which group its QEMU has")
        folders.allow(self._folder, 0o711)
        return ["--socket-group", grp.getgrgid(int(numbers[0])).gr_name]

    def _state(self) -> str:
        try:
            return self._virsh.call("domstate", self._uuid).strip()
        except SourceError:  # it is not defined; or else `start` says what is wrong
            return ""

    def find(self) -> bool:
        """See Machine."""
        state = self._state()
        if state == "paused":
            self._virsh.call("resume", self._uuid)
        return state not in {"", "shut off"}

    def start(self, partial: Collection[Overlay]) -> None:
        """See Machine. What somebody changed in the domain stays once nothing is partial."""
        if partial or not self._state():
            self._virsh.define(self._xml(partial))
        self._virsh.call("start", self._uuid)

    def _xml(self, partial: Collection[Overlay]) -> Element:
        """The domain, without a network, or with its cards in the one that was asked for."""
        wanted = self._definition
        disks = {overlay.disk: (overlay.path, "qcow2") for overlay in wanted.overlays}
        root, notes = new_domain(wanted.xml, wanted.name, disks, nvram=wanted.nvram)
        for note in notes:
            self._tell(f"the domain is not as it was: {note}")
        SubElement(root, "uuid").text = self._uuid
        if accelerator() != "kvm":
            root.set("type", "qemu")
            for model in root.findall("cpu"):  # it may be that of the host
                root.remove(model)
        for devices in root.iterfind("devices"):
            for card in devices.findall("interface"):
                self._connect(devices, card)
        for overlay in partial:
            for disk in root.iterfind(f"devices/disk/target[@dev='{overlay.disk}']/.."):
                _back(disk, overlay)
        return root

    def _connect(self, devices: Element, card: Element) -> None:
        devices.remove(card)
        if network := self._definition.network:
            parts = [part for part in card if part.tag in {"model", "address"}]
            SubElement(devices, "interface", type="network").extend(parts)
            SubElement(devices[-1], "source", network=network)

    def copy(self, overlay: Overlay, rate: int) -> None:
        """See Machine. No disk moves."""
        command = "blockjob" if self._job(overlay) else "blockpull"
        speed = ("--bytes", "--bandwidth", str(rate))
        self._virsh.call(command, self._uuid, overlay.disk, *speed)

    def _job(self, overlay: Overlay) -> str:
        """What virsh says of the job that copies to an overlay; "" if there is none."""
        return self._virsh.call("blockjob", self._uuid, overlay.disk, "--raw").strip()

    def progress(self, overlay: Overlay) -> tuple[int, bool]:
        """See Machine. libvirt does not say why a job failed."""
        if job := self._job(overlay):
            done = _DONE.search(job)
            return int(done[1]) if done else 0, False
        if overlay.backing():
            why = "if the server was lost, end the domain: virsh destroy"
            raise SourceError(f"copying the rest to {overlay.path}: {why} {self._definition.name}")
        return overlay.size, True

    def finish(self, overlay: Overlay) -> None:
        """See Machine. libvirt has forgotten the export already.

        A guest that stands still has its disks flushed: else only QEMU's memory may know where the
        copied clusters are.
        """
        with suppress(SourceError):  # it may be off
            self._virsh.call("suspend", self._uuid)
        self.find()

    def ping(self) -> None:
        """See Machine."""
        ping = '{"execute": "guest-ping"}'
        self._virsh.call("qemu-agent-command", self._uuid, ping, "--timeout", "1")

    def let_go(self) -> bool:
        """See Machine."""
        return self._state() in {"", "shut off"}


def _back(disk: Element, overlay: Overlay) -> None:
    """Have a disk read from the server what its overlay does not have.

    If the server is lost, newer versions of libvirt wait for it; others pause the guest, so that it
    never sees an error.
    """
    for driver in disk.iterfind("driver"):
        driver.attrib |= {"error_policy": "stop", "rerror_policy": "stop"}
    backing = SubElement(disk, "backingStore", type="network")
    SubElement(backing, "format", type="raw")
    source = SubElement(backing, "source", protocol="nbd", name=overlay.export)
    SubElement(source, "host", transport="unix", socket=str(overlay.server))
    SubElement(source, "reconnect", delay=str(RECONNECT_SECONDS))
    SubElement(backing, "backingStore")
