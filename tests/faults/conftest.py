"""Where the workloads of the faults run."""

from pathlib import Path

import pytest


@pytest.fixture(params=["chunks", "images"])
def place(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A store, and an empty folder on a file system that can have it."""
    store: str = request.param
    name = {"chunks": "tmp_path", "images": "reflink_folder"}[store]
    return store, request.getfixturevalue(name)
