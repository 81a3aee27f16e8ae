"""A real qemu-storage-daemon in the place of a VM: monitor, bitmaps and NBD, but no guest.

What a guest would write goes through FUSE exports, so that the daemon's one NBD server is free.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backy.clients.qmp import connect
from backy.errors import SourceError
from tests.cli.runner import wait_for
from tests.lab.needs import absent

_missing = absent("qemu-storage-daemon", "qemu-img", "fallocate")
if os.geteuid() or not Path("/dev/fuse").exists():
    _missing = "only root can use FUSE, where there is any"
needs_storage_daemon = pytest.mark.skipif(bool(_missing), reason=str(_missing))


class StorageDaemon:
    """Disks in `folder`: those whose name begins with q are qcow2, all others raw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "qmp"
        self.disks: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def add(self, name: str, content: bytes) -> None:
        """Make a disk, before `start`."""
        raw = self.folder / f"{name}.raw"
        raw.write_bytes(content)
        if name.startswith("q"):
            convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
            subprocess.run([*convert, raw, self.image(name)], check=True)
            raw.unlink()
        self.disks.append(name)

    def image(self, name: str) -> Path:
        """The file that a disk is kept in."""
        return self.folder / f"{name}.{'qcow2' if name.startswith('q') else 'raw'}"

    def door(self, name: str) -> Path:
        """The file through which the guest sees a disk."""
        return self.folder / f"guest-{name}"

    def start(self) -> None:
        """As a VM that is powered on."""
        arguments = []
        for name in self.disks:
            driver = self.image(name).suffix.removeprefix(".")
            file = {"driver": "file", "filename": str(self.image(name)), "discard": "unmap"}
            node = {"driver": driver, "node-name": name, "discard": "unmap", "file": file}
            arguments += ["--blockdev", json.dumps(node)]
            self.door(name).touch()
            export = f"type=fuse,id=guest-{name},node-name={name},writable=on"
            arguments += ["--export", f"{export},mountpoint={self.door(name)}"]
        monitor = f"socket,path={self.socket},server=on,wait=off,id=monitor"
        arguments += ["--chardev", monitor, "--monitor", "monitor"]
        self.process = subprocess.Popen(["qemu-storage-daemon", *arguments])
        wait_for(self._answers, "the storage daemon listens")

    def _answers(self) -> bool:
        with suppress(SourceError):
            return bool(self.ask("query-version"))
        return False

    def stop(self, *, kill: bool = False) -> None:
        """As a VM that is powered off, or whose machine lost its power."""
        if self.process:
            (self.process.kill if kill else self.process.terminate)()
            self.process.wait()
            self.process = None
        for name in self.disks:
            # Whoever is killed leaves them mounted.
            unmount = ["umount", "--lazy", str(self.door(name))]
            subprocess.run(unmount, check=False, capture_output=True)
        self.socket.unlink(missing_ok=True)

    def write(self, name: str, offset: int, data: bytes) -> None:
        """What the guest writes is in the disk on return."""
        descriptor = os.open(self.door(name), os.O_RDWR)
        try:
            os.pwrite(descriptor, data, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def discard(self, name: str, offset: int, length: int) -> None:
        """What the guest discards reads as zeroes on return."""
        where = ["--offset", str(offset), "--length", str(length), str(self.door(name))]
        subprocess.run(["fallocate", "--punch-hole", *where], check=True)

    def content(self, name: str) -> bytes:
        """What the guest reads now."""
        return self.door(name).read_bytes()

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - the daemon says
        """As an administrator at the monitor."""
        with connect(self.socket, 30) as monitor:
            return monitor.ask(command, **arguments)


@contextmanager
def storage_daemon(folder: Path, **disks: bytes) -> Iterator[StorageDaemon]:
    """A daemon that runs, with these disks; nothing of it is left after the body."""
    daemon = StorageDaemon(folder)
    for name, content in disks.items():
        daemon.add(name, content)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
