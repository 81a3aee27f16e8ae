"""Source "qemu": a running VM, through QEMU's monitor; or the disks of a qemu-storage-daemon.

One transaction starts two things for all disks at one moment: a bitmap that records changes from
then on, and a job that saves to a scratch image what the guest is about to overwrite. We read the
scratch images by NBD; they show the disks as they were. Everything that we create in QEMU has a
name with this server's prefix, so the next run finds and removes it.
https://www.qemu.org/docs/master/interop/bitmaps.html
"""

import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field

from backy.clients.guest_agent import frozen
from backy.clients.program import output_of
from backy.clients.qemu_nbd import ImageFileOrPath
from backy.clients.qmp import Monitor, NotRunningError, connect
from backy.clients.qmp_answers import Drive, Graph, Node
from backy.config.settings import AbsolutePath, DiskName, Seconds
from backy.errors import SourceError, translated
from backy.model.revision import Consistency
from backy.nbd.remote_image import open_image
from backy.nbd.uri import parse_uri
from backy.sources import Request, SourceSettings, TakenSnapshot, checked
from backy.sources.checkpoint import CheckpointNames
from backy.sources.qemu_objects import QemuObjects
from backy.sources.scratch import SCRATCH_HINT, check_space, default_scratch, make_private
from backy.sources.snapshot_data import SnapshotData
from backy.system import folders

Answer = dict[str, Any]  # one JSON object of QEMU's
_SAFE_WITH_THREADS, _HAS_BREAK_SNAPSHOT = (8, 2, 3), (10, 1, 0)
_FILTERS = {"throttle", "copy-before-write", "copy-on-read", "zeroinit"}  # the last is Proxmox'
_MOST_FILTERS = 4  # on top of each other
_MOVING = {"inmigrate", "finish-migrate", "postmigrate"}
_THREADS_HINT = "Upgrade to QEMU 8.2.3 or later, or remove the VM's iothreads."


class QemuSettings(SourceSettings):
    """See docs/sources/qemu.md."""

    qmp: AbsolutePath
    agent: AbsolutePath | None = None
    disks: tuple[DiskName, ...] | dict[DiskName, str] = ()
    exclude: tuple[DiskName, ...] = ()
    images: dict[DiskName, ImageFileOrPath] = Field(default={})
    files: dict[DiskName, AbsolutePath] = Field(default={})
    scratch: AbsolutePath = Field(default_factory=default_scratch)
    store_bitmaps: bool = True
    freeze: bool = True
    freeze_timeout: Seconds = Field(default=10, ge=1)
    timeout: Seconds = Field(default=60, ge=1)
    server: str | None = None


@dataclass(frozen=True, slots=True)
class _Disk:
    """A disk to back up. `id` is the id of its scratch node, its job and its export.

    `bitmap` and `parent` are names of bitmaps: the new one, and the parent's, "" for a full read.
    The changes since the parent are in a bitmap of the scratch node: QEMU aborts, and the guest
    with it, if a disk is resized while one of its bitmaps is exported.
    """

    id: str
    node: Node
    bitmap: str
    parent: str

    @property
    def changes(self) -> str | None:
        """The name of the bitmap with the changes since the parent."""
        return "changes" if self.parent else None

    def actions(self, options: Mapping[str, str], *, store: bool) -> Iterator[Answer]:
        """Its part of the transaction. The parent's bitmap stays: the backup may still fail."""
        name = self.node.node_name
        compat = self.node.image.format_specific.data.get("compat")
        store &= self.node.drv == "qcow2" and compat != "0.10"
        add, merge = "block-dirty-bitmap-add", "block-dirty-bitmap-merge"
        yield _action(add, node=name, name=self.bitmap, persistent=store)
        if self.parent:
            parent = {"node": name, "name": self.parent}
            yield _action(add, node=self.id, name=self.changes, disabled=True)
            yield _action(merge, node=self.id, target=self.changes, bitmaps=[parent])
        ids = {"job-id": self.id, "device": name, "target": self.id}
        yield _action("blockdev-backup", **ids, sync="none", **options)


def _action(kind: str, **data: object) -> Answer:
    return {"type": kind, "data": data}


