"""A backup job of libvirt in pull mode: its folder, its checkpoint, and the exports it serves.

https://libvirt.org/formatbackup.html, https://libvirt.org/formatcheckpoint.html
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, tostring

from backy.clients.virsh import Domain, Virsh, attribute
from backy.errors import SourceError, translated
from backy.nbd.uri import Address, parse_uri
from backy.sources import SnapshotData
from backy.system import folders

BITMAP = "changes"  # the name of the bitmap in the exports of a job
_TRACKED = "qcow2"  # the only format whose bitmaps libvirt keeps


class BackupJob:
    """The job of one domain, which can have one at a time; everything of it is in `folder`.

    `formats` are those of the disks that are backed up, by name. All methods may raise SourceError.
    """

    def __init__(
        self, virsh: Virsh, domain: Domain, formats: Mapping[str, str], folder: Path
    ) -> None:
        self._virsh = virsh
        self._domain = domain
        self._formats = formats
        self._folder = folder
        self._socket = f"{folder}/nbd/s"

    def prepare(self, checkpoint: str) -> None:
        """Make the folder, with the checkpoint's XML in it.

        QEMU's user has to get through it to the scratch files, which libvirt makes and hands over.
        QEMU itself makes files only in the subfolder for its socket.
        """
        with translated(SourceError, f"making {self._folder}", "May you write there?"):
            for folder in (self._folder.parent, self._folder):
                if not folder.exists():
                    folders.make_folder(folder)
                    folders.allow(folder, 0o711)
            folders.make_folder(self._folder / "nbd")
            label = self._domain.xml.findtext("seclabel[@model='dac']/label", "")
            if owner := re.match(r"\+(\d+)", label):
                folders.give(self._folder / "nbd", int(owner[1]))
            folders.write_file(self._folder / "checkpoint.xml", self._checkpoint_xml(checkpoint))

    def begin(self, bases: Mapping[str, str], data: SnapshotData, deadline: float) -> set[str]:
        """Begin the job, and give the disks whose exports tell what changed since their base.

        `bases` are the checkpoints of the parent, by disk. Where they, or the new checkpoint, are
        lost or broken, it goes without them, and says so in `data`. It must have begun before
        `deadline` (monotonic).
        """
        left = dict(bases)
        for name in [disk for disk in bases if self._formats[disk] != _TRACKED]:
            why = f"libvirt keeps no {left.pop(name)}: the disk is {self._formats[name]}"
            data.full_read_reasons[name] = why
        files = ["/dev/stdin"]
        if _TRACKED in self._formats.values():
            files.append(f"{self._folder}/checkpoint.xml")
        while True:
            seconds = max(1, deadline - time.monotonic())
            arguments = ("backup-begin", self._domain.uuid, *files)
            try:
                self._virsh.call(*arguments, stdin=self._job_xml(left), timeout_seconds=seconds)
            except SourceError as error:
                if time.monotonic() > deadline or not (left or files[1:]):
                    raise
                if not left:
                    data.early_warnings.append(f"the next backup reads all: {error.message}")
                    files.pop()
                # libvirtd may write it in any language, but it names the disk.
                for name in [disk for disk in left if f"{disk}'" in error.message] or [*left]:
                    data.full_read_reasons[name] = f"{left.pop(name)}: {error.message}"
            else:
                return set(left)

    def address(self, disk: str) -> Address:
        """Where a disk is exported while the job runs."""
        return parse_uri(f"nbd+unix:///{disk}?socket={quote(self._socket)}")

    def abort(self) -> None:
        """End the job, if the one that runs is ours, and remove its folder."""
        with suppress(SourceError):  # the domain has no job
            job = self._virsh.xml("backup-dumpxml", self._domain.uuid)
            if attribute(job, "server", "socket").startswith(f"{self._folder}/"):
                self._virsh.call("domjobabort", self._domain.uuid)
        with translated(SourceError, f"removing {self._folder}"):
            while self._folder.exists():
                with suppress(FileNotFoundError):  # QEMU removes its socket meanwhile
                    folders.remove_tree(self._folder)

    def remove_checkpoint(self, name: str) -> None:
        """Remove a checkpoint; where its bitmap is lost, libvirt's record of it."""
        try:
            self._virsh.call("checkpoint-delete", self._domain.uuid, name)
        except SourceError as error:
            if "bitmap" in error.message.lower():
                with suppress(SourceError):
                    self._virsh.call("checkpoint-delete", self._domain.uuid, name, "--metadata")

    def _checkpoint_xml(self, name: str) -> bytes:
        root = Element("domaincheckpoint")
        SubElement(root, "name").text = name
        disks = SubElement(root, "disks")
        for disk, kind in self._formats.items():
            SubElement(disks, "disk", name=disk, checkpoint="bitmap" if kind == _TRACKED else "no")
        return tostring(root)

    def _job_xml(self, bases: Mapping[str, str]) -> bytes:
        root = Element("domainbackup", mode="pull")
        SubElement(root, "server", transport="unix", socket=self._socket)
        disks = SubElement(root, "disks")
        for name in self._formats:
            mode = {"backupmode": "full"}
            if base := bases.get(name):
                mode = {"backupmode": "incremental", "incremental": base, "exportbitmap": BITMAP}
            names = {"name": name, "exportname": name}
            disk = SubElement(disks, "disk", mode, **names, backup="yes", type="file")
            SubElement(disk, "scratch", file=f"{self._folder}/{name}")
        return tostring(root)
