"""Every source keeps the promises of a source."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from backy.model.revision import Consistency
from backy.sources import Source
from backy.sources.file import FileSource
from tests.conformance.source import SourceSuite
from tests.lab.devices import device_of, needs_loop_devices
from tests.memory_source import MemorySource


class TestMemory(SourceSuite):
    consistency = Consistency.CRASH

    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
        yield MemorySource(disks)


class TestFiles(SourceSuite):
    consistency = Consistency.NONE

    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
        for name, content in disks.items():
            (folder / f"{name}.img").write_bytes(content)
        yield FileSource(disks={name: str(folder / f"{name}.img") for name in disks})


class TestFilesOnXfs(TestFiles):
    consistency = Consistency.CRASH

    @pytest.fixture
    def folder(self, xfs: Path) -> Path:
        return xfs


class TestFilesOnBtrfs(TestFiles):
    consistency = Consistency.CRASH

    @pytest.fixture
    def folder(self, btrfs: Path) -> Path:
        return btrfs


@needs_loop_devices
class TestBlockDevices(SourceSuite):
    consistency = Consistency.NONE

    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
        with ExitStack() as stack:
            devices = {
                name: str(stack.enter_context(device_of(content, folder)))
                for name, content in disks.items()
            }
            yield FileSource(disks=devices)
