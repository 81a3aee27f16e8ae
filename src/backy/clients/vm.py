"""QEMU as a VM of our own that outlives us: its command line, its overlays, its block jobs."""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, quote

from pydantic import ValidationError

from backy.clients.guest_agent import Agent
from backy.clients.hardware import EMULATOR, Hardware
from backy.clients.program import output_of
from backy.clients.qmp import NotRunningError, connect
from backy.clients.qmp_answers import BackgroundJob, ImageHeader
from backy.clients.rbd import Rbd
from backy.errors import SourceError, UsageError, translated
from backy.system import detached, files, signals
from backy.units import MiB

# Unix sockets in its folder. A monitor serves one connection at a time: CONTROL is ours.
CONTROL, MONITOR, AGENT, SERVER = "control.sock", "monitor.sock", "agent.sock", "backy.sock"
LONGEST_SOCKET = 107  # bytes of the path of a Unix socket, unix(7)
RECONNECT_SECONDS = 7 * 24 * 3600  # for so long requests of the guest wait for a new server
_SECTOR = 512  # bytes; sizes of QEMU's images are multiples of it
_IMG_SECONDS = 60
_QMP_SECONDS = 60
_DEVICES = {"scsi": "scsi-hd", "sata": "ide-hd", "ide": "ide-hd"}  # by libvirt's word for the bus
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

Node = dict[str, object]
"""A node of QEMU's block layer, as blockdev-add takes it."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a disk of a running VM can move to: an image that does not exist yet.

    `word` is rbd:POOL/IMAGE, with ?conf=FILE&user=NAME if need be, qcow2:PATH, or the path of a
    raw file. Methods raise SourceError.
    """

    word: str

    def __post_init__(self) -> None:
        """Raises UsageError if `word` is none of these."""
        self.node()

    def _rbd(self) -> tuple[Rbd, str] | None:
        """The cluster, and the image there; None if it is to be a file. Raises UsageError."""
        kind, _, place = self.word.partition(":")
        if kind != "rbd":
            return None
        image, _, options = place.partition("?")
        if not re.fullmatch("[^/@]+(/[^/@]+){1,2}", image):
            raise UsageError(f"{self.word!a:.200} names no image", "Write rbd:POOL/IMAGE.")
        given = dict(parse_qsl(options))
        return Rbd(given.get("conf", ""), given.get("user", ""), _IMG_SECONDS), image

    @property
    def _file(self) -> tuple[str, Path]:
        """The format and the path."""
        kind, separator, path = self.word.partition(":")
        if not separator or "/" in kind:
            kind, path = "raw", self.word
        if kind not in {"raw", "qcow2"}:
            why = f"a disk of a running VM cannot move to {self.word!a:.200}"
            raise UsageError(why, "Write rbd:POOL/IMAGE, qcow2:PATH, or the path of a raw file.")
        return kind, Path(path).absolute()

    def node(self) -> Node:
        """The image as a node of QEMU, without a name."""
        if place := self._rbd():
            node = json.loads(place[0].node(place[1]).removeprefix("json:"))
        else:
            kind, path = self._file
            file = {"driver": "file", "filename": str(path), "discard": "unmap"}
            node = {"driver": kind, "file": file}
        return {**node, "discard": "unmap"}

    def exists(self) -> bool:
        """Whether there is something of this name, even if that is a link that leads nowhere."""
        place = self._rbd()
        return place[0].exists(place[1]) if place else os.path.lexists(self._file[1])

    def make(self, size: int) -> None:
        """Make the image, for a disk of `size` bytes; a file is for its owner only."""
        size += -size % _SECTOR
        if place := self._rbd():
            place[0].create(place[1], size, {})
            return
        kind, path = self._file
        command = ["qemu-img", "create", "-q", "-f", kind, str(path), str(size)]
        _create(path, command, f"making {path}")


