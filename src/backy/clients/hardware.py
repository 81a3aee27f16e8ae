"""The hardware of a VM that we start: what a saved domain.xml says, and what this machine has."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backy.clients.libvirt_xml import parsed
from backy.clients.virsh import attribute
from backy.errors import SourceError, TargetError
from backy.system import process
from backy.system.process import Program
from backy.units import KiB, MiB

EMULATOR = "qemu-system-x86_64"
_MEMORY = 1024 * MiB
_PROBE_SECONDS = 5
# The BIOS finds no disk and starts again, which ends QEMU with code 0.
PROBE = (
    *("-m", "16", "-nodefaults", "-no-user-config", "-display", "none"),
    *("-boot", "reboot-timeout=0", "-no-reboot"),
)
_FIRMWARE = [  # code and variables, as Debian and Fedora have them
    (Path(f"{folder}_CODE{kind}.fd"), Path(f"{folder}_VARS{kind}.fd"))
    for folder in ("/usr/share/OVMF/OVMF", "/usr/share/edk2/ovmf/OVMF")
    for kind in ("_4M", "")
]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the VM consists of beside its disks; `memory` is in bytes.

    `buses` has the bus of each disk that is known, by its name, in libvirt's words.
    """

    memory: int = _MEMORY
    processors: int = 1
    machine: str = "q35"
    is_uefi: bool = False
    buses: Mapping[str, str] = field(default_factory=dict)


def hardware_of(xml: bytes) -> Hardware:
    """What a domain.xml of libvirt says. Whoever wrote it can choose from a few words, no more.

    Raises SourceError if it is no such XML, or of a machine that we do not emulate.
    """
    root = parsed(xml)
    machine = attribute(root, "os/type", "machine")
    if (architecture := attribute(root, "os/type", "arch")) not in {"", "x86_64", "i686"}:
        raise SourceError(f"domain.xml is of a machine of type {architecture:.20}")
    unit = KiB if attribute(root, "memory", "unit") in {"", "KiB"} else 0  # as libvirtd prints it
    memory, processors = root.findtext("memory", ""), root.findtext("vcpu", "")
    disks = root.iterfind("devices/disk/target")
    return Hardware(
        memory=_number(memory) * unit or _MEMORY,
        processors=_number(processors) or 1,
        machine="pc" if machine.startswith("pc-i440fx") else "q35",
        is_uefi=attribute(root, "os", "firmware") == "efi"
        or attribute(root, "os/loader", "type") == "pflash",
        buses={disk.get("dev", ""): disk.get("bus", "") for disk in disks},
    )


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0  # noqa: PLR2004


def accelerator() -> str:
    """The accelerator of QEMU: kvm where that executes a guest's code, else tcg, which emulates.

    That /dev/kvm is there does not say so: where hypervisors are nested, KVM may hang or abort.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    command = [EMULATOR, *PROBE, "-accel", "kvm", "-cpu", "host"]
    outcome = process.run(Program(command, {}, b"", _PROBE_SECONDS), limit=1)
    return "kvm" if outcome.code == 0 else "tcg"


def firmware_for(size: int | None) -> tuple[Path, Path]:
    """The files of UEFI on this machine: its code, and variables to start with.

    With `size`, code for variables of so many bytes, those that were saved. Raises TargetError.
    """
    for code, variables in _FIRMWARE:
        if code.exists() and variables.exists() and size in {None, variables.stat().st_size}:
            return code, variables
    raise TargetError("no UEFI firmware fits this VM", "Install the package ovmf, or edk2-ovmf.")
