"""Source "libvirt": the disks of a domain, running or not, and what it needs to boot from them.

Through virsh, see docs/decisions/0014-libvirt-by-virsh.md. A domain that is active gives them by
a backup job in pull mode, which begins with a checkpoint: the base of the next delta. The disks
of one that is off are read as by the source "image".

https://libvirt.org/formatbackup.html, https://libvirt.org/formatcheckpoint.html
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

import zstandard
from pydantic import AfterValidator, Field

from backy.clients.program import ask
from backy.config.settings import AbsolutePath, DiskName, Seconds
from backy.errors import SourceError, translated
from backy.model.revision import Consistency
from backy.nbd.remote_image import open_image
from backy.nbd.uri import parse_uri
from backy.sources import Request, SnapshotData, SourceSettings, checked
from backy.sources.checkpoint import CheckpointNames
from backy.sources.image_file import ImageSource
from backy.system import files, folders, process, signals
from backy.system.guard import guarding
from backy.system.process import Outcome, Program
from backy.units import MiB, format_size

_TRACKED = "qcow2"  # the only format whose bitmaps libvirt keeps
_BITMAP = "changes"  # what the exports of a job call theirs
_VERSION = re.compile(r"hypervisor: QEMU (\d+)\.(\d+)\.(\d+)")
_ALLOCATED = re.compile(r"(\S+) +\d+ +(\d+) +\d+")  # bytes that a disk takes, of its columns
_SAFE_WITH_THREADS = (8, 2, 3)  # the version of QEMU that lost the bug of `_check`
_SPARE = 10  # the scratch folder must have room for a tenth of what the disks hold
_LARGEST = 64 * MiB  # bytes of a file that is saved: the NVRAM of a machine of aarch64
_TPM = {"1.2": "tpm1.2/tpm-00.permall", "2.0": "tpm2/tpm2-00.permall"}  # where swtpm keeps it
_COUNT = re.compile("[1-9]")  # of file systems that were frozen, or thawed
_HINT = "Is it defined on this server, and does libvirtd run? Try: virsh --connect URI list --all"
_DISK_HINT = "Exclude it, and save it in another way; see docs/sources/libvirt.md."
_THAW_HINT = "See to it now: virsh domfsthaw DOMAIN"


def _local(uri: str) -> str:
    if not uri.startswith(("qemu:///", "qemu+unix:///")):
        raise ValueError("disks come through a Unix socket, so it must be here, as qemu:///system")
    return uri


class LibvirtSettings(SourceSettings):
    """See docs/sources/libvirt.md."""

    domain: str = Field(pattern=r"^[^-\s]")
    uri: Annotated[str, AfterValidator(_local)] = "qemu:///system"
    disks: tuple[DiskName, ...] = ()
    exclude: tuple[DiskName, ...] = ()
    freeze: bool = True
    freeze_timeout: Seconds = Field(default=10, ge=1, le=300)
    scratch: AbsolutePath = Path("/var/lib/libvirt/backy")
    swtpm: AbsolutePath = Path("/var/lib/libvirt/swtpm")
    timeout: Seconds = Field(default=60, ge=1)
    server: str | None = None


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as it is now: its live XML, and of the disks that are wanted the formats."""

    uuid: str
    xml: Element
    formats: Mapping[str, str]


