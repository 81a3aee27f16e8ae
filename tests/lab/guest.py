"""A real VM, emulated: a small Linux with the guest agent that writes to its disks all the time."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from backy.clients.qmp import connect
from backy.errors import SourceError
from tests.cli.runner import wait_for
from tests.lab.needs import absent

SCRIPT = Path(__file__).with_name("guest-build.sh")
MIB = 1024**2
_missing = absent("qemu-system-x86_64", "qemu-img", "mkfs.ext4", "debugfs", "apt-get", "dpkg-deb")
needs_guest = pytest.mark.skipif(bool(_missing), reason=str(_missing))


def built() -> Path:
    """The folder with the guest's kernel and initrd: built once, by whoever asks first."""
    key = sha256(SCRIPT.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"backy-guest-{os.geteuid()}-{key}")
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            subprocess.run([SCRIPT, folder], check=True, stdout=subprocess.DEVNULL, timeout=900)
            (folder / "done").touch()
    return folder


class Guest:
    """A VM in `folder`, with the qcow2 disk "vda" and the raw disk "vdb", both ext4.

    `options` are added to QEMU's, and `device` to those of each disk. `under` are the words before
    QEMU: a program that runs it.
    """

    def __init__(self, folder: Path, *options: str, device: str = "") -> None:
        self.folder = folder
        self.socket, self.agent = folder / "qmp", folder / "agent"
        self.disks = {"vda": folder / "vda.qcow2", "vdb": folder / "vdb.raw"}
        self.process: subprocess.Popen[bytes] | None = None
        self._options, self._device = options, device
        self.under: list[str] = []
        for name, path in self.disks.items():
            raw = folder / f"{name}.raw"
            with raw.open("wb") as file:
                file.truncate(48 * MIB)
            subprocess.run(["mkfs.ext4", "-q", "-F", raw], check=True)
            if path != raw:
                convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
                subprocess.run([*convert, raw, path], check=True)
                raw.unlink()

    def _command(self) -> list[str]:
        command = [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "128", "-machine", "q35",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-serial", f"file:{self.folder / 'console'}",
            "-qmp", f"unix:{self.socket},server=on,wait=off",
            "-chardev", f"socket,path={self.agent},server=on,wait=off,id=agent",
            "-device", "virtio-serial",
            "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
        ]  # fmt: skip
        for name, path in self.disks.items():
            file = {"driver": "file", "filename": str(path), "discard": "unmap"}
            node = {"driver": path.suffix.removeprefix("."), "node-name": f"node-{name}"}
            command += ["-blockdev", json.dumps(node | {"discard": "unmap", "file": file})]
            command += ["-device", f"virtio-blk-pci,drive=node-{name},id={name}{self._device}"]
        return [*command, *self._options]

    def start(self) -> None:
        """Power on without an operating system, and execute nothing: such a VM is there at once."""
        self._start("-S")

    def boot(self) -> None:
        """Power on, and wait until the guest writes and the agent was started."""
        folder = built()
        kernel = ["-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.img")]
        self._start(*kernel, "-append", "console=ttyS0 quiet panic=-1")
        wait_for(self._is_ready, "the guest runs")

    def _start(self, *options: str) -> None:
        (self.folder / "console").unlink(missing_ok=True)
        with (self.folder / "stderr").open("wb") as stderr:
            command = [*self.under, *self._command(), *options]
            self.process = subprocess.Popen(command, stderr=stderr)
        wait_for(self._listens, "QEMU listens")

    def _listens(self) -> bool:
        assert self.process
        assert self.process.poll() is None, (self.folder / "stderr").read_text()
        with suppress(SourceError):  # the socket is there before QEMU listens at it
            return bool(self.ask("query-version"))
        return False

    def _is_ready(self) -> bool:
        console = self.folder / "console"
        return console.exists() and "guest: ready" in console.read_text(errors="replace")

    def stop(self, *, kill: bool = False) -> None:
        """Power off, without a word to the guest; `kill`: QEMU ends without a word, too."""
        if self.process:
            (self.process.kill if kill else self.process.terminate)()
            self.process.wait()
            self.process = None
        self.socket.unlink(missing_ok=True)

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - QEMU says
        """As an administrator at the monitor."""
        with connect(self.socket, 30) as monitor:
            return monitor.ask(command, **arguments)


@contextmanager
def guest(folder: Path, *options: str, device: str = "") -> Iterator[Guest]:
    """A VM that is off; nothing of it runs after the body."""
    vm = Guest(folder, *options, device=device)
    try:
        yield vm
    finally:
        vm.stop()
