"""Source "qemu": a VM that runs, through QEMU's monitor; or what qemu-storage-daemon serves.

One transaction over all disks starts a bitmap of what changes from here on, and for each disk a
job that copies what the guest is about to overwrite to a scratch image above that disk. These
images are what we read, by NBD. What is ours in QEMU has our names, and is found by them.
https://www.qemu.org/docs/master/interop/bitmaps.html
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field

from backy.clients.guest_agent import frozen
from backy.clients.program import ask
from backy.clients.qmp import Monitor, NotRunningError, connect
from backy.config.settings import AbsolutePath, DiskName, Seconds
from backy.errors import SourceError, translated
from backy.image.image import Image
from backy.model.revision import Consistency
from backy.nbd.remote_image import open_image
from backy.nbd.uri import parse_uri
from backy.sources import Request, SnapshotData, SourceSettings, checked
from backy.sources.checkpoint import CheckpointNames
from backy.sources.image_file import ImageSource
from backy.system import folders
from backy.units import format_size

Answer = dict[str, Any]  # what QEMU says of one thing
_CHANGES = "-changes"  # after a bitmap's name: what changed since the parent, for one backup
_SAFE_WITH_THREADS, _HAS_BREAK_SNAPSHOT = (8, 2, 3), (10, 1, 0)
_SPARE = 10  # the scratch folder must have room for a tenth of what the disks hold
_SCRATCH_HINT = "Let `scratch` name a folder with more room, which QEMU may enter, too."


class QemuSettings(SourceSettings):
    """See docs/sources/qemu.md."""

    qmp: AbsolutePath
    agent: AbsolutePath | None = None
    disks: tuple[DiskName, ...] | dict[DiskName, str] = ()
    exclude: tuple[DiskName, ...] = ()
    images: dict[DiskName, Any] = Field(default={})
    scratch: AbsolutePath = Path("/var/tmp")  # noqa: S108 - the folder in it has a secret name
    freeze: bool = True
    freeze_timeout: Seconds = Field(default=10, ge=1)
    timeout: Seconds = Field(default=60, ge=1)
    server: str | None = None


@dataclass(frozen=True, slots=True)
class _Disk:
    """One disk. `id` is that of its scratch node, job and export; `parent` is a bitmap's, or ""."""

    id: str
    node: Answer
    bitmap: str
    parent: str

    @property
    def changes(self) -> str | None:
        """The bitmap that only we read, and only during this backup."""
        return self.bitmap + _CHANGES if self.parent else None

    def actions(self, options: Mapping[str, str]) -> Iterator[Answer]:
        """Its part of the transaction. The parent's bitmap stays as it is: we may yet fail."""
        name = self.node["node-name"]
        compat = self.node["image"].get("format-specific", {}).get("data", {}).get("compat")
        add, can_store = "block-dirty-bitmap-add", self.node["drv"] == "qcow2" and compat != "0.10"
        yield _action(add, node=name, name=self.bitmap, persistent=can_store)
        if self.parent:
            yield _action(add, node=name, name=self.changes, disabled=True)
            merge = "block-dirty-bitmap-merge"
            yield _action(merge, node=name, target=self.changes, bitmaps=[self.parent])
        ids = {"job-id": self.id, "device": name, "target": self.id}
        yield _action("blockdev-backup", **ids, sync="none", **options)


def _action(kind: str, **data: object) -> Answer:
    return {"type": kind, "data": data}


@dataclass
class _QemuSnapshot(SnapshotData):
    """What was taken of a VM that runs."""

    source: QemuSource = field(kw_only=True)

    def warnings(self) -> list[str]:
        """See Snapshot. Raises SourceError where what was read is not of one point in time."""
        return [*self.early_warnings, *self.source.look(len(self.disks))]


