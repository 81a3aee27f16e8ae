"""Fixtures for tests that start programs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backy.system import process
from tests.programs import marked


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    with marked(str(tmp_path)) as mark:
        yield mark


@pytest.fixture
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who ignores SIGTERM in a test is going to do so for ever."""
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.2)
