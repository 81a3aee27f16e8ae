"""File systems for the suites: one of a kind for all of them, with a new folder for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.volumes import Mounts

# The suites are no test modules by name, and yet their assertions should say what they compared.
pytest.register_assert_rewrite(
    "tests.conformance.codec",
    "tests.conformance.image",
    "tests.conformance.origin",
    "tests.conformance.source",
    "tests.conformance.store",
    "tests.conformance.target",
)


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
