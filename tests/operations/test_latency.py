"""A medium that answers late, such as NFS or hard disks, is asked for many blocks at once."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.cli.runner import Backy, Store
from tests.lab.delayed import Delayed, delayed_file_system, missing
from tests.lab.needs import need

MIB = 1024**2
SECONDS = 0.03  # a read: so long that what the processors have to do does not count
MANY = 10  # a block is up to two reads, and without growth two processors have 4 threads
DISK = Random(14).randbytes(96 * MIB)
FILE_SYSTEMS: dict[Store, str] = {"chunks": "ext4", "images": "xfs"}


class Slow:
    """An installation with one revision on such a medium."""

    def __init__(self, store: Store, medium: Delayed, folder: Path) -> None:
        self.backy = Backy(medium.folder / "base", store)
        self.restored = folder / "restored.img"
        self._medium = medium
        source = folder / "source.img"
        source.write_bytes(DISK)
        backup = ("backup", "vm1", "--source", source, "--store", store)
        assert self.backy.run_program(*backup).code == 0

    def most_reads_at_once(self, *words: str | Path) -> int:
        """The most that the medium was asked for at once during a command, with nothing cached."""
        self._medium.mount()
        self._medium.reads()
        # A program, since this process would have the file system open for longer.
        assert self.backy.run_program(*words).code == 0
        return self._medium.reads()[1]


@pytest.fixture(scope="module", params=FILE_SYSTEMS)
def slow(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Slow]:
    need(missing())
    kind = FILE_SYSTEMS[request.param]
    with delayed_file_system(512 * MIB, kind, SECONDS) as medium:
        yield Slow(request.param, medium, tmp_path_factory.mktemp("slow"))


def test_a_restore_reads_many_blocks_at_once(slow: Slow) -> None:
    assert slow.most_reads_at_once("restore", "vm1", slow.restored) >= MANY
    assert slow.restored.read_bytes() == DISK
    slow.restored.unlink()


def test_verify_reads_many_blocks_at_once(slow: Slow) -> None:
    """And scrub, which does it with the same lines of code."""
    assert slow.most_reads_at_once("verify", "vm1") >= MANY


def test_a_restore_to_a_pipe_reads_ahead(slow: Slow) -> None:
    """It is written in order, and read beside that."""
    assert slow.most_reads_at_once("restore", "vm1", "-") >= MANY