class QemuSource:
    """A Source; see there for the contract."""

    is_shared = False

    def __init__(self, /, **settings: object) -> None:
        self.settings = checked(QemuSettings, settings)
        self.paths = {name: image.path for name, image in self.settings.images.items()}
        self._title = f"QEMU at {self.settings.qmp}"
        self._names = CheckpointNames(self.settings.server)
        self._objects = QemuObjects(self._names, self.settings.qmp, self.settings.scratch)

    def look(self) -> Collection[str]:
        """See Source."""
        data = SnapshotData(Request(""))
        try:
            with self._connected() as monitor:
                return self._disks(monitor, data).keys()
        except NotRunningError as error:
            with self._off(error, data).open() as snapshot:
                return snapshot.disks.keys()

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. Takes nothing where the VM is off; opening locks its images then."""
        data = SnapshotData(request)
        for name, path in self.settings.files.items():
            data.save_file(name, path)
        with ExitStack() as stack:
            try:
                taken = self._take(data, stack)
            except NotRunningError as error:
                taken = self._off(error, data)
            yield taken

    def _off(self, error: NotRunningError, data: SnapshotData) -> TakenSnapshot:
        """The images of a VM that is off, as `error` says, which is raised if none are named."""
        images, timeout = self.settings.images, self.settings.timeout
        if not images:
            raise error
        data.final_checks.append(self._check_off)
        return data.taken(lambda data: data.open_files(images, timeout, "the VM is off"))

    def _check_off(self) -> list[str]:
        """Nothing. Raises SourceError where the VM is on: some builds of QEMU lock no images."""
        with suppress(NotRunningError), self._connected():
            why = "the VM was started while its images were read: they are not of one moment"
            raise SourceError(f"{self._title}: {why}", "Run the backup again.")
        return []

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """See Source."""
        self._remove(lambda revision: revision not in revisions)

    def _remove(self, is_unwanted: Callable[[str], bool]) -> None:
        """Remove all that we created; of the bitmaps, only those of unwanted revisions."""
        with suppress(NotRunningError), self._connected() as monitor:
            self._objects.remove_from(monitor, is_unwanted)
        self._objects.remove_folders()

    def _connected(self) -> AbstractContextManager[Monitor]:
        return connect(self.settings.qmp, self.settings.timeout)

    def _take(self, data: SnapshotData, stack: ExitStack) -> TakenSnapshot:
        """Start the jobs, which `stack` ends. Others can use the monitor meanwhile."""
        scratch = self.settings.scratch
        with self._connected() as monitor:
            if scratch == default_scratch():  # another one must exist: it may not be mounted
                with translated(SourceError, f"making {scratch}", SCRATCH_HINT):
                    make_private(scratch)
            stack.callback(self._end, data)
            disks = self._disks(monitor, data)
            options = self._options(monitor, disks)
            folder = self._make_scratch(disks)
            self._add_scratch(monitor, disks, folder)
            store = self.settings.store_bitmaps
            actions = [disk.actions(options, store=store) for disk in disks.values()]
            self._transact(monitor, list(chain.from_iterable(actions)), data)
        return data.taken(partial(self._open, disks, folder))

    def _open(self, disks: Mapping[str, _Disk], folder: Path, data: SnapshotData) -> None:
        """Export the scratch images, and connect to the exports."""
        with self._connected() as monitor:
            for disk in disks.values():
                names = {"id": disk.id, "name": disk.id, "node_name": disk.id}
                bitmaps = {"bitmaps": [disk.changes]} if disk.parent else {}
                monitor.ask("block-export-add", type="nbd", **names, **bitmaps)
        for name, disk in disks.items():
            address = parse_uri(f"nbd+unix:///{disk.id}?socket={quote(f'{folder}/nbd')}")
            timeout = self.settings.timeout
            data.open(name, open_image(address, bitmap=disk.changes, timeout_seconds=timeout))
            data.image_formats[name] = disk.node.drv
        data.final_checks.append(partial(self._check, len(disks)))

    def _end(self, data: SnapshotData) -> None:
        """Remove all that this backup created; its bitmaps stay if they are to be kept."""
        unwanted = set() if data.keeps_checkpoint else {data.request.revision}
        with suppress(SourceError):  # best effort: the next call retries, and raises
            self._remove(unwanted.__contains__)

    def _check(self, jobs: int) -> list[str]:
        """Warn where the VM was stopped meanwhile. Raises SourceError where a job ended early."""
        with self._connected() as monitor:
            if len(self._objects.jobs(monitor)) != jobs:
                why = "a backup job ended early: what was read is not of one point in time"
                raise SourceError(f"{self._title}: {why}", SCRATCH_HINT)
            is_stopped = monitor.status() == "io-error"
        why = f"the VM is stopped: perhaps {self.settings.scratch} has no space left"
        return [f"{self._title}: {why}"] if is_stopped else []

    def _disks(self, monitor: Monitor, data: SnapshotData) -> dict[str, _Disk]:
        """The disks to back up, by name. Fills `full_read_reasons`, see Snapshot."""
        devices, nodes = _devices(monitor), _nodes(monitor)
        request, disks = data.request, {}
        bitmap = self._names.name(request.revision)
        for number, (name, place) in enumerate(self._chosen(devices).items()):
            if not (node := nodes.get(place)):
                existing = ", ".join(devices or nodes)
                raise SourceError(f"{self._title}: no disk {place!r}", f"It has: {existing}.")
            if parent := request.parent_of(name):
                parent = self._names.name(parent)
                had = request.parent_has(name, node.image.virtual_size)
                if reason := _why_unusable(node, parent, is_same_size=had):
                    data.full_read_reasons[name], parent = reason, ""
            disks[name] = _Disk(f"{self._objects.prefix}{number}", node, bitmap, parent)
        if not disks:
            hint = "Name its disks in `disks`."
            raise SourceError(f"{self._title}: there is no disk to back up", hint)
        return disks

    def _chosen(self, devices: dict[str, str]) -> dict[str, str]:
        """The nodes of the disks that the settings choose, by name, in alphabetical order."""
        wanted = self.settings.disks or devices
        places = wanted if isinstance(wanted, dict) else {name: name for name in wanted}
        chosen = sorted(places.keys() - set(self.settings.exclude))
        return {name: devices.get(places[name], places[name]) for name in chosen}

    def _options(self, monitor: Monitor, disks: Mapping[str, _Disk]) -> dict[str, str]:
        """Options of the jobs. Raises SourceError where a backup could harm the guest.

        When a scratch image cannot grow, only the backup should fail, not the guest's writes.
        Before QEMU 10.1 no option does that, so some space must be free at least. Versions before
        8.2.3 may abort, and the VM with them, when a client closes a connection to a disk that
        has an iothread: https://gitlab.com/qemu-project/qemu/-/commit/f816310d0c32
        """
        version, status = monitor.version(), monitor.status()
        if status in _MOVING:  # without locks, the disks may have changed on the other host
            why = f"the VM is moving from or to another host, or its RAM is being saved ({status})"
            raise SourceError(f"{self._title}: {why}", "Run it where the VM is, when that is over.")
        if status and version < _SAFE_WITH_THREADS and monitor.ask("query-iothreads"):
            why = "this version can crash when a disk with an iothread is backed up"
            raise SourceError(f"{self._title}: {why}", _THREADS_HINT)
        if version >= _HAS_BREAK_SNAPSHOT:
            return {"on-cbw-error": "break-snapshot"}
        held = sum(disk.node.image.actual_size for disk in disks.values())
        check_space(self.settings.scratch, held)
        return {}

    def _make_scratch(self, disks: Mapping[str, _Disk]) -> Path:
        """Make a folder with a scratch image for each disk, which QEMU's user owns.

        The folder around it stays ours, so that nobody else can make one that looks like it.
        """
        ours = self.settings.scratch / f"{self._objects.prefix}{secrets.token_hex(8)}"
        folder = ours / "qemu"
        with translated(SourceError, f"making {ours}", SCRATCH_HINT):
            make_private(ours)
            folders.make_folder(folder)
            for disk in disks.values():
                image, size = str(folder / disk.id), str(disk.node.image.virtual_size)
                command = ("qemu-img", "create", "-q", "-f", "qcow2", image, size)
                output_of(command, f"making {image}", timeout_seconds=self.settings.timeout)
            owner = self.settings.qmp.stat().st_uid
            # The folder comes last: its owner could put a link where we write.
            for path in (*folder.iterdir(), folder) if owner != os.geteuid() else ():
                folders.give(path, owner)
        return folder

    def _add_scratch(self, monitor: Monitor, disks: Mapping[str, _Disk], folder: Path) -> None:
        """Start QEMU's NBD server, and put the scratch images on top of the disks."""
        place = {"type": "unix", "data": {"path": f"{folder}/nbd"}}
        monitor.ask("nbd-server-start", addr=place)
        for disk in disks.values():
            # It need not survive a power cut, and no guest should wait for a flush.
            options = {"driver": "qcow2", "cache": {"no-flush": True}}
            file = {"driver": "file", "filename": str(folder / disk.id)}
            names = {"node_name": disk.id, "backing": disk.node.node_name}
            monitor.ask("blockdev-add", **options, **names, file=file)

    def _transact(self, monitor: Monitor, actions: list[Answer], data: SnapshotData) -> None:
        """Execute all actions at one moment, with the guest's file systems frozen if possible."""
        agent, limit = self.settings.agent, self.settings.freeze_timeout
        wanted = agent and self.settings.freeze and not data.request.is_frozen
        if not agent or not wanted or monitor.status() != "running":
            monitor.ask("transaction", actions=actions)
            return
        with frozen(agent, limit) as failures:
            monitor.ask("transaction", limit / 2, actions=actions)
        data.early_warnings += failures[:1]
        data.consistency = Consistency.CRASH if failures else Consistency.FILESYSTEM


