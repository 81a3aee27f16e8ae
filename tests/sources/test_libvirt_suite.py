"""Domains keep the promises of a source, running and off."""

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from backy.model.revision import Consistency
from backy.sources import Source
from tests.conformance.source import SourceSuite
from tests.lab.libvirt import Libvirt, Machine
from tests.sources.libvirt_machine import source


class TestOff(SourceSuite):
    consistency = Consistency.CRASH

    @pytest.fixture(autouse=True)
    def _know(self, libvirtd: Libvirt) -> None:
        self.libvirt = libvirtd

    @pytest.fixture
    def folder(self, libvirtd: Libvirt) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=libvirtd.folder) as name:
            Path(name).chmod(0o755)
            yield Path(name)

    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
        with self.libvirt.domain("suite") as machine:
            machine.define(*(image(folder, name, content) for name, content in disks.items()))
            self.prepare(machine)
            yield source(machine)

    def prepare(self, machine: Machine) -> None:
        """Leave it off."""


class TestRunning(TestOff):
    def prepare(self, machine: Machine) -> None:
        machine.start()


def image(folder: Path, name: str, content: bytes) -> Path:
    """A qcow2 for the first disk, a raw image for the second."""
    raw = folder / f"{name}.raw"
    raw.write_bytes(content)
    if name != "vda":
        return raw
    made = folder / f"{name}.qcow2"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
    subprocess.run([*command, raw, made], check=True)
    raw.unlink()
    return made
