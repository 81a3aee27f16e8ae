"""A file system that fills up in the middle of a command costs nothing that was published.

tests/cli/test_disk_full.py has what the commands say then. Here the moment is random and a round
goes through all that writes; BACKY_ROUNDS says how many of each store, `make soak` takes 10.
A failure is repeated with its BACKY_SEED and BACKY_ROUNDS=1.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from backy.errors import FullError
from backy.model.revision import Trust
from backy.operations.backup import backup
from backy.operations.heal import Damage
from backy.operations.origin import LiveSource
from backy.operations.scrub import Limits, Scrub
from backy.operations.verify import verify
from backy.repository import trash
from backy.repository.create import create
from backy.repository.records import Settings
from backy.sources import open_source
from tests.cli.machine import MIB, ballast, ext4
from tests.faults.workloads import Disks, damage, read_all
from tests.lab import paged
from tests.lab.handmade import digest_of
from tests.lab.indexes import COPIES
from tests.lab.needs import need
from tests.lab.reflink import missing, reflink_file_system

ROUNDS = int(os.environ.get("BACKY_ROUNDS", "1"))
SEED = int(os.environ.get("BACKY_SEED", "1"))
BLOCK = 256 * 1024
SIZE = 12 * MIB
SPACE = 400 * MIB


@pytest.fixture(params=["chunks", "images"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A store, and a small file system of its own."""
    if request.param == "chunks":
        with ext4(tmp_path, SPACE) as folder:
            yield "chunks", folder
        return
    need(missing("xfs"))
    with reflink_file_system("xfs", SPACE) as folder:
        yield "images", folder


@contextmanager
def filled(folder: Path, leave: int) -> Iterator[None]:
    """Leave so many bytes; 0 is not one block."""
    crumbs = folder / "crumbs"
    with ballast(folder, max(leave, MIB)):
        if leave < MIB:
            with suppress(OSError), crumbs.open("wb", buffering=0) as file:
                for _ in range((MIB - leave) // 4096 if leave else 4096):
                    file.write(bytes(4096))
                    os.fsync(file.fileno())
        try:
            yield
        finally:
            crumbs.unlink(missing_ok=True)


class Round:
    """A job on a small file system, whose source lies elsewhere."""

    def __init__(self, folder: Path, store: str, source: Path, seed: int) -> None:
        self.chance = random.Random(f"{seed} {store}")
        self.folder = folder
        self.content = self.chance.randbytes(SIZE)
        self.held: Disks = {}
        self.bad: dict[str, bytes] = {}
        self._source = source
        self.repository = create(folder / f"round{seed}", "vm1", Settings(store, BLOCK))
        self.repository.remember_source({"type": "file", "disks": {"vda": str(source)}})

    def look(self) -> None:
        """Everything that was published is there, and reads back."""
        held, _ = read_all(self.repository, self.bad)
        assert held == self.held

    def backup(self) -> None:
        self._source.write_bytes(self.content)
        revision = backup(self.repository, open_source(self.repository.settings.source))
        self.held[revision.id] = self.content

    def verify(self) -> list[Damage]:
        return list(
            verify(
                self.repository,
                self.repository.history().revisions,
                origins=[LiveSource(self.repository)],
            )
        )

    def scrub(self) -> list[Damage]:
        return list(
            Scrub(self.repository, timedelta(0)).run(
                Limits(), origins=[LiveSource(self.repository)]
            )
        )

    def purge(self) -> None:
        trash.purge(self.repository)

    def change(self, length: int) -> None:
        start = self.chance.randrange(SIZE - length)
        new = self.chance.randbytes(length)
        self.content = self.content[:start] + new + self.content[start + length :]

    def damage(self) -> None:
        """Some blocks of the newest revision go bad, and its page; the source still has them."""
        for number in self.chance.sample(range(SIZE // BLOCK), 5):
            block = self.content[number * BLOCK : (number + 1) * BLOCK]
            self.bad[digest_of(block)] = block
        damage(self.repository, self.bad)
        newest = self.repository.folder / "revisions" / max(self.held)
        [page] = paged.page_names(newest)
        copies = [paged.place(self.repository.folder, each, page) for each in COPIES]
        for path in self.chance.choice([copies, copies[:1], copies[1:]]):
            path.write_bytes(path.read_bytes()[:65])
        self.bad[page] = self.content

    def remove_oldest(self) -> None:
        oldest = self.repository.history().revisions[0]
        trash.remove(self.repository, [oldest])
        del self.held[oldest.id]

    def run_full(self, command: Callable[[], object], leave: int) -> bool:
        """Run a command where space ends after so many bytes; whether it succeeded all the same."""
        is_done = False
        with filled(self.folder, leave):
            with suppress(FullError):
                command()
                is_done = True
            self.look()
        return is_done


def play(each: Round) -> None:
    """Fill the file system up in the middle of a backup, a delta, a scrub and a purge."""
    leave = each.chance.randrange(SIZE - 2 * MIB)  # the rest of what is needed is never there
    assert not each.run_full(each.backup, leave)
    assert not list((each.repository.folder / "revisions").iterdir())
    each.backup()
    each.change(SIZE // 2)
    assert not each.run_full(each.backup, each.chance.randrange(SIZE // 2 - 2 * MIB))
    each.backup()
    each.look()
    each.damage()
    each.run_full(each.scrub, each.chance.choice([0, 1, 2, 3]) * BLOCK)
    assert all(found.healed for found in each.scrub())
    assert all(found.healed for found in each.verify())
    each.bad = {}
    each.look()
    assert {found.trust for found in each.repository.history().revisions} == {Trust.VERIFIED}
    each.remove_oldest()
    if not each.run_full(each.purge, each.chance.choice([0, 1, 2]) * 16384):
        each.purge()
    each.change(MIB)
    each.backup()
    each.look()
    assert each.verify() == []


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_file_system_that_fills_up_in_the_middle_costs_nothing_that_was_published(
    place: tuple[str, Path], tmp_path: Path, number: int
) -> None:
    store, folder = place
    play(Round(folder, store, tmp_path / "vm1.img", SEED + number))


def test_a_purge_frees_space_where_no_byte_is_left(place: tuple[str, Path], tmp_path: Path) -> None:
    store, folder = place
    each = Round(folder, store, tmp_path / "vm1.img", SEED)
    each.backup()
    each.change(SIZE // 2)
    each.backup()
    each.remove_oldest()
    with filled(folder, 0):
        each.purge()
        status = os.statvfs(folder)
        assert status.f_bavail * status.f_frsize > SIZE // 4
        each.look()
