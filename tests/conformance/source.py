"""What every Source promises.  A source joins with a class of its own in a test module:

class TestMySource(SourceSuite):
    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
        yield MySource(...)  # a VM with these disks

A source that cannot read while its disks are written to sets `is_one_point_in_time` to False.
"""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import ClassVar

import pytest

from backy.model.extent import Kind
from backy.model.names import check_disk_name
from backy.model.revision import Consistency
from backy.sources import Request, Source
from tests.conformance.image import read
from tests.memory_source import sample
from tests.snapshots import opened

REQUEST = Request("20261123T004938Z-x7k2")
DISKS = {"vda": sample(300_032), "vdb": sample(70_144, seed=1)}


class SourceSuite:
    """One kind of source, with a VM of one disk and one of two."""

    consistency: ClassVar[Consistency]
    """What it promises for a VM of one disk."""

    @abstractmethod
    def open(self, disks: Mapping[str, bytes], folder: Path) -> AbstractContextManager[Source]:
        """A source of a VM that has these disks; `folder` is empty and may be used for it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """An empty folder on the file system that the source is for."""
        return tmp_path

    def test_a_snapshot_has_each_disk_with_its_content(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source, opened(source, REQUEST) as snapshot:
            assert set(snapshot.disks) == set(DISKS)
            for name, content in DISKS.items():
                image = snapshot.disks[name]
                assert image.size == len(content)
                assert read(image, 0, image.size) == content

    def test_a_look_names_the_disks_and_changes_nothing(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source:
            before, open_before = files(folder), held_open()
            assert set(source.look()) in (set(DISKS), set())
            assert (files(folder), held_open()) == (before, open_before)
            with opened(source, REQUEST):
                assert set(source.look()) in (set(DISKS), set())  # also during a backup
            assert set(source.look()) in (set(DISKS), set())

    def test_without_a_parent_nothing_is_the_same(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source, opened(source, REQUEST) as snapshot:
            for image in snapshot.disks.values():
                assert Kind.SAME not in {extent.kind for extent in image.extents()}

    def test_says_how_consistent_it_is(self, folder: Path) -> None:
        disks = {"vda": DISKS["vda"]}
        with self.open(disks, folder) as source, opened(source, REQUEST) as snapshot:
            assert snapshot.consistency is self.consistency

    def test_names_can_be_those_of_files(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source, opened(source, REQUEST) as snapshot:
            for name in [*snapshot.disks, *snapshot.files]:
                assert check_disk_name(name) == name

    def test_a_quiet_disk_gives_no_warnings(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source, opened(source, REQUEST) as snapshot:
            for image in snapshot.disks.values():
                read(image, 0, image.size)
            assert list(snapshot.warnings()) == []

    def test_gives_a_snapshot_after_a_snapshot(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source:
            for _ in range(3):
                with opened(source, REQUEST) as snapshot:
                    assert read(snapshot.disks["vda"], 0, 1000) == DISKS["vda"][:1000]
                    snapshot.keep_checkpoint()
                source.remove_all_except([])

    def test_gives_a_snapshot_after_one_that_failed(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source:
            with pytest.raises(KeyboardInterrupt), opened(source, REQUEST):
                raise KeyboardInterrupt
            with opened(source, REQUEST) as snapshot:
                assert set(snapshot.disks) == set(DISKS)

    def test_opens_nothing_until_it_is_asked_to(self, folder: Path) -> None:
        """A guest may be frozen while a snapshot is taken, and waits for all that is done then."""
        with self.open(DISKS, folder) as source:
            before = held_open()
            with source.snapshot(REQUEST) as taken:
                assert held_open() <= before
                with taken.open() as snapshot:
                    assert read(snapshot.disks["vda"], 0, 1000) == DISKS["vda"][:1000]
                assert held_open() <= before
            assert held_open() <= before

    def test_a_snapshot_need_not_be_opened(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source:
            before = files(folder)
            with source.snapshot(REQUEST):
                pass
            assert files(folder) == before
            with opened(source, REQUEST) as snapshot:
                assert set(snapshot.disks) == set(DISKS)

    def test_leaves_its_disks_as_they_are(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source:
            before = files(folder)
            with opened(source, REQUEST) as snapshot:
                snapshot.keep_checkpoint()
            source.remove_all_except([])
            assert files(folder) == before

    def test_keeping_a_checkpoint_that_does_not_exist_is_fine(self, folder: Path) -> None:
        with self.open(DISKS, folder) as source:
            source.remove_all_except(["20261123T004938Z-x7k2"])
            source.remove_all_except([])


def held_open() -> set[str]:
    """The sockets, the files and the programs that this process has open.

    What has no name is left out: it is the clone of a file, or a pipe of ours.
    """
    links = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that this loop has open
            links.add(str(path.readlink()))
    children = {
        f"child {pid}"
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    }
    named = {link for link in links if link.startswith(("/", "socket:"))}
    return {link for link in named if not link.endswith("(deleted)")} | children


def files(folder: Path) -> dict[str, bytes]:
    """All regular files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
