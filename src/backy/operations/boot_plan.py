"""What a boot runs: a revision as a VM whose disks are overlays in a folder of this machine."""

import json
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from backy.clients import vm
from backy.clients.hardware import EMULATOR, Hardware, accelerator, firmware_for, hardware_of
from backy.clients.libvirt_vm import Definition, LibvirtDomain
from backy.errors import SourceError, TargetError, UsageError
from backy.image.progress import SILENCE, Watcher
from backy.model.names import is_job
from backy.model.revision import Revision, disk_of
from backy.operations.site import Site
from backy.repository.records import read_record
from backy.repository.repository import Repository
from backy.repository.tags import HOLD
from backy.system import folders
from backy.system.files import AnyPath
from backy.units import MiB

STATE = "boot.json"
PROGRAMS = {"qemu": (EMULATOR, "qemu-img"), "libvirt": ("virsh", "qemu-img")}
_FOLDERS = Path("/var/lib/backy/boot")
VARIABLES = "nvram.fd"


@dataclass(frozen=True, slots=True)
class BootOptions:
    """Options of one boot. `rate` is bytes a second, 0 as fast as possible; `memory` is bytes.

    `folder` keeps the disks of the VM; by default it is a folder for the job in /var/lib/backy.
    What is None is as in the saved definition of the VM, or else a default. `into` has the names
    and the targets of disks that are to move there, see vm.Destination; "" is the only disk.
    """

    folder: Path | None = None
    rate: int = 0
    memory: int | None = None
    processors: int | None = None
    is_uefi: bool = False
    network: str = ""
    run: str = "qemu"
    into: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class State:
    """The content of boot.json. `asked` is the revision word that was typed.

    `is_started` is whether the VM was ever started. From then on the overlays must be there. `into`
    has the targets of disks, which are ours, and `moved` the disks that have moved there: their
    overlays are worth nothing any more.
    """

    job: str
    revision: str
    asked: str
    into: Mapping[str, str] = field(default_factory=dict)
    is_started: bool = False
    moved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run: a revision on some hardware, with an overlay for each disk."""

    site: Site
    repository: Repository
    revision: Revision
    options: BootOptions
    folder: Path
    saved: bytes | None  # domain.xml
    hardware: Hardware
    overlays: Sequence[vm.Overlay]
    firmware: tuple[Path, AnyPath] | None  # the code of UEFI, and the variables to start with
    state: State

    @property
    def hold(self) -> str:
        """The tag that keeps the revision meanwhile. Each folder of each machine has its own."""
        place = f"{os.uname().nodename}:{self.folder}"
        return f"{HOLD}{blake2b(place.encode(), digest_size=6).hexdigest()}"

    def server(self, *program: str) -> list[str]:
        """The command that serves the revision."""
        options = ["--base-dir", str(self.site.named_base.absolute())]
        if self.site.path:
            options += ["--config", str(self.site.path.absolute())]
        word = f"{self.repository.name}@{self.revision.id}"
        return [*program, *options, "serve", word, "--socket", str(self.folder / vm.SERVER)]

    def machine(self, stack: ExitStack, watcher: Watcher) -> vm.Machine:
        """The VM, which may run already. `stack` ends the connection to it."""
        if self.options.run == "libvirt":
            nvram = self.folder / VARIABLES if self.firmware else None
            name, saved = f"{self.repository.name}-boot", self.saved or b""
            wanted = Definition(name, saved, self.overlays, nvram, self.options.network)
            return LibvirtDomain(self.folder, wanted, watcher.warn)
        return vm.Emulator(self.folder, self.emulator, stack)

    def emulator(self, partial: Collection[vm.Overlay]) -> list[str]:
        """The command that starts the VM; the `partial` overlays need the server."""
        network = self.options.network
        arguments = ["-nic", f"{network},model=virtio-net-pci" if network else "none"]
        if self.firmware:
            arguments += vm.firmware_arguments(self.firmware[0], self.folder / VARIABLES)
        for overlay in self.overlays:
            has_moved = overlay.disk in self.state.moved
            arguments += overlay.arguments(is_whole=overlay not in partial, has_moved=has_moved)
        name = f"{self.repository.name}-boot"
        return vm.command_line(self.folder, name, self.hardware, accelerator(), arguments)


def planned(site: Site, word: str, options: BootOptions, watcher: Watcher = SILENCE) -> Plan:
    """What `boot_job` would run. `word` is JOB or JOB@REV. Changes nothing.

    Raises NotFoundError; TargetError if the folder has another revision, or UEFI is missing.
    """
    job, separator, asked = word.rpartition("@")
    if not separator or (is_job(word) and (site.base / word).exists()):
        job, asked = word, "latest"
    repository = site.repository(job)
    folder = (options.folder or _FOLDERS / job).absolute()
    if len(os.fsencode(folder / vm.MONITOR)) > vm.LONGEST_SOCKET:
        raise UsageError(f"{folder} is too long for the paths of sockets", "Use a shorter one.")
    path = folder / STATE
    found = read_record(path, State, TargetError, "Use another folder.") if path.exists() else None
    state = found or State(job, repository.find(asked).id, asked)
    # What was asked for may be another one by now: "latest".
    goes_on = (state.job, state.asked) == (job, asked)
    if not goes_on and (state.job, state.revision) != (job, repository.find(asked).id):
        why = f"{folder} has {state.job}@{state.revision} already"
        raise TargetError(why, "Use another folder with --state, or remove this one.")
    revision = repository.find(state.revision)
    into = {disk_of(revision, name or None): target for name, target in options.into}
    if found and found.into != into:
        raise TargetError(f"{folder} was begun with other targets", "See its boot.json.")
    state = replace(state, into=into)
    saved = _saved(repository, revision, "domain.xml")
    if options.run == "libvirt" and not saved:
        raise TargetError(f"{job}@{revision.id} has no saved definition", "Use --run qemu.")
    hardware = _hardware(saved, options, watcher)
    overlays = [
        vm.Overlay(
            folder / f"{name}.qcow2",
            revision.disks[name].size,
            f"{job}/{revision.id}/{name}",
            number,
            hardware.buses.get(name, "virtio"),
            vm.Destination(into[name]) if name in into else None,
        )
        for number, name in enumerate(sorted(revision.disks))
    ]
    firmware = _firmware(repository, revision) if hardware.is_uefi else None
    return Plan(
        site, repository, revision, options, folder, saved, hardware, overlays, firmware, state
    )


def _hardware(saved: bytes | None, options: BootOptions, watcher: Watcher) -> Hardware:
    """The hardware of the saved definition, if there is one, changed by the options."""
    hardware = Hardware()
    if saved:
        try:
            hardware = hardware_of(saved)
        except SourceError as error:
            watcher.warn(f"defaults are used: {error.message}")
    return replace(
        hardware,
        memory=options.memory or hardware.memory,
        processors=options.processors or hardware.processors,
        is_uefi=hardware.is_uefi or options.is_uefi,
    )


def _saved(repository: Repository, revision: Revision, name: str) -> bytes | None:
    """A file that was saved beside the disks; None if there is none."""
    with suppress(OSError):
        return folders.read_file(repository.folder_of(revision) / name, MiB)
    return None


def _firmware(repository: Repository, revision: Revision) -> tuple[Path, AnyPath]:
    """The code of UEFI, and the variables to start with: those that were saved, if any."""
    saved = _saved(repository, revision, VARIABLES)
    code, template = firmware_for(len(saved) if saved else None)
    return code, repository.folder_of(revision) / VARIABLES if saved else template


def commands(plan: Plan) -> Iterator[str]:
    """The commands of a boot, for a shell. Nothing is run."""
    tag = ["backy", "tag", plan.repository.name, "-r", plan.revision.id]
    yield shlex.join([*tag, f"+{plan.hold}"])
    yield shlex.join(["mkdir", "-p", "-m", "700", str(plan.folder)])
    yield f"{shlex.join(plan.server('backy'))} &"
    yield from (shlex.join(overlay.creation()) for overlay in plan.overlays)
    if plan.firmware:
        yield shlex.join(["cp", str(plan.firmware[1]), str(plan.folder / VARIABLES)])
    yield f"{shlex.join(plan.emulator(plan.overlays))} &"
    yield f"# For each disk, at {plan.folder / vm.MONITOR}, after qmp_capabilities:"
    for overlay in plan.overlays:
        yield f"# {json.dumps({'execute': 'block-stream', 'arguments': overlay.stream(0)})}"
    yield "# When all of query-jobs are concluded: stop and cont (they flush), end the server, and:"
    yield shlex.join([*tag, f"-{plan.hold}"])
