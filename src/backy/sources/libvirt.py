"""Source "libvirt": the disks of a domain, running or not, and what it needs to boot from them.

A running domain is read through a backup job in pull mode. The job begins with a checkpoint, the
base of the next delta. The disks of a domain that is off are read like those of source "image".
"""

import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from backy.clients.qemu_nbd import ImageFile
from backy.clients.virsh import Domain, Virsh, attribute, is_lasting
from backy.config.settings import AbsolutePath, DiskName, Seconds
from backy.errors import ConfigError, SourceError
from backy.model.revision import Consistency
from backy.nbd.remote_image import open_image
from backy.sources import Request, SourceSettings, TakenSnapshot, checked
from backy.sources.checkpoint import CheckpointNames
from backy.sources.libvirt_job import BITMAP, BackupJob
from backy.sources.scratch import check_space
from backy.sources.snapshot_data import SnapshotData
from backy.system import signals

_SAFE_WITH_THREADS = (8, 2, 3)  # the first version of QEMU without the bug of `_check_harmless`
_TPM = {"1.2": "tpm1.2/tpm-00.permall", "2.0": "tpm2/tpm2-00.permall"}  # where swtpm keeps it
_DISK_HINT = "Exclude it, and back it up in another way; see docs/sources/libvirt.md."
_OFF_HINT = "Start the domain, or back it up with the source of its storage, such as rbd."
_THREADS_HINT = "Upgrade to QEMU 8.2.3 or later, or remove the iothread from its disks."


def _local(uri: str) -> str:
    if not uri.startswith(("qemu:///", "qemu+unix:///")):
        hint = "write a local URI: qemu:///system"
        raise ValueError(f"disks are read through a Unix socket, so {hint}")
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
        return self._job().formats

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. Scratch files grow by what the guest overwrites until the end."""
        job = self._job()
        data = SnapshotData(request, image_formats=dict(job.formats))
        with ExitStack() as stack:
            if job.domain.is_active:
                yield data.taken(partial(self._open, job, self._take(job, data, stack)))
            else:
                yield data.taken(partial(self._open_off, job))

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """See Source. The checkpoints of a domain that is off stay until it runs again."""
        job = self._job()
        job.abort()
        for name in self._virsh.call("checkpoint-list", job.domain.uuid, "--name").split():
            revision = self._names.revision_of(name)
            if revision and revision not in revisions:
                job.remove_checkpoint(name)

    def _job(self) -> BackupJob:
        """The backup job of the domain as it is now. A domain that is off cannot begin it."""
        domain = self._virsh.domain()
        folder = self.settings.scratch / self._names.name(domain.uuid)
        return BackupJob(self._virsh, domain, dict(self._formats(domain)), folder)

    def _formats(self, domain: Domain) -> Iterator[tuple[str, str]]:
        """The disks to back up, each with its image format."""
        disks = domain.disks()
        lasting = [name for name, disk in disks.items() if is_lasting(disk)]
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

    def _take(self, job: BackupJob, data: SnapshotData, stack: ExitStack) -> set[str]:
        """Begin the backup job, which `stack` ends; give the disks whose changes it tells."""
        checkpoint = self._names.name(data.request.revision)
        parents = {name: data.request.parent_of(name) for name in sorted(job.formats)}
        bases = {name: self._names.name(parent) for name, parent in parents.items() if parent}
        job.prepare(checkpoint)
        stack.callback(self._end, job, checkpoint, data)
        self._check_harmless(job)
        wanted = self.settings.freeze and not data.request.is_frozen
        if not wanted or self._virsh.call("domstate", job.domain.uuid).strip() != "running":
            return job.begin(bases, data, time.monotonic() + self.settings.timeout)
        deadline = time.monotonic() + self.settings.freeze_timeout
        with self._virsh.frozen(job.domain, self.settings.freeze_timeout) as failures:
            tracked = job.begin(bases, data, deadline)
        if failures:
            data.early_warnings.append(f"the guest was not frozen: {failures[0]}")
        else:
            data.consistency = Consistency.FILESYSTEM
        return tracked

    def _open(self, job: BackupJob, tracked: Collection[str], data: SnapshotData) -> None:
        """Connect to the exports of the job."""
        self._save_files(job.domain, data)
        for name in job.formats:
            bitmap = BITMAP if name in tracked else None
            image = data.open(name, open_image(job.address(name), bitmap=bitmap))
            if bitmap and not data.request.parent_has(name, image.size):
                data.full_read_reasons[name] = "it was resized"
                image.tracks_changes = False

    def _open_off(self, job: BackupJob, data: SnapshotData) -> None:
        """Lock and open the disks of a domain that is off. It cannot be started until the end."""
        self._save_files(job.domain, data)
        images = {name: self._image_file(job, name) for name in job.formats}
        data.open_files(images, self.settings.timeout, "the domain is off")

    def _save_files(self, domain: Domain, data: SnapshotData) -> None:
        """Save the domain's XML, and the files of its firmware and its TPM, or warn."""
        xml, uuid = domain.xml, domain.uuid
        data.files["domain.xml"] = self._virsh.call("dumpxml", uuid, "--inactive").encode()
        nvram = xml.findtext("os/nvram", "") or attribute(xml, "os/nvram/source", "file")
        tpm = _TPM.get(attribute(xml, "devices/tpm/backend[@type='emulator']", "version"))
        state = f"{self.settings.swtpm}/{uuid}/{tpm}" if tpm else ""
        for name, path in (("nvram.fd", nvram.strip()), ("tpm.permall", state)):
            if path:
                data.save_file(name, Path(path))

    def _image_file(self, job: BackupJob, name: str) -> ImageFile:
        disk, image_format = job.domain.disks()[name], job.formats[name]
        path = attribute(disk, "source", "file") or attribute(disk, "source", "dev")
        if not path:
            why = f"{self._title} is off, and its disk {name} is no local file or device"
            raise SourceError(why, _OFF_HINT)
        try:
            return checked(ImageFile, {"path": path, "format": image_format, "backing": True})
        except ConfigError as error:
            why = f"disk {name} of {self._title}: {error.message}"
            raise SourceError(why, _OFF_HINT) from error

    def _check_harmless(self, job: BackupJob) -> None:
        """Raise SourceError where a backup could crash QEMU, or make the guest's writes fail.

        The crash was fixed by https://gitlab.com/qemu-project/qemu/-/commit/f816310d0c32
        """
        has_thread = job.domain.xml.find("devices/*/driver[@iothread]") is not None
        if has_thread and self._virsh.qemu_version() < _SAFE_WITH_THREADS:
            why = f"{self._title} has an iothread: a backup can crash this version of QEMU"
            raise SourceError(why, _THREADS_HINT)
        allocated = self._virsh.allocated(job.domain)
        held = sum(size for name, size in allocated.items() if name in job.formats)
        check_space(self.settings.scratch, held)

    def _end(self, job: BackupJob, checkpoint: str, data: SnapshotData) -> None:
        """End the job. Best effort: the next `remove_all_except` retries, and raises."""
        with signals.shielded(), suppress(SourceError):
            job.abort()
            if not data.keeps_checkpoint:
                job.remove_checkpoint(checkpoint)