class LibvirtSource:
    """A Source; see there for the contract."""

    is_shared = False

    def __init__(self, /, **settings: object) -> None:
        self.settings = checked(LibvirtSettings, settings)
        self.paths: dict[str, Path] = {}  # only libvirt knows them
        self._names = CheckpointNames(self.settings.server)

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[SnapshotData]:
        """See Source. Scratch files grow by what the guest overwrites meanwhile."""
        domain = self._domain()
        taken = SnapshotData({}, Consistency.CRASH)
        with ExitStack() as stack:
            take = self._take if "id" in domain.xml.attrib else self._take_off
            take(domain, request, taken, stack)
            taken.files = dict(self._files(domain, taken.early_warnings))
            yield taken

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """See Source. The checkpoints of a domain that is off stay until it runs again."""
        domain = self._domain()
        self._abort(domain)
        for name in self._virsh("checkpoint-list", domain.uuid, "--name").split():
            revision = self._names.revision_of(name)
            if revision and revision not in revisions:
                self._remove(domain, name)

    def _domain(self) -> Domain:
        name = self.settings.domain
        try:
            root = self._xml("dumpxml", name)
        except SourceError as error:
            raise SourceError(error.message, _HINT) from error
        uuid = root.findtext("uuid", "")
        if name not in {uuid, root.findtext("name")}:
            # virsh takes a number for the one that a running domain has.
            raise SourceError(f"there is no domain called {name}", _HINT)
        return Domain(uuid, root, dict(self._formats(root)))

    def _formats(self, root: Element) -> Iterator[tuple[str, str]]:
        there = {_get(each, "target", "dev"): each for each in root.iterfind("devices/disk")}
        lasting = [each for each, element in there.items() if _is_lasting(element)]
        wanted = self.settings.disks or [n for n in lasting if n not in self.settings.exclude]
        if missing := [each for each in wanted or ["at all"] if each not in lasting]:
            what = f"domain {self.settings.domain} has no disk {', '.join(missing)} to back up"
            raise SourceError(what, f"It has: {', '.join(lasting) or 'none'}.")
        for name in wanted:
            element = there[name]
            if element.get("device") == "lun" or element.find("shareable") is not None:
                why = f"disk {name} of domain {self.settings.domain} is written to by others, too"
                raise SourceError(why, _DISK_HINT)
            yield name, _get(element, "driver", "type") or "raw"

    def _take_off(
        self, domain: Domain, request: Request, taken: SnapshotData, stack: ExitStack
    ) -> None:
        """Open the disks of a domain that is off. Until the end it cannot be started."""
        disks = {}
        for name, kind in domain.formats.items():
            source = f"devices/disk/target[@dev='{name}']/../source"
            path = _get(domain.xml, source, "file") or _get(domain.xml, source, "dev")
            if not path:
                why = f"domain {self.settings.domain} is off, and {name} is on no path of this host"
                raise SourceError(why, "Start it, or use the source for such disks.")
            disks[name] = {"path": path, "format": kind, "backing": True}
            if request.parent and name in request.parent.disks:
                taken.full_read_reasons[name] = "the domain is off"
        taken.disks = stack.enter_context(ImageSource(disks=disks).snapshot(request)).disks

    def _take(
        self, domain: Domain, request: Request, taken: SnapshotData, stack: ExitStack
    ) -> None:
        """Begin a backup job and open what it exports; the end of the stack ends it."""
        checkpoint, parent = self._names.name(request.revision), request.parent
        bases: dict[str, str] = {}
        if parent:
            known = parent.disks.keys() & domain.formats
            bases = dict.fromkeys(sorted(known), self._names.name(parent.id))
        folder = self._prepare(domain, checkpoint)
        stack.callback(self._end, domain, checkpoint, taken)
        self._check(domain)
        with self._frozen(domain, request, taken) as deadline:
            self._begin(domain, bases, taken, deadline)
        disks = {}
        for name in domain.formats:
            address = parse_uri(f"nbd+unix:///{name}?socket={quote(f'{folder}/nbd/s')}")
            bitmap = _BITMAP if name in bases else None
            disks[name] = stack.enter_context(open_image(address, bitmap=bitmap))
            if bitmap and not request.parent_has(name, disks[name].size):
                taken.full_read_reasons[name] = "it was resized"
                disks[name] = stack.enter_context(open_image(address))
        taken.disks = disks

    def _check(self, domain: Domain) -> None:
        """Do the guest no harm: QEMU may end, or the guest's writes fail, where this is not so.

        The fix: https://gitlab.com/qemu-project/qemu/-/commit/f816310d0c32
        """
        if domain.xml.find("devices/*/driver[@iothread]") is not None:
            found = _VERSION.search(self._virsh("version"))
            if not found or tuple(map(int, found.groups())) < _SAFE_WITH_THREADS:
                why = f"domain {self.settings.domain} has an iothread, and QEMU can end by a backup"
                raise SourceError(why, "Take QEMU 8.2.3, or the iothread from its disks.")
        sizes = _ALLOCATED.findall(self._virsh("domblkinfo", domain.uuid, "--all"))
        held = sum(int(size) for name, size in sizes if name in domain.formats)
        there = os.statvfs(self.settings.scratch)
        if (free := there.f_bavail * there.f_frsize) < held // _SPARE:
            why = f"{format_size(free)} are free, {format_size(held // _SPARE)} may be needed"
            raise SourceError(f"{self.settings.scratch}: {why}", "Let `scratch` be where is room.")

    def _folder(self, domain: Domain) -> Path:
        return self.settings.scratch / self._names.name(domain.uuid)

    def _prepare(self, domain: Domain, checkpoint: str) -> Path:
        """Make the folder of a job, with the checkpoint's XML in it.

        QEMU's user has to get through it to the scratch files, which libvirt makes and hands over.
        Only in the folder in it, which is for QEMU's socket, it can make files itself.
        """
        folder = self._folder(domain)
        with translated(SourceError, f"making {folder}", "May you write there?"):
            for each in (self.settings.scratch, folder):
                if not each.exists():
                    folders.make_folder(each)
                    folders.allow(each, 0o711)
            folders.make_folder(folder / "nbd")
            label = domain.xml.findtext("seclabel[@model='dac']/label", "")
            if owner := re.match(r"\+(\d+)", label):
                folders.give(folder / "nbd", int(owner[1]))
            folders.write_file(folder / "checkpoint.xml", _checkpoint(domain, checkpoint))
        return folder

    def _begin(
        self, domain: Domain, bases: dict[str, str], taken: SnapshotData, deadline: float
    ) -> None:
        """Begin the job; where checkpoints are lost or broken, without them."""
        folder = self._folder(domain)
        files = ["/dev/stdin"]
        if _TRACKED in domain.formats.values():
            files.append(f"{folder}/checkpoint.xml")
        for name in [each for each in bases if domain.formats[each] != _TRACKED]:
            taken.full_read_reasons[name] = (
                f"libvirt keeps no {bases.pop(name)}: it is {domain.formats[name]}"
            )
        while True:
            seconds = max(1, deadline - time.monotonic())
            job = _job(domain, folder, bases)
            try:
                self._virsh("backup-begin", domain.uuid, *files, stdin=job, seconds=seconds)
            except SourceError as error:
                if time.monotonic() > deadline or not (bases or files[1:]):
                    raise
                if not bases:
                    taken.early_warnings.append(f"the next backup reads all: {error.message}")
                    files.pop()
                # libvirtd may say it in any language, but it names the disk.
                for name in [n for n in bases if f"{n}'" in error.message] or [*bases]:
                    taken.full_read_reasons[name] = f"{bases.pop(name)}: {error.message}"
            else:
                return

    @contextmanager
    def _frozen(self, domain: Domain, request: Request, taken: SnapshotData) -> Iterator[float]:
        """Have the guest hold its file systems still; give when (monotonic) the body must end.

        It is told to go on whatever happens, also if we are killed.
        """
        wanted = self.settings.freeze and not request.is_frozen
        if not wanted or self._virsh("domstate", domain.uuid).strip() != "running":
            yield time.monotonic() + self.settings.timeout
            return
        limit, frozen = self.settings.freeze_timeout, Outcome(None, "")
        freeze = self._program("domfsfreeze", domain.uuid, seconds=limit / 2)
        thaw = self._program("domfsthaw", domain.uuid, seconds=self.settings.timeout)
        with guarding([thaw]) as guard:
            try:
                deadline = time.monotonic() + limit
                frozen = process.run(freeze, guard)
                yield deadline
            finally:
                with signals.shielded():
                    thawed = process.run(thaw, guard)
                    if thawed.code == 0 or frozen.code:
                        guard.disarm()
        self._judge(frozen, thawed, taken)

    def _judge(self, frozen: Outcome, thawed: Outcome, taken: SnapshotData) -> None:
        """Whether the guest was still all the time: both say of how many file systems."""
        if not frozen.code and thawed.code != 0:
            what = f"the guest of domain {self.settings.domain} may still be frozen"
            raise SourceError(f"{what}: {thawed.output.strip()[-300:]}", _THAW_HINT)
        vain = [each for each in (frozen, thawed) if each.code or not _COUNT.search(each.output)]
        if not vain:
            taken.consistency = Consistency.FILESYSTEM
        else:
            said = vain[0].output.strip()[-300:].replace("\n", " ")
            taken.early_warnings.append(f"the guest was not frozen: {said or 'it took too long'}")

    def _end(self, domain: Domain, checkpoint: str, taken: SnapshotData) -> None:
        """End the job. What cannot be removed now the next `remove_all_except` finds."""
        with signals.shielded(), suppress(SourceError):
            self._abort(domain)
            if not taken.keeps_checkpoint:
                self._remove(domain, checkpoint)

    def _abort(self, domain: Domain) -> None:
        """End the job that is ours, if there is one, and remove its folder."""
        folder = self._folder(domain)
        with suppress(SourceError):  # it has none
            job = self._xml("backup-dumpxml", domain.uuid)
            if _get(job, "server", "socket").startswith(f"{folder}/"):
                self._virsh("domjobabort", domain.uuid)
        with translated(SourceError, f"removing {folder}"):
            while folder.exists():
                with suppress(FileNotFoundError):  # QEMU removes its socket meanwhile
                    folders.remove_tree(folder)

    def _remove(self, domain: Domain, checkpoint: str) -> None:
        """Remove a checkpoint; where its bitmap is lost, what libvirt still knows of it."""
        try:
            self._virsh("checkpoint-delete", domain.uuid, checkpoint)
        except SourceError as error:
            if "bitmap" in error.message.lower():
                with suppress(SourceError):
                    self._virsh("checkpoint-delete", domain.uuid, checkpoint, "--metadata")

    def _files(self, domain: Domain, said: list[str]) -> Iterator[tuple[str, bytes]]:
        """The domain's own XML, and the files of its firmware and its TPM."""
        yield "domain.xml", self._virsh("dumpxml", domain.uuid, "--inactive").encode()
        nvram = domain.xml.findtext("os/nvram", "") or _get(domain.xml, "os/nvram/source", "file")
        tpm = _TPM.get(_get(domain.xml, "devices/tpm/backend[@type='emulator']", "version"))
        state = f"{self.settings.swtpm}/{domain.uuid}/{tpm}" if tpm else ""
        for name, path in (("nvram.fd", nvram.strip()), ("tpm.permall", state)):
            try:
                if path:
                    suffix, content = _content(Path(path))
                    yield name + suffix, content
            except OSError as error:
                said.append(f"{path} was not saved: {error.strerror or error}")

    def _xml(self, *arguments: str) -> Element:
        """What libvirtd describes; it runs as root, and writes XML without entities."""
        return fromstring(self._virsh(*arguments))  # noqa: S314 - see above

    def _program(self, *arguments: str, seconds: float) -> Program:
        command = ("virsh", "--connect", self.settings.uri, *arguments)
        return Program(command, {"LC_ALL": "C"}, b"", seconds)

    def _virsh(self, *arguments: str, stdin: bytes = b"", seconds: float = 0) -> str:
        limit = seconds or self.settings.timeout
        command = self._program(*arguments, seconds=limit).command
        what = f"domain {self.settings.domain}: {arguments[0]}"
        return ask(command, what, timeout_seconds=limit, stdin=stdin, limit=4 * MiB).decode()


