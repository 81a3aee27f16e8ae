"""Whatever a verb touches in a repository may be a link, a FIFO, a device, a folder or a file.

The places are not listed here: strace tells what each verb touches. In each of them, and in each
folder on the way, an enemy puts something else, before the verb runs or while it runs. A neighbour
and a disk must notice nothing of it: neither may be opened or changed.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from backy.cli.commands import COMMANDS
from tests.fuzz import sandbox
from tests.fuzz.child import NEW
from tests.fuzz.conftest import copied
from tests.fuzz.kinds import KINDS, Maker, counted, disk
from tests.fuzz.sandbox import Child, Sandbox
from tests.fuzz.verbs import ALL, say
from tests.lab.devices import loop_device
from tests.lab.needs import absent, need
from tests.lab.strace import Touch, touches, traced
from tests.lab.volumes import Mounts

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
SEED = int(os.environ.get("BACKY_SEED", "1"))
STORES = ["chunks", "images"]
UNTOUCHED = {
    "config",
    "configured-jobs",
    "init",
    "run",
    "top",
}  # they show or change what is not in it
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-z]{4}")
MODES = ["before", "after", "both"]


@dataclass(frozen=True)
class Lab:
    """A repository of one store, to be copied for each attack, and what the verbs touch in it."""

    store: str
    first: Path
    folder: Path
    child: Child
    touched: dict[str, list[Touch]]
    device: Path
    numbers: Iterator[int]

    def copy(self) -> Sandbox:
        """A sandbox of its own."""
        return copied(self.first, self.folder / f"{next(self.numbers)}", self.child)

    @property
    def kinds(self) -> dict[str, Maker]:
        """What can be put into a place."""
        return {**KINDS, "device": disk(self.device)}

    def places(self, verb: str) -> list[str]:
        """What a verb touches below the repository, with the folders on the way: one of a kind."""
        found: dict[str, str] = {}
        for touch in self.touched[verb]:
            parts = Path(touch.path).parts
            inside = parts[parts.index("base") + 2 :]
            for end in range(1, len(inside) + 1):
                place = self._known("/".join(inside[:end]))
                found.setdefault(_kind_of(place), place)
        return sorted(found.values())

    def _known(self, place: str) -> str:
        """The place, with another id where this one was made by the verb."""
        there = self.first / "base" / "vm1"
        return _ID.sub(lambda found: found[0] if list(there.rglob(found[0])) else NEW, place)


def _kind_of(place: str) -> str:
    """What is the same for all places that are treated alike, such as chunks."""
    place = re.sub(r"[0-9a-f]{64}", "HASH", place)
    place = re.sub(r"^(chunks|pages|twins)/[0-9a-f]{2}(?=/|$)", r"\1/AB", place)
    return re.sub(r"\.\d+\.", ".NUMBER.", place)


@pytest.fixture(scope="session")
def lab_chunks(
    first_chunks: Path, child: Child, mounts: Mounts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    with laboratory(first_chunks, "tmpfs", child, mounts, tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="session")
def lab_images(
    first_images: Path, child: Child, mounts: Mounts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    with laboratory(first_images, "xfs", child, mounts, tmp_path_factory) as made:
        yield made


@pytest.fixture(params=STORES)
def lab(request: pytest.FixtureRequest) -> Lab:
    made: Lab = request.getfixturevalue(f"lab_{request.param}")
    return made


@contextmanager
def laboratory(
    first: Path, kind: str, child: Child, mounts: Mounts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """Every verb is run once on a repository where nothing is hostile, under strace."""
    need(absent("strace"))
    log = tmp_path_factory.mktemp("strace") / "log"
    secret = log.with_name("disk")
    secret.write_bytes(os.urandom(1 << 20))
    with (
        mounts.folder(kind) as folder,
        loop_device(secret) as device,
    ):
        with sandbox.child(traced(log)) as watched:
            for verb in ALL:
                say(copied(first, folder / verb, watched), verb)
        seen = list(touches(log))
        touched = {
            verb: [
                each
                for each in seen
                if each.path.startswith(
                    (f"{folder}/{verb}/base/vm1/", f"{folder}/{verb}/base/.vm1.gone/")
                )
            ]
            for verb in ALL
        }
        for verb in ALL:
            shutil.rmtree(folder / verb)
        yield Lab(
            "images" if kind == "xfs" else "chunks",
            first,
            folder,
            child,
            touched,
            device,
            itertools.count(),
        )


def test_every_command_is_among_the_verbs() -> None:
    said = {word for words in ALL.values() for word in words}
    # tests/daemon/test_by_descriptor.py; serve and mount end with a signal only;
    # boot leaves reading to serve, but for domain.xml: tests/clients/test_hardware.py.
    assert COMMANDS.keys() - said == {"boot", "daemon", "mount", "serve"}


def test_nothing_below_a_repository_is_reached_by_its_path(lab: Lab) -> None:
    every = [touch for touched in lab.touched.values() for touch in touched]
    assert [touch.line for touch in every if not touch.is_by_descriptor] == []
    for verb, touched in lab.touched.items():
        assert touched or verb in UNTOUCHED, verb


def test_both_copies_of_pages_and_of_indexes_are_among_the_places(lab: Lab) -> None:
    kinds = {_kind_of(place) for verb in ALL for place in lab.places(verb)}
    assert kinds >= {"pages", "pages/AB", "pages/AB/HASH", "twins", "twins/AB", "twins/AB/HASH"}


@dataclass(frozen=True)
class Attack:
    """What is put where, for which verb."""

    verb: str
    place: str
    kind: str


def attacks(lab: Lab, kinds: int, randomly: random.Random) -> Iterator[Attack]:
    """All in a soak, else some kinds for each place, with one of the verbs that touch it."""
    verbs: dict[str, list[str]] = {}
    for verb in ALL:
        for place in lab.places(verb):
            verbs.setdefault(place, []).append(verb)
    if lab.store == "images" and not IS_SOAK:  # all else is the same code as with chunks
        verbs = {place: verbs[place] for place in verbs if place.startswith("revisions/")}
    for place, touching in verbs.items():
        for kind in lab.kinds if IS_SOAK else randomly.sample(sorted(lab.kinds), kinds):
            for verb in touching if IS_SOAK else [randomly.choice(touching)]:
                yield Attack(verb, place, kind)


def test_nothing_that_a_verb_touches_is_a_bug_a_hang_or_a_way_out(lab: Lab) -> None:
    before, count = counted(lab.device), 0
    for attack in attacks(lab, 1, random.Random(SEED)):
        sandbox = lab.copy()
        path = sandbox.root / attack.place
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            path.rename(sandbox.folder / "aside")
        lab.kinds[attack.kind](path, sandbox.neighbour / attack.place)
        with told(attack):
            say(sandbox, attack.verb)
        assert counted(lab.device) == before, attack
        shutil.rmtree(sandbox.folder)
        count += 1
    print(f"{count} attacks")  # noqa: T201 - for the last full run


def test_nothing_that_is_exchanged_while_a_verb_runs_is_a_bug_a_hang_or_a_way_out(lab: Lab) -> None:
    randomly = random.Random(SEED)
    before, count = counted(lab.device), 0
    for attack in attacks(lab, 1, randomly):
        for mode in MODES if IS_SOAK else [randomly.choice(MODES)]:
            for moment in itertools.count(1) if IS_SOAK else [randomly.randint(1, 5)]:
                sandbox = lab.copy()
                path, twin = sandbox.root / attack.place, sandbox.folder / "twin"
                lab.kinds[attack.kind](twin, sandbox.neighbour / attack.place)
                with told(attack, mode, moment):
                    outcome = say(sandbox, attack.verb, ("exchanging", path, twin, moment, mode))
                assert counted(lab.device) == before, (attack, mode, moment)
                shutil.rmtree(sandbox.folder)
                count += outcome.moments >= moment
                if outcome.moments < moment:
                    break
    print(f"{count} attacks while a verb ran")  # noqa: T201


@contextmanager
def told(*what: object) -> Iterator[None]:
    """A failure says which attack it was."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
