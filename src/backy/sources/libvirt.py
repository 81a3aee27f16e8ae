"""Source "libvirt": the disks of a domain, running or not, and what it needs to boot from them.

A running domain is read through a backup job in pull mode. The job begins with a checkpoint, the
base of the next delta. The disks of a domain that is off are read like those of source "image".
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated
from xml.etree.ElementTree import Element

from pydantic import AfterValidator, Field

from backy.clients.image_format import ImageFile, open_image_file
from backy.clients.virsh import Domain, Virsh, attribute
from backy.config.settings import AbsolutePath, DiskName, Seconds
from backy.errors import ConfigError, SourceError
from backy.model.revision import Consistency
from backy.nbd.remote_image import open_image
from backy.sources import Request, SourceSettings, TakenSnapshot, checked
from backy.sources.checkpoint import CheckpointNames
from backy.sources.libvirt_files import saved_files
from backy.sources.libvirt_job import BITMAP, BackupJob
from backy.sources.scratch import check_space
from backy.sources.snapshot_data import SnapshotData
from backy.system import signals

_SAFE_WITH_THREADS = (8, 2, 3)  # the first version of QEMU without the bug of `_check_harmless`
_DISK_HINT = "Exclude it, and back it up in another way; see docs/sources/libvirt.md."
_OFF_HINT = "Start the domain, or back it up with the source of its storage, such as rbd."
_THREADS_HINT = "Upgrade to QEMU 8.2.3 or later, or remove the iothread from its disks."


def _local(uri: str) -> str:
    if not uri.startswith(("qemu:///", "qemu+unix:///")):
        raise ValueError(
            "disks are read through a Unix socket, so write a local URI: qemu:///system"
        )
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
class _Wanted:
    """The domain as it is now, the image formats of the disks to back up, and its backup job."""

    domain: Domain
    formats: Mapping[str, str]
    job: BackupJob


class LibvirtSource:
    """A Source; see there for the contract."""

    is_shared = False

    def __init__(self, /, **settings: object) -> None:
        self.settings = checked(LibvirtSettings, settings)
        self.paths: dict[str, Path] = {}  # the settings name none
        self._title = f"domain {self.settings.domain}"
        self._names = CheckpointNames(self.settings.server)
        self._virsh = Virsh(self.settings.uri, self.settings.domain, self.settings.timeout)

    def look(self) -> Collection[str]:
        """See Source."""
        return self._wanted().formats

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. Scratch files grow by what the guest overwrites until the end."""
        wanted = self._wanted()
        data = SnapshotData(Consistency.CRASH, image_formats=dict(wanted.formats))
        with ExitStack() as stack:
            if wanted.domain.is_active:
                tracked = self._take(wanted, request, data, stack)
                yield TakenSnapshot(partial(self._open, wanted, request, data, tracked))
            else:
                yield TakenSnapshot(partial(self._open_off, wanted, request, data))

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """See Source. The checkpoints of a domain that is off stay until it runs again."""
        wanted = self._wanted()
        wanted.job.abort()
        for name in self._virsh.call("checkpoint-list", wanted.domain.uuid, "--name").split():
            revision = self._names.revision_of(name)
            if revision and revision not in revisions:
                wanted.job.remove_checkpoint(name)

    def _wanted(self) -> _Wanted:
        domain = self._virsh.domain()
        formats = dict(self._formats(domain))
        folder = self.settings.scratch / self._names.name(domain.uuid)
        return _Wanted(domain, formats, BackupJob(self._virsh, domain, formats, folder))

    def _formats(self, domain: Domain) -> Iterator[tuple[str, str]]:
        """The disks to back up, each with its image format."""
        disks = domain.disks()
        lasting = [name for name, disk in disks.items() if _is_lasting(disk)]
        excluded = self.settings.exclude
        wanted = self.settings.disks or [name for name in lasting if name not in excluded]
        hint = f"It has: {', '.join(lasting) or 'none'}."
        if not wanted:
            raise SourceError(f"{self._title} has no disk to back up", hint)
        if missing := [name for name in wanted if name not in lasting]:
            why = f"{self._title} has no disk {', '.join(missing)} to back up"
            raise SourceError(why, hint)
        for name in wanted:
            disk = disks[name]
            if disk.get("device") == "lun" or disk.find("shareable") is not None:
                why = f"disk {name} of {self._title} is shared: others may write to it"
                raise SourceError(why, _DISK_HINT)
            yield name, attribute(disk, "driver", "type") or "raw"

    def _take(
        self, wanted: _Wanted, request: Request, data: SnapshotData, stack: ExitStack
    ) -> set[str]:
        """Begin the backup job, which `stack` ends; give the disks whose changes it tells."""
        checkpoint, parent = self._names.name(request.revision), request.parent
        bases: dict[str, str] = {}
        if parent:
            common = sorted(parent.disks.keys() & wanted.formats.keys())
            bases = dict.fromkeys(common, self._names.name(parent.id))
        wanted.job.prepare(checkpoint)
        stack.callback(self._end, wanted.job, checkpoint, data)
        self._check_harmless(wanted)
        if not self._is_to_be_frozen(wanted.domain, request):
            return wanted.job.begin(bases, data, time.monotonic() + self.settings.timeout)
        with self._virsh.frozen(wanted.domain, self.settings.freeze_timeout) as freeze:
            tracked = wanted.job.begin(bases, data, freeze.deadline)
        if freeze.failures:
            data.early_warnings.append(f"the guest was not frozen: {freeze.failures[0]}")
        else:
            data.consistency = Consistency.FILESYSTEM
        return tracked

    def _is_to_be_frozen(self, domain: Domain, request: Request) -> bool:
        if not self.settings.freeze or request.is_frozen:
            return False
        return self._virsh.call("domstate", domain.uuid).strip() == "running"

    @contextmanager
    def _open(
        self, wanted: _Wanted, request: Request, data: SnapshotData, tracked: Collection[str]
    ) -> Iterator[SnapshotData]:
        """Connect to the exports of the job."""
        self._save_files(wanted.domain, data)
        with ExitStack() as stack:
            for name in wanted.formats:
                bitmap = BITMAP if name in tracked else None
                image = stack.enter_context(open_image(wanted.job.address(name), bitmap=bitmap))
                if bitmap and not request.parent_has(name, image.size):
                    data.full_read_reasons[name] = "it was resized"
                    image.tracks_changes = False
                data.disks[name] = image
            yield data

    @contextmanager
    def _open_off(
        self, wanted: _Wanted, request: Request, data: SnapshotData
    ) -> Iterator[SnapshotData]:
        """Lock and open the disks of a domain that is off. It cannot be started until the end."""
        self._save_files(wanted.domain, data)
        old_disks = request.parent.disks if request.parent else {}
        with ExitStack() as stack:
            for name in wanted.formats:
                image = open_image_file(self._image_file(wanted, name), self.settings.timeout)
                data.disks[name] = stack.enter_context(image)
                if name in old_disks:
                    data.full_read_reasons[name] = "the domain is off"
            yield data

    def _save_files(self, domain: Domain, data: SnapshotData) -> None:
        swtpm, warnings = self.settings.swtpm, data.early_warnings
        data.files.update(saved_files(self._virsh, domain, swtpm, warnings))

    def _image_file(self, wanted: _Wanted, name: str) -> ImageFile:
        disk, image_format = wanted.domain.disks()[name], wanted.formats[name]
        path = attribute(disk, "source", "file") or attribute(disk, "source", "dev")
        if not path:
            why = f"{self._title} is off, and its disk {name} is no local file or device"
            raise SourceError(why, _OFF_HINT)
        try:
            return checked(ImageFile, {"path": path, "format": image_format, "backing": True})
        except ConfigError as error:
            raise SourceError(
                f"disk {name} of {self._title}: {error.message}", _OFF_HINT
            ) from error

    def _check_harmless(self, wanted: _Wanted) -> None:
        """Raise SourceError where a backup could crash QEMU, or make the guest's writes fail.

        The crash was fixed by https://gitlab.com/qemu-project/qemu/-/commit/f816310d0c32
        """
        has_thread = wanted.domain.xml.find("devices/*/driver[@iothread]") is not None
        if has_thread and self._virsh.qemu_version() < _SAFE_WITH_THREADS:
            why = f"{self._title} has an iothread: a backup can crash this version of QEMU"
            raise SourceError(why, _THREADS_HINT)
        allocated = self._virsh.allocated(wanted.domain)
        held = sum(size for name, size in allocated.items() if name in wanted.formats)
        check_space(self.settings.scratch, held)

    def _end(self, job: BackupJob, checkpoint: str, data: SnapshotData) -> None:
        """End the job. Best effort: the next `remove_all_except` retries, and raises."""
        with signals.shielded(), suppress(SourceError):
            job.abort()
            if not data.keeps_checkpoint:
                job.remove_checkpoint(checkpoint)


def _is_lasting(disk: Element) -> bool:
    """Whether a guest can write to a disk, and what it wrote survives a shutdown."""
    fixed = {"readonly", "transient"} & {child.tag for child in disk}
    return disk.get("device", "disk") in {"disk", "lun"} and not fixed
