"""File systems for the suites: one of a kind for all of them, with a new folder for each test."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.reflink import missing, reflink_file_system

# The suites are no test modules by name, and yet their assertions should say what they compared.
pytest.register_assert_rewrite(
    "tests.conformance.codec",
    "tests.conformance.image",
    "tests.conformance.origin",
    "tests.conformance.source",
    "tests.conformance.store",
    "tests.conformance.target",
)


@pytest.fixture(scope="session")
def reflink_mounts() -> Iterator[dict[str, Path]]:
    """Each kind of file system that can be mounted here."""
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(reflink_file_system(kind))
            for kind in ("xfs", "btrfs")
            if not missing(kind)
        }


@pytest.fixture
def xfs(reflink_mounts: dict[str, Path]) -> Iterator[Path]:
    """An empty folder on XFS."""
    yield from _folder_on(reflink_mounts, "xfs")


@pytest.fixture
def btrfs(reflink_mounts: dict[str, Path]) -> Iterator[Path]:
    """An empty folder on btrfs."""
    yield from _folder_on(reflink_mounts, "btrfs")


def _folder_on(mounts: dict[str, Path], kind: str) -> Iterator[Path]:
    if reason := missing(kind):
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(dir=mounts[kind]) as folder:
        yield Path(folder)
