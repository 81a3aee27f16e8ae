"""Somebody exchanges folders and files of a repository while commands run: nothing outside changes.

What is checked and then used is checked in vain where it can be exchanged in between. renameat2(2)
with RENAME_EXCHANGE is as quick as that can be done.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.runner import Backy, data, image, tree
from tests.lab.exchange import exchange

MIB = 1024**2
VERBS = {
    "backup": ["backup", "vm1"],
    "verify": ["verify", "vm1"],
    "scrub": ["scrub", "vm1", "--within", "1s"],
    "restore": ["restore", "vm1", "@target", "--keep-going"],
    "remove": ["remove", "vm1", "-r", "first"],
    "undo": ["undo", "vm1"],
    "purge": ["purge", "vm1"],
}
ENDINGS = {0, 4, 5, 6, 7, 9, 10}  # done, or an error that says what is in the way


@contextmanager
def exchanged(*pairs: tuple[Path, Path]) -> Iterator[None]:
    """Exchange these all the time."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set():
            for first, second in pairs:
                exchange(first, second)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.fixture
def made(tmp_path: Path) -> Backy:
    """A job with two revisions, the first of which is in the trash; many folders have chunks."""
    backy = Backy(tmp_path / "backups", "chunks")
    disk = image(tmp_path / "vm1.img", data(1, 16 * MIB))
    backy.backup("vm1", disk, "--block-size", "64KiB")
    image(disk, data(2, 16 * MIB))
    backy.ok("backup", "vm1")
    backy.ok("remove", "vm1", "-r", "first")
    return backy


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Files of somebody else, called as ours are."""
    folder = tmp_path / "outside"
    for number in range(256):
        (folder / f"{number:02x}").mkdir(parents=True)
        (folder / f"{number:02x}" / f"{number:02x}{'0' * 62}.zst").write_text("not ours")
    return folder


def links(folder: Path, target: Path) -> list[tuple[Path, Path]]:
    """A link beside each folder in `folder`, to the folder of that name in `target`."""
    pairs = []
    for path in sorted(folder.iterdir())[:60]:
        beside = folder.parent / f"link-{path.name}"
        beside.symlink_to(target / path.name)
        pairs.append((path, beside))
    return pairs


@pytest.mark.parametrize("verb", VERBS)
def test_folders_of_chunks_that_are_exchanged_with_links_lead_nowhere(
    made: Backy, outside: Path, tmp_path: Path, verb: str
) -> None:
    before = tree(outside)
    command = [word.replace("@target", str(tmp_path / "target")) for word in VERBS[verb]]
    with exchanged(*links(made.base / "vm1" / "chunks", outside)):
        for _ in range(1 if verb == "scrub" else 3):  # which is a program of its own each time
            assert made.run(*command).code in ENDINGS
    assert tree(outside) == before


def _revisions(backy: Backy) -> Path:
    return backy.base / "vm1" / "revisions"


WHOLE_FOLDERS: dict[str, Callable[[Backy], Path]] = {
    "chunks": lambda backy: backy.base / "vm1" / "chunks",
    "trash": lambda backy: backy.base / "vm1" / "trash",
    "revisions": _revisions,
    "revision": lambda backy: _revisions(backy) / backy.revisions("vm1")[-1],
}


@pytest.mark.parametrize("verb", ["backup", "purge", "verify"])
@pytest.mark.parametrize("place", WHOLE_FOLDERS)
def test_a_folder_of_a_repository_that_is_exchanged_with_a_link_leads_nowhere(
    made: Backy, outside: Path, tmp_path: Path, place: str, verb: str
) -> None:
    folder, link = WHOLE_FOLDERS[place](made), tmp_path / "link"
    link.symlink_to(outside)
    before = tree(outside)
    with exchanged((folder, link)):
        for _ in range(3):
            assert made.run(*VERBS[verb]).code in ENDINGS
    assert tree(outside) == before


@pytest.mark.parametrize("verb", ["verify", "scrub", "restore"])
@pytest.mark.parametrize("place", ["index", "chunk"])
def test_a_file_that_is_exchanged_with_a_fifo_hangs_nothing(
    made: Backy, tmp_path: Path, place: str, verb: str
) -> None:
    [revision] = made.revisions("vm1")
    index = _revisions(made) / revision / "vda.blocks"
    file = index if place == "index" else made.chunk("vm1", revision, 100)
    os.mkfifo(file.with_name("fifo"))
    command = [word.replace("@target", str(tmp_path / "target")) for word in VERBS[verb]]
    with exchanged((file, file.with_name("fifo"))):
        for _ in range(1 if verb == "scrub" else 3):
            assert made.run(*command).code in ENDINGS


@pytest.mark.parametrize("kind", ["file", "nothing"])
def test_a_link_in_a_folder_that_disks_are_restored_to_leads_nowhere(
    made: Backy, tmp_path: Path, kind: str
) -> None:
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_text("not ours")
    target.mkdir()
    (target / "link").symlink_to(victim)
    if kind == "file":
        (target / "vda.img").write_text("old")
    with exchanged((target / "vda.img", target / "link")):
        for _ in range(10):
            assert made.run("restore", "vm1", target, "--overwrite").code in ENDINGS
    assert victim.read_text() == "not ours"
