"""File systems for the suites: one of a kind for all of them, with a new folder for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.volumes import Mounts


@pytest.fixture
def xfs(mounts: Mounts) -> Iterator[Path]:
    """An empty folder on XFS."""
    with mounts.folder("xfs") as folder:
        yield folder


@pytest.fixture
def btrfs(mounts: Mounts) -> Iterator[Path]:
    """An empty folder on btrfs."""
    with mounts.folder("btrfs") as folder:
        yield folder