@dataclass(frozen=True, slots=True)
class Overlay:
    """A disk of the VM: a qcow2 file. What it does not have yet, it reads from an NBD export.

    `size` is in bytes. The VM starts from the disk with the lowest `number`. With a `target` the
    disk is to move there.
    """

    path: Path
    size: int
    export: str
    number: int
    bus: str = "virtio"
    target: Destination | None = None

    @property
    def name(self) -> str:
        """The name of the node in QEMU, and of the job that copies the rest to it."""
        return f"disk{self.number}"

    @property
    def backing_name(self) -> str:
        """The name of the node of the export."""
        return f"export{self.number}"

    @property
    def uri(self) -> str:
        """The export, as the file names it. It says which revision the overlay belongs to."""
        return f"nbd+unix:///{quote(self.export)}?socket={quote(str(self.server))}"

    @property
    def server(self) -> Path:
        """The socket of the server."""
        return self.path.with_name(SERVER)

    @property
    def disk(self) -> str:
        """The name of the disk, such as "vda"."""
        return self.path.stem

    def make(self) -> None:
        """Make the overlay, for its owner only. Raises SourceError if it exists."""
        _create(self.path, self.creation(), str(self.path))

    def creation(self) -> list[str]:
        """The command that makes the overlay."""
        command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", self.uri]
        return [*command, str(self.path), str(self.size)]

    def backing(self) -> str:
        """The URI of what it still needs; "" if that is nothing. Raises SourceError."""
        command = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(self.path)]
        answer = output_of(command, str(self.path), timeout_seconds=_IMG_SECONDS, limit=MiB)
        try:
            return ImageHeader.model_validate_json(answer).backing
        except ValidationError as error:
            raise SourceError(f"{self.path}: qemu-img printed something unexpected") from error

    def stream(self, rate: int) -> dict[str, object]:
        """The arguments of QEMU's command block-stream."""
        return {"device": self.name, "job-id": self.name, "auto-dismiss": False, "speed": rate}

    def arguments(self, *, is_whole: bool, has_moved: bool = False) -> Iterator[str]:
        """The arguments of QEMU for this disk; `is_whole`: it needs nothing of the export."""
        file = {"driver": "file", "filename": str(self.path), "discard": "unmap"}
        node: Node = {"driver": "qcow2", "discard": "unmap", "file": file}
        if self.target and has_moved:
            node = self.target.node()
        elif not is_whole:
            server = {"type": "unix", "path": str(self.server)}
            export = {"driver": "nbd", "node-name": self.backing_name, "server": server}
            patience = {"read-only": True, "reconnect-delay": RECONNECT_SECONDS}
            yield from ("-blockdev", json.dumps(export | {"export": self.export} | patience))
            node |= {"backing": self.backing_name}
        yield from ("-blockdev", json.dumps(node | {"node-name": self.name}))
        device = {"driver": _DEVICES.get(self.bus, "virtio-blk-pci"), "drive": self.name}
        about = {"id": f"device{self.number}", "bootindex": self.number}
        yield from ("-device", json.dumps(device | about))


def _create(path: Path, command: Sequence[str], title: str) -> None:
    """Have qemu-img make an image. It would let everybody open it, and follow a link."""
    with translated(SourceError, f"making {path}"):
        files.create(path).close()
    output_of(command, title, timeout_seconds=_IMG_SECONDS)