def _nodes(monitor: Monitor) -> dict[str, Node]:
    """All nodes, by name; for a filter, the node below it.

    A throttle limits the guest and not its backup, and only a node below it can store a bitmap.
    The filter of somebody else's backup job goes away with that job, and bitmaps on it. After
    Proxmox VE has moved a disk there is a filter that the other host would not have.
    """
    nodes = {node.node_name: node for node in monitor.query(list[Node], "query-named-block-nodes")}
    if filters := [name for name, node in nodes.items() if node.drv in _FILTERS]:
        graph = monitor.query(Graph, "x-debug-query-block-graph")
        names = {node.id: node.name for node in graph.nodes}
        edges = [edge for edge in graph.edges if edge.name == "file"]
        below = {names.get(edge.parent): names.get(edge.child, "") for edge in edges}
        for _ in range(_MOST_FILTERS):
            nodes |= {name: nodes.get(below.get(name, ""), nodes[name]) for name in filters}
    return nodes


def _devices(monitor: Monitor) -> dict[str, str]:
    """The nodes of all disks that the guest can write to, by the id of their device or drive."""
    devices: dict[str, str] = {}
    for drive in monitor.query(list[Drive], "query-block"):
        node = drive.inserted
        if node and not node.ro and not drive.removable:
            path = drive.qdev
            match = re.fullmatch(r"(?:/machine/peripheral/)?([^/]+)(?:/.*)?", path)
            given = match[1] if match else drive.device or path
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", given).strip("-._")[:64]
            if name in devices or not name:
                why = f"two disks would be called {name!r}" if name else "a disk has no name"
                raise SourceError(why, "Give them names in `disks`.")
            devices[name] = node.node_name
    return devices


def _why_unusable(node: Node, name: str, *, is_same_size: bool) -> str:
    """Why a bitmap cannot tell what changed since the parent; "" where it can."""
    bitmaps = {bitmap.name: bitmap for bitmap in node.dirty_bitmaps}
    bitmap = bitmaps.get(name)
    if not bitmap:
        return f"its bitmap {name} is gone"
    if bitmap.inconsistent:
        return f"its bitmap {name} is inconsistent, because QEMU ended without storing it"
    if not bitmap.recording:
        return f"its bitmap {name} was switched off"
    return "" if is_same_size else "its size changed"
