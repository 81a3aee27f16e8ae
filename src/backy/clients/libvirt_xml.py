"""The XML of a new libvirt domain, made from one that a repository kept.

Somebody else may have written the repository, and libvirt obeys this XML as root. So what is known
to stay inside the guest is copied, and all the rest is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, SubElement, fromstring, indent, tostring

from backy.errors import SourceError
from backy.units import MiB

Disks = Mapping[str, tuple[Path, str]]
"""The file and the format of each disk of a domain, by its target name, such as "vda"."""

_HINT = "Define a domain by hand, with the disks in it; see docs/targets.md."
_DEEPEST = 8  # elements in one another below a device; libvirt has fewer
_MOST_NOTES = 100
# No path (a time zone is none), and no dump, which libvirt would write to the host.
_HARMLESS = re.compile(r"(?!.*dump)([^/]*|[A-Z]\w+/\w+)", re.DOTALL)
_INSTALLED_FIRMWARE = re.compile(r"/usr/share/(OVMF|AAVMF|edk2|qemu|seabios)(/\w[\w.+-]*)+")
_PLAIN = {  # elements of a domain that are about the guest alone
    *("memory", "currentMemory", "maxMemory", "vcpu", "vcpus", "iothreads", "iothreadids"),
    *("features", "cpu", "clock", "pm", "on_poweroff", "on_reboot"),
}
_PLAIN_OS = {"type", "boot", "bootmenu", "bios", "firmware"}
_PORTS = ("serial", "parallel", "console", "channel")
_DEVICES = {  # those that stay inside the guest, or that are made to
    *("disk", "interface", "graphics", "rng", "tpm", *_PORTS),
    *("controller", "input", "video", "sound", "watchdog", "memballoon", "panic", "iommu", "hub"),
}
_TYPES = {  # of devices, where others belong to the host
    "interface": {"network", "bridge", "user"},
    "graphics": {"vnc", "spice"},
    "input": {"mouse", "tablet", "keyboard"},
}
_PARTS = {  # elements of devices
    *("address", "boot", "driver", "model", "target", "serial", "wwn", "vendor", "product"),
    *("blockio", "iotune", "mtu", "link", "filterref", "virtualport", "vlan", "bandwidth", "port"),
    *("master", "codec", "stats", "rate"),
}
# Names for other parts of the XML, the host's graphics card, the id of a port of Open vSwitch.
_NEVER = {"alias", "acceleration", "parameters"}
# Nobody misses these: libvirt makes them anew, or they tell of the old domain.
_UNTOLD = {
    *("name", "uuid", "title", "description", "metadata", "seclabel", "resource"),
    *("emulator", "audio", "on_crash"),
}


def new_domain(
    xml: bytes, name: str, disks: Disks, *, nvram: Path | None = None
) -> tuple[str, list[str]]:
    """The XML of a domain called `name`, for `virsh define`; and what is not as in `xml`.

    It has these `disks`, by target name, and no path but theirs, that of `nvram`, and those of
    firmware in /usr/share. UUID and MACs are missing, so that libvirt makes new ones. The notes are
    for the operator; they quote `xml`.

    Raises SourceError where `xml` is not of a domain for QEMU, or lacks one of the disks.
    """
    old = _parsed(xml)
    if missing := disks.keys() - {_target(disk) for disk in old.iterfind("devices/disk")}:
        raise SourceError(f"domain.xml has no disk {', '.join(sorted(missing))}", _HINT)
    new, notes = Element("domain", type=old.get("type", "")), list[str]()
    SubElement(new, "name").text = name
    for child in old:
        if child.tag == "os":
            new.append(_os(child, nvram, notes))
        elif child.tag == "devices":
            made = [_device(device, disks, notes) for device in child]
            SubElement(new, "devices").extend(device for device in made if device is not None)
        elif child.tag == "genid":
            SubElement(new, "genid")  # libvirt fills it in
        elif child.tag in _PLAIN:
            new.append(_copy(child))
        else:
            _tell(notes, child, "left out")
    indent(new)
    return tostring(new, encoding="unicode"), list(dict.fromkeys(notes))[:_MOST_NOTES]


def _parsed(xml: bytes) -> Element:
    """The domain. XML without a DOCTYPE has no entities but those of XML itself."""
    try:
        text = xml.decode()
        if len(xml) > MiB or "<!DOCTYPE" in text:
            raise SourceError("domain.xml is larger than 1 MiB, or has a DOCTYPE", _HINT)
        root = fromstring(text)  # noqa: S314 - see above
    except (ParseError, ValueError) as error:
        raise SourceError(f"domain.xml is not XML in UTF-8: {error}", _HINT) from error
    is_hvm = root.findtext("os/type", "").strip() == "hvm"
    if root.tag != "domain" or root.get("type") not in {"kvm", "qemu"} or not is_hvm:
        raise SourceError("domain.xml is not of a virtual machine of QEMU", _HINT)
    return root


def _copy(old: Element, parts: Collection[str] | None = None, depth: int = _DEEPEST) -> Element:
    """A copy with all harmless values; of its elements only `parts`, or all of them."""
    new, text = Element(old.tag), (old.text or "").strip()
    new.text = text if _HARMLESS.fullmatch(text) else None
    for key, value in old.items():
        if "{" not in key and _HARMLESS.fullmatch(value):
            new.set(key, value)
    for child in old if depth else ():
        is_wanted = parts is None or child.tag in parts
        if is_wanted and "{" not in child.tag and child.tag not in _NEVER:
            new.append(_copy(child, depth=depth - 1))
    return new


def _tell(notes: list[str], old: Element, what: str) -> None:
    tag = old.tag.rpartition("}")[2]
    if tag not in _UNTOLD:
        which = _target(old) or old.get("type", "") or old.get("model", "")
        notes.append(f"{tag} {which}".strip()[:100] + f": {what}")


def _target(device: Element) -> str:
    found = device.find("target")
    return "" if found is None else found.get("dev", "")


def _os(old: Element, nvram: Path | None, notes: list[str]) -> Element:
    new = _copy(old, _PLAIN_OS)
    for child in old:
        path = (child.text or "").strip()
        if child.tag == "loader" and _INSTALLED_FIRMWARE.fullmatch(path):
            new.append(_copy(child, ()))
            new[-1].text = path
        elif child.tag == "nvram" and nvram and child.get("format", "raw") == "raw":
            SubElement(new, "nvram").text = str(nvram)
        elif child.tag not in _PLAIN_OS:
            _tell(notes, child, "left out")
    return new


def _device(old: Element, disks: Disks, notes: list[str]) -> Element | None:
    """The new device; None, and a note, if it would be one of the host."""
    kind = old.get("type", "")
    if old.tag not in _DEVICES or kind not in _TYPES.get(old.tag, {kind}):
        _tell(notes, old, "left out")
        return None
    if old.tag == "disk":
        return _disk(old, disks, notes)
    # The target of an interface is a device of the host; a driver may be a program there.
    new = _copy(old, _PARTS - {"target"} if old.tag == "interface" else _PARTS)
    for driver in new.iterfind("driver"):
        driver.attrib.pop("name", None)
    _confine(old, new, kind, notes)
    return new


def _confine(old: Element, new: Element, kind: str, notes: list[str]) -> None:
    """Have a device end inside the guest, or where the host lets it; say so in `notes`."""
    is_channel = old.tag == "channel" and kind in {"unix", "spicevmc"}
    if old.tag == "interface" and (source := old.find("source")) is not None and kind != "user":
        new.append(_copy(source, ()))
        _tell(notes, old, f"connected to {new[-1].get(kind, 'nothing')[:100]}")
    elif old.tag == "graphics":
        new[:], new.attrib = [], {"type": kind, "autoport": "yes", "listen": "127.0.0.1"}
        _tell(notes, old, "listens on 127.0.0.1")
    elif old.tag == "rng":
        SubElement(new, "backend", model="random").text = "/dev/urandom"
    elif old.tag == "tpm":
        SubElement(new, "backend", type="emulator", version="2.0")
        _tell(notes, old, "an empty TPM 2.0")
    elif old.tag in _PORTS and kind != "pty" and not is_channel:
        new.set("type", "pty")
        _tell(notes, old, "a pty now")


def _disk(old: Element, disks: Disks, notes: list[str]) -> Element | None:
    path, image_format = disks.get(_target(old), ("", "raw"))
    kind = "disk" if path else old.get("device", "disk")
    is_empty = kind in {"cdrom", "floppy"}
    if not path:
        _tell(notes, old, "empty" if is_empty else "left out")
    if not path and not is_empty:
        return None
    new, found = _copy(old, _PARTS - {"driver"}), old.find("driver")
    new.attrib = {"type": "file", "device": kind}
    new.append(Element("driver") if found is None else _copy(found, ()))
    new[-1].attrib |= {"name": "qemu", "type": image_format}
    if path:
        SubElement(new, "source", file=str(path))
    return new
