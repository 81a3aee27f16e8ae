"""A repository with another codec is backed up, read, healed and purged by the same operations."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from blake3 import blake3

from backy.errors import DamagedError
from backy.model.extent import Extent, Kind
from backy.model.revision import Revision, Trust
from backy.operations.backup import backup
from backy.operations.diff import diff
from backy.operations.origin import LiveSource
from backy.operations.restore import restore
from backy.operations.scrub import Limits, Scrub
from backy.operations.verify import verify
from backy.repository import quarantine_reports, trash
from tests.keyed_codec import KEY, KeyedCodec
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import MemorySource, changed, sample

SHORT = 12_345  # bytes in the last block
DISK = sample(2 * BLOCK) + bytes(2 * BLOCK) + sample(2 * BLOCK, seed=1) + bytes(SHORT)
NEXT = changed(DISK, 5)


@pytest.fixture(params=["chunks", "images"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    is_images = request.param == "images"
    base = request.getfixturevalue("reflink_folder") if is_images else tmp_path
    return Made(base, request.param, codec=KeyedCodec())


LOOK = """
import sys
from pathlib import Path
from backy.repository.repository import Repository
from backy.repository.tags import retag
repository = Repository(Path(sys.argv[1]))
[revision] = repository.history().revisions
retag(repository, [revision], add={"looked-at"}, drop=set())
print(sorted({"blake3", "zstandard"} & set(sys.modules)))
with repository.store.open(revision, "vda"):
    print(sorted({"blake3", "zstandard"} & set(sys.modules)))
"""


def damage(made: Made, revision: Revision, number: int) -> None:
    """Change a stored byte of a block: of a frame the last one, which is its checksum's."""
    if made.store == "chunks":
        path = made.chunk(revision, number)
        offset = path.stat().st_size - 1
    else:
        path, offset = made.repository.store.plain_path(revision, "vda").path, number * BLOCK + 200
    with path.open("r+b") as file:
        [byte] = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 0x10]), offset)


def remember_source(made: Made, content: bytes) -> None:
    """Have healing find the disk as it is now."""
    path = made.base / "source.img"
    path.write_bytes(content)
    made.repository.remember_source({"type": "file", "disks": {"vda": str(path)}})


def test_blocks_and_indexes_have_the_names_that_the_codec_gives(made: Made) -> None:
    revision = made.backup(DISK)
    blocks = [DISK[start : start + BLOCK] for start in range(0, len(DISK), BLOCK)]
    names = [blake3(block, key=KEY).hexdigest() for block in blocks]
    assert made.lines(revision) == names
    index = (made.folder(revision) / "vda.blocks").read_bytes()
    assert revision.disks["vda"].index_hash == blake3(index, key=KEY).hexdigest()
    for page, twin in made.pages(revision):
        assert page.read_bytes() == twin.read_bytes()
        assert page.name == blake3(page.read_bytes(), key=KEY).hexdigest()
    if made.store == "chunks":
        assert made.chunks() == {f"{name}.z" for name in names}


def test_a_codec_is_made_when_a_block_or_an_index_is_first_needed(tmp_path: Path) -> None:
    """So commands that only look need not wait for its libraries to load."""
    made = Made(tmp_path)
    made.backup(DISK)
    command = [sys.executable, "-c", LOOK, str(made.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['blake3', 'zstandard']"]


def test_a_delta_stores_what_changed_and_every_revision_is_restored(made: Made) -> None:
    first = made.backup(DISK)
    second = backup(made.repository, MemorySource({"vda": NEXT}, {first.id: {"vda": DISK}}))
    disk = second.disks["vda"]
    assert disk.changed == BLOCK
    assert disk.read - disk.compared == BLOCK
    for revision, content in ((first, DISK), (second, NEXT)):
        target = made.base / "target.img"
        restore(made.repository, revision, "vda", str(target), origins=[])
        assert target.read_bytes() == content
    assert list(diff(made.repository, first, second)) == [("vda", Extent(0, BLOCK, Kind.DATA))]


def test_what_is_whole_is_verified_and_scrubbed(made: Made) -> None:
    made.backup(DISK)
    second = made.backup(NEXT)
    assert list(verify(made.repository, made.repository.history().revisions, origins=[])) == []
    assert made.again(second).trust is Trust.VERIFIED
    scrub = Scrub(made.repository, timedelta(days=7))
    assert list(scrub.run(Limits(), origins=[])) == []
    assert scrub.coverage().share == 1


@pytest.mark.parametrize("number", [1, 2, 6], ids=["data", "zeroes", "short-last-block"])
def test_a_damaged_block_heals_from_the_source_that_still_has_it(made: Made, number: int) -> None:
    revision = made.backup(DISK)
    remember_source(made, DISK)
    damage(made, revision, number)
    [found] = verify(made.repository, [revision], origins=[LiveSource(made.repository)])
    assert found.healed
    assert made.read(revision) == DISK
    [report] = quarantine_reports.reports(made.repository)
    assert report.digest == made.lines(revision)[number]
    assert list(verify(made.repository, [revision], origins=[])) == []


def test_a_block_that_the_source_has_no_more_is_lost_and_stored_anew(made: Made) -> None:
    first = made.backup(DISK)
    remember_source(made, NEXT)
    damage(made, first, 0)
    with pytest.raises(DamagedError):
        restore(
            made.repository,
            first,
            "vda",
            str(made.base / "target.img"),
            origins=[LiveSource(made.repository)],
        )
    assert made.again(first).trust is Trust.DISTRUSTED
    second = made.backup(DISK)
    assert made.read(second) == DISK


def test_a_purge_frees_what_no_revision_names(made: Made) -> None:
    first, second = made.backup(DISK), made.backup(NEXT)
    trash.remove(made.repository, [first])
    assert trash.purge(made.repository).revisions == (first.id,)
    assert made.read(second) == NEXT
    if made.store == "chunks":
        assert made.chunks() == {f"{name}.z" for name in made.lines(second)}
