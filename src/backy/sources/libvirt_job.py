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
from backy.sources.scratch import make_private
from backy.sources.snapshot_data import SnapshotData
from backy.system import folders

BITMAP = "changes"  # the name of the bitmap in the exports of a job
_TRACKED = "qcow2"  # the only format whose bitmaps libvirt keeps


class BackupJob:
    """The backup job of a domain, which can have one at a time. Its files are in `folder`.

    `formats` has the image format of each disk to back up. All methods may raise SourceError.
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
        """Make the folder, and the checkpoint's XML in it.

        Every user may pass through it: libvirt makes the scratch files in it and gives them to
        QEMU's user. QEMU itself can make files only in the subfolder, where its socket is.
        """
        with translated(SourceError, f"making {self._folder}", "May you write there?"):
            make_private(self._folder)
            folders.make_folder(self._folder / "nbd")
            label = self._domain.xml.findtext("seclabel[@model='dac']/label", "")
            if owner := re.match(r"\+([0-9]{1,9}|[1-3][0-9]{9})\b", label):
                folders.give(self._folder / "nbd", int(owner[1]))
            folders.write_file(self._folder / "checkpoint.xml", self._checkpoint_xml(checkpoint))

    def begin(self, bases: Mapping[str, str], data: SnapshotData, deadline: float) -> set[str]:
        """Begin the job, and give the disks whose exports tell what changed.

        `bases` has the parent's checkpoint of each disk that the parent has. Where that, or the
        new checkpoint, is lost or broken, the job begins without it, and `data` says so. Gives up
        at `deadline` (monotonic).
        """
        usable = dict(bases)
        for name in [disk for disk in bases if self._formats[disk] != _TRACKED]:
            why = f"libvirt has no {usable.pop(name)}: the format is {self._formats[name]}"
            data.full_read_reasons[name] = why
        files = ["/dev/stdin"]
        if _TRACKED in self._formats.values():
            files.append(f"{self._folder}/checkpoint.xml")
        while True:
            seconds = max(1, deadline - time.monotonic())
            arguments = ("backup-begin", self._domain.uuid, *files)
            try:
                self._virsh.call(*arguments, stdin=self._job_xml(usable), timeout_seconds=seconds)
            except SourceError as error:
                if time.monotonic() > deadline or not (usable or files[1:]):
                    raise
                if not usable:
                    why = f"the next backup will read everything: {error.message}"
                    data.early_warnings.append(why)
                    files.pop()
                # The message is in libvirtd's language, but it names the disk.
                named = [disk for disk in usable if f"{disk}'" in error.message]
                for name in named or list(usable):
                    data.full_read_reasons[name] = f"{usable.pop(name)}: {error.message}"
            else:
                return set(usable)

    def address(self, disk: str) -> Address:
        """Where the job exports a disk."""
        return parse_uri(f"nbd+unix:///{disk}?socket={quote(self._socket)}")

    def abort(self) -> None:
        """End the domain's job, if it is ours, and remove the folder."""
        with suppress(SourceError):  # the domain has no job
            job = self._virsh.xml("backup-dumpxml", self._domain.uuid)
            if attribute(job, "server", "socket").startswith(f"{self._folder}/"):
                self._virsh.call("domjobabort", self._domain.uuid)
        with translated(SourceError, f"removing {self._folder}"):
            while self._folder.exists():
                with suppress(FileNotFoundError):  # QEMU removes its socket at the same time
                    folders.remove_tree(self._folder)

    def remove_checkpoint(self, name: str) -> None:
        """Remove a checkpoint. Where its bitmap is lost, remove libvirt's record of it."""
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
