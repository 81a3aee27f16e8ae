"""An RBD source keeps the promises of every source."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from backy.model.revision import Consistency
from backy.sources import Source
from backy.sources.rbd import RbdSource
from tests.conformance.source import SourceSuite
from tests.lab.ceph import Cluster
from tests.sources.rbd_machine import unique


class TestRbd(SourceSuite):
    consistency = Consistency.CRASH

    @pytest.fixture(autouse=True)
    def _cluster(self, ceph: Cluster) -> None:
        self.ceph = ceph

    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
        images = {}
        for name, content in disks.items():
            images[name] = f"rbd/{unique('suite')}"
            (folder / name).write_bytes(content)
            self.ceph.rbd("import", "--no-progress", str(folder / name), images[name])
        yield RbdSource(disks=images, conf=str(self.ceph.conf))