class QemuSource:
    """A Source; see there for the contract."""

    is_shared = False

    def __init__(self, /, **settings: object) -> None:
        self.settings = checked(QemuSettings, settings)
        self._name = f"QEMU at {self.settings.qmp}"
        self._names = CheckpointNames(self.settings.server)
        images = self.settings.images
        self._images = ImageSource(disks=images) if images else None
        self.paths = self._images.paths if self._images else {}
        owner = f"{self._names.name('')} {self.settings.qmp}"
        # Of nodes, jobs, exports and our folder. The name of a node has at most 31 characters.
        self._prefix = f"backy-{sha256(owner.encode()).hexdigest()[:12]}-"

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[SnapshotData]:
        """See Source."""
        with ExitStack() as stack:
            try:
                taken = self._take(request, stack)
            except NotRunningError:
                if not self._images:
                    raise
                taken = stack.enter_context(self._images.snapshot(request))
                known = request.parent.disks if request.parent else {}
                taken.full_read_reasons = {
                    name: "the VM is off" for name in taken.disks if name in known
                }
            yield taken

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """See Source."""
        self._remove(lambda revision: revision not in revisions)

    def _remove(self, is_unwanted: Callable[[str], bool]) -> None:
        """Remove all that is ours, but of the bitmaps only those of unwanted revisions."""
        with suppress(NotRunningError), self._connected() as monitor:
            self._clean(monitor, is_unwanted)
        for folder in self._folders():
            with translated(SourceError, f"removing {folder}"):
                folders.remove_tree(folder)

    def look(self, jobs: int) -> list[str]:
        """Tell what befell the VM while it was read. Raises SourceError where a job ended."""
        with self._connected() as monitor:
            if len(self._ours(monitor, "query-block-jobs", "device")) != jobs:
                why = "a backup job ended early: what was read is not of one point in time"
                raise SourceError(f"{self._name}: {why}", _SCRATCH_HINT)
            is_stopped = _status(monitor) == "io-error"
        why = f"the VM stands still: perhaps {self.settings.scratch} has no room left"
        return [f"{self._name}: {why}"] if is_stopped else []

    def _connected(self) -> AbstractContextManager[Monitor]:
        return connect(self.settings.qmp, self.settings.timeout)

    def _folders(self) -> list[Path]:
        with translated(SourceError, f"looking into {self.settings.scratch}", _SCRATCH_HINT):
            names = folders.list_folder(self.settings.scratch)
        return [self.settings.scratch / name for name in names if name.startswith(self._prefix)]

    def _ours(self, monitor: Monitor, query: str, key: str) -> list[str]:
        found = [each.get(key, "") for each in monitor.ask(query)]
        return [name for name in found if name.startswith(self._prefix)]

    def _take(self, request: Request, stack: ExitStack) -> SnapshotData:
        """Begin. What is to be ended is in `stack`; the monitor is free for others meanwhile."""
        images: dict[str, Image] = {}
        taken = _QemuSnapshot(images, Consistency.CRASH, source=self)
        with self._connected() as monitor:
            stack.callback(self._end, request, taken)
            disks = self._disks(monitor, request, taken.full_read_reasons)
            options = self._options(monitor, disks)
            folder = self._make_scratch(disks)
            self._serve(monitor, disks, folder)
            actions = [each for one in disks.values() for each in one.actions(options)]
            taken.consistency = self._transact(monitor, actions, request, taken.early_warnings)
            for one in disks.values():
                named = {"id": one.id, "name": one.id, "node_name": one.id}
                bitmaps = {"bitmaps": [one.changes]} if one.parent else {}
                monitor.ask("block-export-add", type="nbd", **named, **bitmaps)
        for name, one in disks.items():
            address = parse_uri(f"nbd+unix:///{one.id}?socket={quote(f'{folder}/nbd')}")
            image = open_image(address, bitmap=one.changes, timeout_seconds=self.settings.timeout)
            images[name] = stack.enter_context(image)
        return taken

    def _end(self, request: Request, taken: SnapshotData) -> None:
        """Leave nothing in QEMU but the bitmaps of others and, once kept, of this revision."""
        with suppress(
            SourceError
        ):  # what fails here, the next `remove_all_except` finds, and fails
            self._remove(
                lambda revision: revision == request.revision and not taken.keeps_checkpoint
            )

    def _disks(self, monitor: Monitor, request: Request, whole: dict[str, str]) -> dict[str, _Disk]:
        """What is to be backed up. Where all of a known disk must be read, `whole` says why."""
        nodes = {each["node-name"]: each for each in monitor.ask("query-named-block-nodes")}
        disks = {}
        for number, (name, place) in enumerate(self._chosen(_devices(monitor)).items()):
            if place not in nodes:
                there = ", ".join(_devices(monitor)) or ", ".join(nodes)
                raise SourceError(f"{self._name}: no disk {place!r}", f"There is: {there}.")
            parent = ""
            if request.parent and name in request.parent.disks:
                parent = self._names.name(request.parent.id)
                had = request.parent_has(name, nodes[place]["image"]["virtual-size"])
                if reason := _why_whole(nodes[place], parent, had=had):
                    whole[name], parent = reason, ""
            bitmap = self._names.name(request.revision)
            disks[name] = _Disk(f"{self._prefix}{number}", nodes[place], bitmap, parent)
        if not disks:
            raise SourceError(f"{self._name}: there is no disk to back up", "Name some in `disks`.")
        return disks

    def _chosen(self, devices: dict[str, str]) -> dict[str, str]:
        """The nodes of those that the settings name and do not exclude, ordered by name."""
        wanted = self.settings.disks or devices
        places = wanted if isinstance(wanted, dict) else {name: name for name in wanted}
        left = sorted(places.keys() - set(self.settings.exclude))
        return {name: devices.get(places[name], places[name]) for name in left}

    def _options(self, monitor: Monitor, disks: Mapping[str, _Disk]) -> dict[str, str]:
        """Do the guest no harm: a lack of room for scratch images must break only the backup.

        Before QEMU 10.1 there is no option for that; there must be some room at least. Versions
        before 8.2.3 may abort, and the VM with them, when a client closes a connection to a disk
        that has an iothread: https://gitlab.com/qemu-project/qemu/-/commit/f816310d0c32
        """
        found = monitor.ask("query-version")["qemu"]
        version = (found["major"], found["minor"], found["micro"])
        is_vm = bool(_status(monitor))
        if is_vm and version < _SAFE_WITH_THREADS and monitor.ask("query-iothreads"):
            why = "this version can end when a disk with an iothread is backed up"
            raise SourceError(f"{self._name}: {why}", "Take QEMU 8.2.3, or the iothreads from it.")
        if version >= _HAS_BREAK_SNAPSHOT:
            return {"on-cbw-error": "break-snapshot"}
        held = sum(each.node["image"].get("actual-size", 0) for each in disks.values())
        with translated(SourceError, f"looking for room in {self.settings.scratch}", _SCRATCH_HINT):
            there = os.statvfs(self.settings.scratch)
        if (free := there.f_bavail * there.f_frsize) < held // _SPARE:
            why = f"{format_size(free)} are free, {format_size(held // _SPARE)} may be needed"
            raise SourceError(f"{self.settings.scratch}: {why}", _SCRATCH_HINT)
        return {}

    def _make_scratch(self, disks: Mapping[str, _Disk]) -> Path:
        """A new folder with an image for each disk, all of which QEMU's user owns."""
        folder = self.settings.scratch / f"{self._prefix}{secrets.token_hex(8)}"
        with translated(SourceError, f"making {folder}", _SCRATCH_HINT):
            folders.make_folder(folder)
            for one in disks.values():
                image, size = str(folder / one.id), str(one.node["image"]["virtual-size"])
                command = ("qemu-img", "create", "-q", "-f", "qcow2", image, size)
                ask(command, f"making {image}", timeout_seconds=self.settings.timeout)
            owner = self.settings.qmp.stat().st_uid
            # The folder comes last: its owner could put a link where we write.
            for path in (*folder.iterdir(), folder) if owner != os.geteuid() else ():
                folders.give(path, owner)
        return folder

    def _serve(self, monitor: Monitor, disks: Mapping[str, _Disk], folder: Path) -> None:
        """Start QEMU's NBD server, and put the scratch images above the disks."""
        place = {"type": "unix", "data": {"path": f"{folder}/nbd"}}
        monitor.ask("nbd-server-start", addr=place)
        for one in disks.values():
            # It need not outlive a power cut, and no guest should wait until it could.
            options = {"driver": "qcow2", "cache": {"no-flush": True}}
            file = {"driver": "file", "filename": str(folder / one.id)}
            names = {"node_name": one.id, "backing": one.node["node-name"]}
            monitor.ask("blockdev-add", **options, **names, file=file)

    def _transact(
        self, monitor: Monitor, actions: list[Answer], request: Request, said: list[str]
    ) -> Consistency:
        """Do all at once, while the guest holds still if it can."""
        agent, limit = self.settings.agent, self.settings.freeze_timeout
        wanted = agent and self.settings.freeze and not request.is_frozen
        if not agent or not wanted or _status(monitor) != "running":
            monitor.ask("transaction", actions=actions)
            return Consistency.CRASH
        with frozen(agent, limit) as failures:
            monitor.ask("transaction", limit / 2, actions=actions)
        said += failures[:1]
        return Consistency.CRASH if failures else Consistency.FILESYSTEM

    def _clean(self, monitor: Monitor, is_unwanted: Callable[[str], bool]) -> None:
        self._stop_serving(monitor)
        jobs = self._ours(monitor, "query-block-jobs", "device")
        for name in jobs:
            monitor.ask("block-job-cancel", device=name, force=True)
        monitor.wait_until(lambda: not self._ours(monitor, "query-block-jobs", "device"), "a job")
        for name in self._ours(monitor, "query-named-block-nodes", "node-name"):
            monitor.ask("blockdev-del", node_name=name)
        for node in monitor.ask("query-named-block-nodes"):
            for name in [each.get("name", "") for each in node.get("dirty-bitmaps", [])]:
                revision = self._names.revision_of(name.removesuffix(_CHANGES))
                if revision and (name.endswith(_CHANGES) or is_unwanted(revision)):
                    monitor.ask("block-dirty-bitmap-remove", node=node["node-name"], name=name)
        if jobs and _status(monitor) == "io-error":  # for lack of room, and now it goes
            monitor.ask("cont")

    def _stop_serving(self, monitor: Monitor) -> None:
        """Remove our exports; and stop the NBD server, if it is ours and nobody else uses it."""
        nbd = [each["id"] for each in monitor.ask("query-block-exports") if each["type"] == "nbd"]
        if self._folders() and all(each.startswith(self._prefix) for each in nbd):
            try:
                monitor.ask("nbd-server-stop")
            except SourceError as error:
                if "not running" not in error.message:
                    raise
        for name in self._ours(monitor, "query-block-exports", "id"):
            monitor.ask("block-export-del", id=name, mode="hard")
        monitor.wait_until(
            lambda: not self._ours(monitor, "query-block-exports", "id"), "an export"
        )