def _get(element: Element, path: str, attribute: str) -> str:
    found = element.find(path)
    return "" if found is None else found.get(attribute, "")


def _is_lasting(element: Element) -> bool:
    """Whether a guest can write to a disk, and finds it again after it was off."""
    fixed = {"readonly", "transient"} & {each.tag for each in element}
    return element.get("device", "disk") in {"disk", "lun"} and not fixed


def _checkpoint(domain: Domain, name: str) -> bytes:
    root = Element("domaincheckpoint")
    SubElement(root, "name").text = name
    disks = SubElement(root, "disks")
    for each, kind in domain.formats.items():
        SubElement(disks, "disk", name=each, checkpoint="bitmap" if kind == _TRACKED else "no")
    return tostring(root)


def _job(domain: Domain, folder: Path, bases: Mapping[str, str]) -> bytes:
    root = Element("domainbackup", mode="pull")
    SubElement(root, "server", transport="unix", socket=f"{folder}/nbd/s")
    disks = SubElement(root, "disks")
    for name in domain.formats:
        how = {"backupmode": "full"}
        if base := bases.get(name):
            how = {"backupmode": "incremental", "incremental": base, "exportbitmap": _BITMAP}
        each = SubElement(disks, "disk", how, name=name, exportname=name, backup="yes", type="file")
        SubElement(each, "scratch", file=f"{folder}/{name}")
    return tostring(root)


def _content(path: Path) -> tuple[str, bytes]:
    """What a name is to end with, and all of a file, compressed where it is large.

    Who wrote it may be a hostile QEMU, so it must not lead elsewhere.
    """
    with files.File(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as file:
        content = file.read_bytes(0, _LARGEST + 1)
    is_small = len(content) <= MiB
    packed = content if is_small else zstandard.compress(content)
    if len(content) > _LARGEST or len(packed) > MiB:
        raise OSError("it is too large")
    return "" if is_small else ".zst", packed
