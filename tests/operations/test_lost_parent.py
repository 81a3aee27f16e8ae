"""A backup whose parent's pages are lost reads their blocks again, and calls nobody a liar."""

from pathlib import Path
from random import Random

import pytest

from backy.model.revision import Trust
from backy.operations.backup import backup
from backy.stores.index import PAGE_LINES
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import MemorySource

PAGES = 3


def content(seed: int) -> bytes:
    """Three pages of blocks, most of them alike."""
    kinds = [bytes([kind]) * BLOCK for kind in range(4)]
    return b"".join(Random(seed).choices(kinds, k=PAGES * PAGE_LINES - 7))


def changed(old: bytes, block: int) -> bytes:
    return old[: block * BLOCK] + b"x" * BLOCK + old[(block + 1) * BLOCK :]


def copies(root: Path, name: str) -> list[Path]:
    return [root / folder / name[:2] / name for folder in ("pages", "twins")]


@pytest.fixture(params=["chunks", "images"])
def made(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    reflink_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Made:
    monkeypatch.setattr("tests.memory_source.PIECE", BLOCK)  # extents of 512 bytes take seconds
    return Made(reflink_folder if request.param == "images" else tmp_path, request.param)


@pytest.mark.parametrize("page", range(PAGES))
@pytest.mark.parametrize("how", ["missing", "torn"])
def test_a_delta_reads_a_lost_page_again(made: Made, page: int, how: str) -> None:
    first = content(1)
    parent = made.backup(first)
    with made.repository.store.open_index(parent, "vda") as index:
        name = index.name(page)
    for path in copies(made.root, name):
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(bytes(path.stat().st_size))
    new = changed(first, 5)
    source = MemorySource({"vda": new}, known={parent.id: {"vda": first}})
    for _ in range(3):  # which pages a delta looks at is partly left to chance
        revision = backup(made.repository, source)
        source = MemorySource({"vda": new}, known={revision.id: {"vda": new}})
        assert not any("reported changed blocks" in text for text in revision.warnings)
        if any("lost" in text for text in revision.warnings):
            break
    else:
        pytest.fail("the lost page was not noticed")
    assert made.read(revision) == new
    assert made.again(parent).trust is not Trust.DISTRUSTED
    if page:  # the page is the same in the new revision, so the old one has it again
        assert made.read(parent) == first