def _status(monitor: Monitor) -> str:
    """What the VM does; "" of a storage daemon, which has no such command."""
    with suppress(SourceError):
        return str(monitor.ask("query-status")["status"])
    return ""


def _devices(monitor: Monitor) -> dict[str, str]:
    """The nodes of all disks that the guest can write to, by the id of the device or drive."""
    devices: dict[str, str] = {}
    for device in monitor.ask("query-block"):
        node = device.get("inserted")
        if node and not node["ro"] and not device["removable"]:
            path = device.get("qdev", "")
            match = re.fullmatch(r"(?:/machine/peripheral/)?([^/]+)(?:/.*)?", path)
            given = match[1] if match else device["device"] or path
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", given).strip("-._")[:64]
            if name in devices:
                raise SourceError(f"two disks would be called {name!r}", "Name them in `disks`.")
            devices[name] = node["node-name"]
    return devices


def _why_whole(node: Answer, name: str, *, had: bool) -> str:
    """Why a bitmap does not say what changed since the parent; "" where it does."""
    bitmaps = {each.get("name"): each for each in node.get("dirty-bitmaps", [])}
    bitmap = bitmaps.get(name)
    if not bitmap:
        return f"its bitmap {name} is gone"
    if bitmap.get("inconsistent"):
        return f"its bitmap {name} is inconsistent, as QEMU ended without storing it"
    if not bitmap["recording"]:
        return f"its bitmap {name} was switched off"
    return "" if had else "its size is another"
