"""The XML of a new libvirt domain, made from one that a repository kept.

Somebody else may have written the repository, and libvirt obeys this XML as root. So what is known
to stay inside the guest is copied, and all the rest is left out.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, SubElement, fromstring

from backy.clients.virsh import attribute
from backy.errors import SourceError
from backy.units import MiB

Disks = Mapping[str, tuple[Path, str]]
"""The file and the format of each disk of a domain, by its target name, such as "vda"."""

_HINT = "Define a domain by hand, with the disks in it; see docs/targets.md."
# No path (a time zone is none), no name space, no dump, which libvirt would write to the host.
_HARMLESS = re.compile(r"(?!.*dump)([^/{]*|timezone[A-Z]\w+/\w+)", re.DOTALL)
_INSTALLED_FIRMWARE = re.compile(r"/usr/share/(OVMF|AAVMF|edk2|qemu|seabios)(/\w[\w.+-]*)+")
_PLAIN = {  # elements of a domain that are about the guest alone
    *("memory", "currentMemory", "maxMemory", "vcpu", "vcpus", "iothreads", "iothreadids"),
    *("features", "cpu", "clock", "pm", "on_poweroff", "on_reboot"),
}
_PLAIN_OS = {"type", "boot", "bootmenu", "bios", "firmware"}
_PORTS = ("serial", "parallel", "console", "channel")
_DEVICES = {  # beside disks, those that stay inside the guest, or that are made to
    *("interface", "graphics", "rng", *_PORTS),
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
) -> tuple[Element, list[str]]:
    """The definition of a domain called `name`; and what is not as in `xml`.

    It has these `disks`, by target name, and no path but theirs, that of `nvram`, and those of
    firmware in /usr/share. UUID and MACs are missing, so that libvirt makes new ones. The notes are
    for the operator; they quote `xml`.

    Raises SourceError where `xml` is not of a domain for QEMU, or lacks one of the disks.
    """
    old = parsed(xml)
    if old.get("type") not in {"kvm", "qemu"} or old.findtext("os/type", "").strip() != "hvm":
        raise SourceError("domain.xml is not of a virtual machine of QEMU", _HINT)
    names = {attribute(disk, "target", "dev") for disk in old.iterfind("devices/disk")}
    if missing := disks.keys() - names:
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
    return new, list(dict.fromkeys(notes))[:100]


def parsed(xml: bytes) -> Element:
    """The domain that a repository kept. Raises SourceError where it is no XML.

    XML without a DOCTYPE has no entities but those of XML itself.
    """
    # What is not UTF-8 could hide one: expat takes text with zero bytes for UTF-16, unasked.
    text = xml.decode(errors="replace")
    if len(xml) > MiB or "<!DOCTYPE" in text or "\0" in text:
        raise SourceError("domain.xml has more than 1 MiB, a DOCTYPE, or zero bytes", _HINT)
    try:
        return fromstring(text)  # noqa: S314 - see above
    except ParseError as error:
        raise SourceError(f"domain.xml is not XML in UTF-8: {error}", _HINT) from error


def _copy(old: Element, parts: Collection[str] | None = None, depth: int = 8) -> Element:
    """A copy with all harmless values; of its elements only `parts`, or all of them.

    Nothing is copied that lies deeper than `depth` elements; libvirt's XML does not.
    """
    values = {key: value for key, value in old.items() if _HARMLESS.fullmatch(key + value)}
    new, text = Element(old.tag, values), (old.text or "").strip()
    new.text = text if _HARMLESS.fullmatch(text) else None
    for child in old if depth else ():
        if (parts is None or child.tag in parts) and not ("{" in child.tag or child.tag in _NEVER):
            new.append(_copy(child, depth=depth - 1))
    return new


def _tell(notes: list[str], old: Element, what: str) -> None:
    tag = old.tag.rpartition("}")[2]
    if tag not in _UNTOLD:
        which = attribute(old, "target", "dev") or old.get("type", "")
        notes.append(f"{tag} {which}".strip()[:100] + f": {what}")


def _os(old: Element, nvram: Path | None, notes: list[str]) -> Element:
    new = _copy(old, _PLAIN_OS)
    for child in old:
        if child.tag == "loader" and _INSTALLED_FIRMWARE.fullmatch(child.text or ""):
            new.append(_copy(child, ()))
            new[-1].text = child.text
            new[-1].set("readonly", "yes")  # it is the firmware of other domains, too
        elif child.tag == "nvram" and nvram and child.get("format", "raw") == "raw":
            SubElement(new, "nvram").text = str(nvram)
        elif child.tag not in _PLAIN_OS:
            _tell(notes, child, "left out")
    return new


def _device(old: Element, disks: Disks, notes: list[str]) -> Element | None:
    """The new device; None, and a note, if it would be one of the host."""
    kind, name = old.get("type", ""), attribute(old, "target", "dev")
    if old.tag == "disk" and (name in disks or old.get("device") in {"cdrom", "floppy"}):
        return _disk(old, disks, notes)
    if old.tag not in _DEVICES or kind not in _TYPES.get(old.tag, {kind}):
        _tell(notes, old, "left out")
        return None
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
    elif old.tag in _PORTS and kind != "pty" and not is_channel:
        new.set("type", "pty")
        _tell(notes, old, "a pty now")


def _disk(old: Element, disks: Disks, notes: list[str]) -> Element:
    """One of `disks`, or a drive without a medium."""
    path, image_format = disks.get(attribute(old, "target", "dev"), ("", "raw"))
    new, found = _copy(old, _PARTS - {"driver"}), old.find("driver")
    new.attrib = {"type": "file", "device": "disk" if path else old.get("device", "")}
    new.append(Element("driver") if found is None else _copy(found, ()))
    new[-1].attrib |= {"name": "qemu", "type": image_format}
    if path:
        SubElement(new, "source", file=str(path))
    else:
        _tell(notes, old, "empty")
    return new
