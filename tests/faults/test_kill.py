"""Real processes, killed with SIGKILL at random moments: the history is right, the next run works.

BACKY_KILLS is how many in all, half of them in each store; `make soak` takes 1,000. BACKY_SEED
repeats what was written, removed and damaged, and about when the kills came: a machine is never
twice in the same state.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from backy.errors import NotFoundError
from backy.operations.backup import backup
from backy.operations.heal import Damage
from backy.operations.origin import LiveSource
from backy.operations.scrub import Limits, Scrub
from backy.operations.verify import verify
from backy.repository import trash
from backy.repository.repository import Repository
from backy.sources import open_source
from tests.cli.runner import MIB, Backy, Store
from tests.faults.workloads import Disks, damage, hasty, read_all
from tests.lab.handmade import digest_of, write_sparse
from tests.lab.indexes import COPIES, turn_back
from tests.lab.paged import LINES, page_names, place

KILLS = int(os.environ.get("BACKY_KILLS", "8"))
SEED = int(os.environ.get("BACKY_SEED", "1"))
BLOCK = 64 * 1024
DATA = 8 * MIB  # at the end of the disk, behind a page of zeroes
SIZE = LINES * BLOCK + DATA
JOB = "vm1"
KEPT = 2  # revisions that a purge leaves
ARGUMENTS: dict[str, list[str]] = {
    "backup": ["backup", JOB],
    "purge": ["purge", JOB],
    "verify": ["verify", JOB],
    "scrub": ["scrub", JOB, "--within", "1s"],
}


def _verify(repository: Repository) -> list[Damage]:
    return list(
        verify(repository, repository.history().revisions, origins=[LiveSource(repository)])
    )


def _scrub(repository: Repository) -> list[Damage]:
    return list(Scrub(repository, timedelta(0)).run(Limits(), origins=[LiveSource(repository)]))


def _backup(repository: Repository) -> None:
    backup(repository, open_source(repository.settings.source))


def _purge(repository: Repository) -> None:
    trash.purge(repository)


AGAIN: dict[str, Callable[[Repository], object]] = {
    "backup": _backup,
    "purge": _purge,
    "verify": _verify,
    "scrub": _scrub,
}


class Victim:
    """One job whose commands are killed, and what its revisions must hold."""

    def __init__(self, backy: Backy, source: Path) -> None:
        self.chance = random.Random(f"{SEED} {backy.store}")
        self.counts: Counter[str] = Counter()
        self.held: Disks = {}
        self.removed: Disks = {}
        self.bad: dict[str, bytes] = {}
        self._backy = backy
        self._source = source
        self._content = bytearray(SIZE - DATA) + self.chance.randbytes(DATA)
        # Seconds that a command takes to come to its first lock, and that it works from then on.
        self._starts = 0.3
        self._works = dict.fromkeys(ARGUMENTS, 0.1)
        write_sparse(source, bytes(self._content))
        first = backy.backup(JOB, source, "--block-size", "64KiB")
        self.held[first] = bytes(self._content)

    @property
    def kills(self) -> int:
        return sum(count for what, count in self.counts.items() if not what.endswith("ended"))

    def _opened(self) -> Repository:
        return Repository(self._backy.base / JOB)

    def turn(self, verb: str) -> None:
        """Prepare something to do, kill whoever does it, look, and do it again."""
        with hasty():
            self._prepare(verb)
            was_killed = self._kill(verb)
            added = self._look(may_add=verb == "backup")
            where = {True: "after publishing", False: "before publishing"}[added]
            what = f"{verb} {where}" if verb == "backup" else verb
            self.counts[what if was_killed else f"{verb} ended"] += 1
            if verb == "purge" and self.chance.random() < 0.25:
                self._undo()
            if self.chance.random() < 0.1:
                self._backy.ok(*ARGUMENTS[verb])
            else:
                AGAIN[verb](self._opened())
            if verb in {"verify", "scrub"}:
                self.bad = {}
            self._look(may_add=verb == "backup")

    def _prepare(self, verb: str) -> None:
        newest = max(self.held)
        if verb == "backup":
            self._write()
            if self.chance.random() < 0.3:
                turn_back(self._opened().folder)
        elif verb == "purge":
            unwanted = self._opened().history().revisions[:-KEPT]
            trash.remove(self._opened(), unwanted)
            self.removed = {each.id: self.held.pop(each.id) for each in unwanted}
        elif self.chance.random() < 0.7:
            # The source is as the newest revision, so that what is damaged can be healed.
            self._content[:] = self.held[newest]
            write_sparse(self._source, bytes(self._content))
            if self.chance.random() < 0.5:
                self._lose_page(newest)
                return
            start = self.chance.randrange(SIZE - DATA, SIZE, BLOCK)
            block = self.held[newest][start : start + BLOCK]
            self.bad = {digest_of(block): block}
            damage(self._opened(), self.bad)

    def _lose_page(self, revision: str) -> None:
        """One copy of a page, or both: then nobody knows its blocks' hashes but by the source."""
        root = self._opened().folder
        names = page_names(root / "revisions" / revision, "vda")
        number = self.chance.randrange(len(names))
        copies = self.chance.choice([COPIES, COPIES[:1], COPIES[1:]])
        for copy in copies:
            place(root, copy, names[number]).write_bytes(b"torn")
        if copies == COPIES:
            start = number * LINES * BLOCK
            page = self.held[revision][start : start + LINES * BLOCK]
            self.bad = {names[number]: page}

    def _write(self) -> None:
        """What a machine does to its disk: writes here and there, zeroes something."""
        for _ in range(self.chance.randint(1, 40)):
            start = self.chance.randrange(SIZE)
            length = min(self.chance.choice([512, 4096, BLOCK, 3 * BLOCK]), SIZE - start)
            is_zero = self.chance.random() < 0.1
            data = bytes(length) if is_zero else self.chance.randbytes(length)
            self._content[start : start + length] = data
        write_sparse(self._source, bytes(self._content))

    def _kill(self, verb: str) -> bool:
        """Kill a command some time after its start or its first lock; whether it lived till then.

        The time adapts, so that about half of the kills come while there still is something to
        kill, however fast the machine is today.
        """
        with self._backy.started(*ARGUMENTS[verb]) as running:
            process = running.process
            if self.chance.random() < 0.2:
                delay = self.chance.uniform(0, self._starts)
            else:
                delay = self.chance.uniform(0, self._works[verb])
                self._wait_for_lock(process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            process.kill()
            result = running.end()
        self._works[verb] *= 1.1 if result.code == -9 else 0.8
        assert result.code in {0, -9}, result
        return result.code == -9

    def _wait_for_lock(self, process: subprocess.Popen[bytes]) -> None:
        began = time.monotonic()
        while process.poll() is None:
            if re.search(rf" {process.pid} ", Path("/proc/locks").read_text()):
                self._starts = (self._starts + time.monotonic() - began) / 2
                return
            time.sleep(0.001)

    def _look(self, *, may_add: bool) -> bool:
        """Whether there is a new revision; every one holds what it must."""
        held, lost = read_all(self._opened(), self.bad)
        added = held.keys() - self.held.keys()
        assert len(added) <= may_add
        self.held |= dict.fromkeys(added, bytes(self._content))
        assert held.keys() == self.held.keys()
        for revision, content in self.held.items():
            assert held[revision] == content, revision
        assert not added & {revision for revision, _ in lost}
        return bool(added)

    def _undo(self) -> None:
        """What a killed purge left in reach of undo is whole."""
        with suppress(NotFoundError):
            for each in trash.undo(self._opened()):
                self.held[each] = self.removed[each]
        self._look(may_add=False)


@pytest.fixture
def backy(place: tuple[Store, Path]) -> Backy:
    """With each store, on a file system for it."""
    store, folder = place
    return Backy(folder / "backups", store)


def test_a_process_killed_at_any_time_leaves_a_right_history_and_the_next_one_works(
    backy: Backy, tmp_path: Path
) -> None:
    victim = Victim(backy, tmp_path / "vm1.img")
    wanted, turns = max(1, KILLS // 2), 0
    while victim.kills < wanted:
        verb = list(ARGUMENTS)[turns % len(ARGUMENTS)]
        turns += 1
        try:
            victim.turn(verb)
        except Exception as error:
            raise AssertionError(
                f"{verb}, turn {turns}. Again: BACKY_SEED={SEED} BACKY_KILLS={KILLS} make test "
                f"ARGS=\"-n 0 'tests/faults/test_kill.py' -k {backy.store}\""
            ) from error
        assert turns < 10 * wanted + 10, "commands end before they are killed"
    counts = ", ".join(f"{count} {what}" for what, count in sorted(victim.counts.items()))
    print(f"{backy.store}, seed {SEED}: {victim.kills} kills: {counts}")  # noqa: T201 - for soak
    assert not _verify(Repository(backy.base / JOB))
