"""What is in the place of a page or a twin may be anything: it is not opened, followed or harmed.

The other copy does instead, and replaces it; without a good one there is an error.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from backy.errors import DamagedError
from backy.model.revision import Revision
from backy.operations.heal import Damage
from backy.operations.verify import verify
from tests.fuzz.sandbox import Sandbox, fingerprint
from tests.fuzz.verbs import ALL, real
from tests.lab.paged import LINE, page_names, place
from tests.lab.repositories import BLOCK, Made

USING = "diff restore keep-going verify scrub backup purge"
Make = Callable[[Path], object]


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_out(path: Path) -> None:
    """To the neighbour's file of the same name, which is a good page."""
    root = next(each for each in path.parents if each.name == "vm1")
    path.symlink_to(root.parents[1] / "neighbour" / path.relative_to(root))


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"inside")


def endless(path: Path) -> None:
    """A device whose reads never end: /dev/zero, mem(4)."""
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))


def bound(path: Path) -> None:
    """A socket, by a short name, because a socket's has at most 108 bytes."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("s")
        Path("s").rename(path.name)
    finally:
        os.chdir(here)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def hash_of_nothing(path: Path) -> None:
    """Lines of hashes, as long as the page that should be here."""
    path.write_bytes((b"f" * 64 + b"\n") * 4)


ODD: list[Make] = [
    link_to_itself, link_out, folder, os.mkfifo, endless, bound, sparse, hash_of_nothing,
]  # fmt: skip


def put(path: Path, make: Make) -> None:
    """Put something else in the place of a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()
    make(path)


def disk(seed: int) -> bytes:
    return bytes([seed]) * 3 * BLOCK + b"end"


@pytest.fixture(params=["chunks", "images"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    base = request.getfixturevalue("reflink_folder") if request.param == "images" else tmp_path
    return Made(base, request.param)


def neighbour_of(made: Made) -> Path:
    """A copy of the repository, which links lead to."""
    folder = made.root.parents[1] / "neighbour"
    return Path(shutil.copytree(made.root, folder))


@pytest.mark.parametrize("which", [0, 1], ids=["page", "twin"])
@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_what_is_in_the_place_of_one_copy_is_replaced_by_the_other(
    tmp_path: Path, make: Make, which: int
) -> None:
    made = Made(tmp_path / "base")
    revision = made.backup(disk(1))
    neighbour = neighbour_of(made)
    before = fingerprint(neighbour)
    path, other = made.pages(revision)[0][which], made.pages(revision)[0][1 - which]
    put(path, make)
    assert list(verify(made.repository, [revision], origins=[])) == []
    assert path.is_file()
    assert not path.is_symlink()
    assert path.read_bytes() == other.read_bytes()
    assert fingerprint(neighbour) == before
    assert made.intact()


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_without_a_good_copy_the_revision_is_damaged_and_the_others_are_not(
    made: Made, make: Make
) -> None:
    first, second = made.backup(disk(1)), made.backup(disk(2))
    for path in made.pages(first)[0]:
        put(path, make)
    with pytest.raises(DamagedError, match=f"bytes 0 to {len(disk(1))}"):
        made.read(first)
    assert made.read(second) == disk(2)
    found = list(verify(made.repository, made.repository.history().revisions, origins=[]))
    assert lost(found) == ({first.id} if made.store == "chunks" else set())


def lost(found: list[Damage]) -> set[str]:
    return {each.revision for each in found if not each.healed}


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_the_next_backup_replaces_what_is_in_the_place_of_both_copies(
    tmp_path: Path, make: Make
) -> None:
    made = Made(tmp_path / "base")
    first = made.backup(disk(1))
    neighbour = neighbour_of(made)
    before = fingerprint(neighbour)
    for path in made.pages(first)[0]:
        put(path, make)
    made.backup(disk(1))
    assert made.intact()
    assert fingerprint(neighbour) == before


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_what_is_in_the_place_of_an_index_is_replaced_by_its_twin(
    tmp_path: Path, make: Make
) -> None:
    made = Made(tmp_path / "base")
    revision = made.backup(disk(1))
    neighbour = neighbour_of(made)
    before = fingerprint(neighbour)
    put(made.folder(revision) / "vda.blocks", make)
    assert list(verify(made.repository, [revision], origins=[])) == []
    assert page_names(made.folder(revision)) == [made.pages(revision)[0][0].name]
    put(place(made.root, "twins", revision.disks["vda"].index_hash), make)
    assert list(verify(made.repository, [revision], origins=[])) == []
    twin = place(made.root, "twins", revision.disks["vda"].index_hash)
    assert twin.read_bytes() == (made.folder(revision) / "vda.blocks").read_bytes()
    assert fingerprint(neighbour) == before


# test_every_place tries more kinds in more places; a file that is a page's may be anything.
LEADING_AWAY: list[Make] = [link_out, os.mkfifo]
PLACES = [("pages/AB/HASH", make) for make in ODD]
PLACES += [
    (where, make)
    for where in ("pages", "twins", "pages/AB", "twins/AB", "twins/AB/HASH")
    for make in LEADING_AWAY
]


@pytest.mark.parametrize(
    ("where", "make"), PLACES, ids=lambda each: getattr(each, "__name__", each)
)
def test_no_command_follows_what_is_in_the_place_of_pages(
    hostile: Sandbox, where: str, make: Make
) -> None:
    """The sandbox fails if the neighbour is touched, if others are written, or after 20 seconds."""
    [name] = page_names(hostile.revisions()[-1])
    path = hostile.root / where.replace("AB", name[:2]).replace("HASH", name)
    put(path, make)
    for command in USING.split():
        hostile.backy(*[real(hostile, each) for each in ALL[command]])


@pytest.mark.parametrize("make", LEADING_AWAY, ids=lambda make: make.__name__)
def test_no_command_follows_what_is_in_the_place_of_both_folders(
    hostile: Sandbox, make: Make
) -> None:
    for name in ("pages", "twins"):
        put(hostile.root / name, make)
    for command in USING.split():
        hostile.backy(*[real(hostile, each) for each in ALL[command]])


@pytest.mark.parametrize("length", [0, 1, LINE - 1, 5 * LINE, 1 << 24])
def test_a_page_of_another_length_is_damage(made: Made, length: int) -> None:
    revision: Revision = made.backup(disk(1))
    for path in made.pages(revision)[0]:
        os.truncate(path, length)
    with pytest.raises(DamagedError, match=f"bytes 0 to {len(disk(1))}"):
        made.read(revision)
