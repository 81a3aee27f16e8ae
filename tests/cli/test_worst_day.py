"""The worst day: a revision that cannot be read is not a revision that does not exist."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.runner import Backy


@pytest.fixture
def broken(aged: Backy) -> Backy:
    """vm1 has a single revision, and its revision.json is cut."""
    folder = aged.base / "vm1" / "revisions"
    *others, only = aged.revisions("vm1")
    for other in others:
        shutil.rmtree(folder / other)
    (folder / only / "revision.json").write_text("{")
    return aged


@pytest.mark.parametrize(
    "words",
    [
        ["restore", "vm1", "-", "-r", "latest"],
        ["restore", "vm1", "-", "-r", "0"],
        ["restore", "vm1", "-", "-r", "{id}"],
        ["find", "vm1"],
        ["find", "vm1", "-r", "{id}"],
        ["diff", "vm1", "0", "latest"],
        ["tag", "vm1", "+x"],
        ["tag", "vm1", "-r", "{id}", "+x"],
        ["remove", "vm1", "-r", "latest"],
        ["remove", "vm1", "-r", "{id}"],
    ],
)
def test_if_nothing_can_be_read_each_command_says_that_data_may_be_there(
    broken: Backy, words: list[str]
) -> None:
    (only,) = broken.revisions("vm1")
    refused = broken.refuses(6, *(word.format(id=only) for word in words))
    assert "revision.json is cut short" in refused.message
    assert "are probably there" in refused.hint
    assert Path("docs/restore-by-hand.md").exists()
    assert "docs/restore-by-hand.md" in refused.hint


def test_the_list_says_so_too(broken: Backy) -> None:
    said = broken.ok("list", "vm1").err
    assert "revision.json is cut short" in said
    assert "docs/restore-by-hand.md" in said