def command_line(
    folder: Path, name: str, hardware: Hardware, accelerator: str, more: Iterable[str]
) -> list[str]:
    """The command that starts a VM whose sockets are in `folder`; `more` has disks and network.

    QEMU may start no program and change no user then. It stays when the guest powers off, until
    `let_power_off`.
    """

    def socket(name: str) -> str:
        return f"{_escaped(folder / name)},server=on,wait=off"

    return [
        *(EMULATOR, "-name", f"guest={name}", "-nodefaults", "-no-user-config", "-no-shutdown"),
        *("-sandbox", _SANDBOX, "-machine", hardware.machine, "-accel", accelerator),
        *("-cpu", "host" if accelerator == "kvm" else "max", "-smp", str(hardware.processors)),
        *("-m", str(hardware.memory // MiB), "-display", "none", "-device", "VGA"),
        *("-vnc", f"unix:{_escaped(folder)}/vnc.sock", "-serial", f"unix:{socket('serial.sock')}"),
        *("-qmp", f"unix:{socket(CONTROL)}", "-qmp", f"unix:{socket(MONITOR)}"),
        *("-chardev", f"socket,id=agent,path={socket(AGENT)}", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-device", "virtio-scsi-pci"),
        *("-pidfile", str(folder / "qemu.pid")),
        *more,
    ]


def firmware_arguments(code: Path, variables: Path) -> Iterator[str]:
    """The arguments of QEMU for UEFI."""
    for unit, (path, access) in enumerate(((code, "on"), (variables, "off"))):
        drive = f"if=pflash,format=raw,unit={unit},readonly={access},file={_escaped(path)}"
        yield from ("-drive", drive)


def _escaped(path: Path) -> str:
    """A path within an option of QEMU, whose parts end at a comma."""
    return str(path).replace(",", ",,")


class Machine(Protocol):
    """A VM that outlives us, and reads from the server what its overlays do not have yet.

    All methods may raise SourceError.
    """

    def find(self) -> bool:
        """Whether it runs. A guest that was paused because no space was left goes on."""

    def start(self, partial: Collection[Overlay]) -> None:
        """Start it. The `partial` overlays need the server."""

    def server_options(self) -> list[str]:
        """Options of `backy serve` with which it may use the server."""
        return []

    def copy(self, overlay: Overlay, rate: int) -> None:
        """Begin to copy to an overlay what it does not have, at most `rate` bytes a second.

        If it has a target, the whole disk is copied there, to move. 0 is as fast as it can. If that
        was begun before, it goes on with this rate.
        """

    def progress(self, overlay: Overlay) -> tuple[int, bool]:
        """How many bytes of an overlay are done, and whether that is all of it.

        If the disk moves it has moved then, and the guest stands still until `finish`. Raises
        SourceError where copying failed; it can be begun again.
        """

    def finish(self, overlay: Overlay) -> None:
        """Forget the export, and an overlay whose disk has moved. The guest goes on."""

    def ping(self) -> None:
        """Raises SourceError if the guest agent does not answer."""

    def let_go(self) -> bool:
        """From now on it needs no server, and ends when its guest does; True: it has ended."""


class Emulator(Machine):
    """QEMU, which is found by its socket in `folder`; see Machine for the contract."""

    def __init__(
        self, folder: Path, command: Callable[[Collection[Overlay]], list[str]], stack: ExitStack
    ) -> None:
        """`command` gives the command for the partial overlays. `stack` ends the connection."""
        self._folder, self._command, self._stack = folder, command, stack

    def find(self) -> bool:
        """See Machine."""
        try:
            self._monitor = self._stack.enter_context(connect(self._folder / CONTROL, _QMP_SECONDS))
        except NotRunningError:
            return False
        if self._monitor.status() == "io-error":
            self._monitor.ask("cont")
        return True

    def start(self, partial: Collection[Overlay]) -> None:
        """See Machine."""
        log = self._folder / "qemu.log"
        with translated(SourceError, "starting QEMU"):
            detached.start(self._command(partial), log, self._folder / CONTROL).close()
        self.find()

    def copy(self, overlay: Overlay, rate: int) -> None:
        """See Machine."""
        job, disk, name = self._job(overlay), overlay.name, f"{overlay.name}-target"
        if job and not job.error:
            if job.status == "running":
                self._go_on()  # we may have been killed when it began
                self._monitor.ask("block-job-set-speed", device=disk, speed=rate)
            return
        if job:
            self._monitor.ask("job-dismiss", id=disk)
        if not overlay.target:
            self._monitor.ask("block-stream", **overlay.stream(rate), auto_finalize=False)
            return
        with suppress(SourceError):  # it is there if an earlier job failed
            self._monitor.ask("blockdev-del", node_name=name)
        self._monitor.ask("blockdev-add", **overlay.target.node(), node_name=name)
        wanted = {"job_id": disk, "device": disk, "target": name, "sync": "full", "speed": rate}
        modes = {"copy_mode": "write-blocking", "auto_dismiss": False}
        # A write that is under way until the job knows all blocks would not get to the target.
        with self._standing_still():
            self._monitor.ask("blockdev-mirror", **wanted, **modes)
            while (job := self._job(overlay)) and not (job.total_progress or job.error):
                signals.sleep(0.02)

    def progress(self, overlay: Overlay) -> tuple[int, bool]:
        """See Machine."""
        if not (job := self._job(overlay)):
            raise SourceError(f"QEMU has no job that copies {overlay.path}")
        if job.error:
            self._go_on()
            raise SourceError(f"copying the rest to {overlay.path}: {job.error}")
        if job.status == "ready":
            self._monitor.ask("stop")  # so that nothing is written until it is noted who has it
            self._monitor.ask("job-complete", id=job.id)
        if job.status == "pending":  # else the overlay would name no export before it has all
            with self._standing_still():
                self._monitor.ask("job-finalize", id=job.id)
        return job.current_progress, job.status == "concluded"

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        """Stop the guest during the body. Before it QEMU ends what is under way.

        It also makes durable what it has in memory, such as where the clusters of a qcow2 are.
        """
        self._monitor.ask("stop")
        try:
            yield
        finally:
            self._go_on()

    def _job(self, overlay: Overlay) -> BackgroundJob | None:
        jobs = self._monitor.query(list[BackgroundJob], "query-jobs")
        return next((job for job in jobs if job.id == overlay.name), None)

    def finish(self, overlay: Overlay) -> None:
        """See Machine."""
        self._monitor.ask("job-dismiss", id=overlay.name)
        # An overlay that is in use stays. QEMU 7.2 refuses both if the guest powered off at that
        # moment; then `quit` makes it crash, after all is written.
        with self._standing_still():
            for name in (overlay.name, overlay.backing_name):
                with suppress(SourceError):
                    self._monitor.ask("blockdev-del", node_name=name)

    def _go_on(self) -> None:
        if self._monitor.status() == "paused":  # not if the guest has shut down
            self._monitor.ask("cont")

    def ping(self) -> None:
        """See Machine."""
        Agent(self._folder / AGENT, 0.25).close()

    def let_go(self) -> bool:
        """See Machine. If the guest has shut down, QEMU ends now."""
        self._go_on()
        self._monitor.ask("set-action", shutdown="poweroff")
        has_shut_down = self._monitor.status() == "shutdown"
        if has_shut_down:
            with suppress(SourceError):  # it may end before it answers
                self._monitor.ask("quit")
        return has_shut_down
