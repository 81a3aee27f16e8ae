"""A small repository whose source is gone, ways to damage it, and what backy must say then.

What must be found is told from the lines of the whole indexes and pages, by no code of backy's.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

from backy.cli import execute as cli
from backy.model.revision import time_of
from backy.operations.scrub import Limits, Scrub
from backy.repository import quarantine
from backy.repository.quarantine import Occurrence, Report
from tests.lab.indexes import COPIES
from tests.lab.paged import LINES, block_hashes, page_names
from tests.lab.repositories import BLOCK, Made
from tests.lab.watchdog import ends

JOB = "vm1"
DISKS = ("vda", "vdc")  # one bit apart from each other and from what may become of them
OPTIONAL = ("lock", "scrub.json", "report.json", "stored", "space")  # what a restore does not need
TWICE = ("index", "page", "twin")  # kinds of files of which there are two copies
STATUS = ("status.json", ".status.lock")  # what it neither reads nor writes
Place = tuple[str, str, int]  # a revision, its disk, the number of a block


def pattern(seed: str, length: int = BLOCK) -> bytes:
    """Bytes that become a chunk of a few hundred bytes."""
    some = random.Random(seed).randbytes(150)
    return (some * (length // len(some) + 1))[:length]


def noise(seed: str) -> bytes:
    """A block that nothing makes smaller."""
    return random.Random(seed).randbytes(BLOCK)


def history() -> Iterator[dict[str, bytes]]:
    """The disks of each revision: zero blocks, blocks used several times, a short last block.

    Disk vdc has two pages, of which two revisions share the first; the third has zeroes there.
    """
    shared, short, end = pattern("shared"), pattern("short", 5000), pattern("end", 777)
    full, empty = pattern("full") + bytes((LINES - 1) * BLOCK), bytes(LINES * BLOCK)
    for first, fourth, second, page in (
        ("a", "b", "c", full),
        ("A", "b", "c", full),
        ("A", "B", "C", empty),
    ):
        vda = [pattern(first), shared, bytes(BLOCK), noise(fourth), shared, short]
        yield {"vda": b"".join(vda), "vdc": page + shared + pattern(second) + end}


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    events: list[dict[str, Any]]
    error: str

    def warned(self) -> str:
        return "\n".join(each["message"] for each in self.events if each["event"] == "warning")


def run(base: Path, *arguments: object) -> Said:
    """Do what the program does with these arguments, in this process."""
    out, error = StringIO(), StringIO()
    with (
        ends(60),
        redirect_stdout(out),
        redirect_stderr(error),
    ):
        code = cli.run(["--base-dir", str(base), *map(str, arguments), "--json"])
    assert "Traceback" not in error.getvalue(), error.getvalue()
    return Said(code, [json.loads(line) for line in out.getvalue().splitlines()], error.getvalue())


class Whole:
    """The repository as it should be, in `folder`, where copies of it are made to be damaged."""

    def __init__(self, folder: Path, store: str) -> None:
        self.store = store
        self.copied = folder / "damaged"
        made = Made(folder, store)
        for disks in history():
            made.backup(**disks)
        self.contents = made.contents
        self.ids = sorted(made.contents)
        self._leave_what_else_there_may_be(made)
        self.root = made.root
        self.lines = {
            (each, disk): block_hashes(self.root, self.root / f"revisions/{each}", disk)
            for each in self.ids
            for disk in DISKS
        }
        self.pages = {
            (each, disk): page_names(self.root / f"revisions/{each}", disk)
            for each in self.ids
            for disk in DISKS
        }

    def _leave_what_else_there_may_be(self, made: Made) -> None:
        where = (Occurrence(self.ids[0], "vda", 0, BLOCK),)
        found = Report("", time_of(self.ids[0]), "verify", "ab" * 32, "old", (self.ids[0],), where)
        quarantine.add(made.repository, found, b"bad")
        assert list(Scrub(made.repository, timedelta(days=30)).run(Limits(), origins=[])) == []

    def files(self) -> list[str]:
        """All files of it, relative to its folder."""
        found = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in found)

    def label(self, file: str) -> str:
        """The name of a file as it is in every run."""
        for number, each in enumerate(self.ids):
            file = file.replace(each, f"r{number}")
        return file if not file.startswith("quarantine") else f"quarantine/{Path(file).name}"

    def copy(self) -> Path:
        """Make it anew; what is written to it leaves this one as it is. Give the base folder."""
        shutil.rmtree(self.copied, ignore_errors=True)
        self.copied.mkdir()
        command = ["cp", "--archive", "--reflink=auto", str(self.root), str(self.copied)]
        subprocess.run(command, check=True)
        return self.copied

    # What is stored where.

    def places(self) -> Iterator[Place]:
        for (revision, disk), lines in self.lines.items():
            for number in range(len(lines)):
                yield revision, disk, number

    def line(self, place: Place) -> str:
        revision, disk, number = place
        return self.lines[revision, disk][number]

    def named(self, digest: str) -> set[Place]:
        """Where a block is used."""
        return {place for place in self.places() if self.line(place) == digest}

    def paged(self, name: str) -> set[Place]:
        """The blocks whose hashes are in a page."""
        return {
            (revision, disk, number)
            for revision, disk, number in self.places()
            if self.pages[revision, disk][number // LINES] == name
        }

    def listed(self, file: str) -> set[Place]:
        """The blocks whose hashes are in an index, a page or a twin, itself or by its pages."""
        if kind_of(file) == "index":
            return self.all_of(file)
        indexes = [each for each in self.copies_of(file) if kind_of(each) == "index"]
        return self.paged(Path(file).name).union(*map(self.all_of, indexes))

    def copies_of(self, file: str) -> list[str]:
        """All other files with the content of an index, a page or a twin."""
        content = (self.root / file).read_bytes()
        lists = [each for each in self.files() if kind_of(each) in TWICE and each != file]
        return [each for each in lists if (self.root / each).read_bytes() == content]

    def all_of(self, file: str) -> set[Place]:
        """The blocks of the disk that an index or image is of."""
        path = Path(file)
        return {each for each in self.places() if each[:2] == (path.parent.name, path.stem)}

    def differing(self, file: str, other: str) -> set[Place]:
        """The blocks that an image does not have if another revision's is in its place."""
        there = self.lines[Path(other).parent.name, Path(other).stem]
        return {each for each in self.all_of(file) if self.line(each) != there[each[2]]}

    def copies(self, place: Place) -> set[Place]:
        """Where the same block should be once more, in bytes of its own: never, of chunks."""
        return self.named(self.line(place)) - {place} if self.store == "images" else set()

    def is_zero(self, place: Place) -> bool:
        """Whether a block is zeroes, which its name says."""
        revision, disk, number = place
        block = self.contents[revision][disk][number * BLOCK : (number + 1) * BLOCK]
        return not any(block)

    def are_zero(self, places: Iterable[Place]) -> bool:
        """Whether all these blocks are zeroes."""
        return all(map(self.is_zero, places))

    # What anybody reads.

    def by_hand(self, base: Path, revision: str, disk: str) -> bytes:
        """A disk by what docs/restore-by-hand.md says; nothing where a program complains."""
        if self.store == "images":
            return (base / JOB / f"revisions/{revision}/{disk}.img").read_bytes()
        index = f"revisions/{revision}/{disk}.blocks"
        pages = f"sed 's|^..|pages/&/&|' {index} | xargs cat"
        recipe = f"set -o pipefail; {pages} | sed 's|^..|chunks/&/&|; s|$|.zst|' | xargs zstd -dcq"
        command = ["bash", "-c", recipe]
        done = subprocess.run(command, cwd=base / JOB, capture_output=True, check=False)
        return b"" if done.returncode else done.stdout

    def is_right_by_hand(self, base: Path, lost: set[Place]) -> bool:
        """Whether all disks without a lost block are read right by hand."""
        bad = {place[:2] for place in lost}
        return all(
            self.by_hand(base, *each) == self.contents[each[0]][each[1]]
            for each in self.lines.keys() - bad
        )


def kind_of(file: str) -> str:
    """What a file is for."""
    name = Path(file).name
    if name in STATUS:
        return "status"
    if name in {"repository.json", "restore.sh", "revision.json"} | set(OPTIONAL):
        return "optional" if name in OPTIONAL else name
    if Path(file).parts[0] in COPIES:
        return {"pages": "page", "twins": "twin"}[Path(file).parts[0]]
    return {".zst": "chunk", ".blocks": "index", ".img": "image"}[Path(file).suffix]


@dataclass(frozen=True)
class Damage:
    """Something to do to `files`, all of one kind, of a repository, and the blocks that it costs.

    `whole` says that it is told at a glance that the files are not what they were.
    """

    files: tuple[str, ...]
    what: str
    strike: Callable[[Path], None]
    places: frozenset[Place] = frozenset()
    whole: bool = False

    @property
    def kind(self) -> str:
        return kind_of(self.files[0])

    @property
    def revisions(self) -> set[str]:
        """Whose files they are."""
        return {Path(file).parent.name for file in self.files}


def flips(whole: Whole, file: str, count: int, draw: random.Random) -> Iterator[Damage]:
    """Flip a bit in so many bytes of a file, or in each."""
    content = (whole.root / file).read_bytes()
    for offset in draw.sample(range(len(content)), min(count, len(content))):
        bit = 1 << draw.randrange(8)
        around = content[max(0, offset - 20) : offset + 20]
        what = f"bit {bit:#04x} of byte {offset}, in {around!r}"

        def strike(root: Path, offset: int = offset, bit: int = bit) -> None:
            flip(root / file, offset, bit)

        costs = _costs(whole, file)
        if kind_of(file) == "image":
            costs = {each for each in costs if each[2] == offset // BLOCK}
        yield Damage((file,), what, strike, frozenset(costs))


def flip(path: Path, offset: int, bit: int = 1) -> None:
    """Change a bit; it is on the medium on return."""
    with path.open("r+b") as file:
        [byte] = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ bit]), offset)
        os.fsync(file.fileno())


def _costs(whole: Whole, file: str) -> set[Place]:
    """The blocks that need a file. Of what is kept twice one copy does."""
    if kind_of(file) == "chunk":
        return whole.named(Path(file).stem)
    return whole.all_of(file) if kind_of(file) == "image" else set()


def in_all_copies(whole: Whole, damage: Damage) -> Damage:
    """The same damage in every copy of a page or index: in both, and in indexes that are alike."""
    [file] = damage.files
    copies = whole.copies_of(file)

    def strike(root: Path) -> None:
        aside = root / "aside"
        for copy in copies:
            (root / file).rename(aside)
            (root / copy).rename(root / file)
            damage.strike(root)
            if os.path.lexists(root / file):
                (root / file).rename(root / copy)
            aside.rename(root / file)
        damage.strike(root)

    costs = frozenset(place for each in (file, *copies) for place in whole.listed(each))
    return Damage((file, *copies), f"{damage.what} in all copies", strike, costs)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _cut(share: float, less: int = 0) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, max(0, int(path.stat().st_size * share) - less))


def _lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


BREAKS: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": _cut(0),
    "one-byte-short": _cut(1, less=1),
    "one-byte-long": _lengthen,
    "half": _cut(0.5),
    "folder": _make_folder,
    "dangling-link": _make_dangling,
    "pipe": _make_pipe,
}


def broken(whole: Whole, file: str, how: str) -> Damage:
    """A file that is not there, not all there, more than it was, or no file, by one of BREAKS."""
    costs = frozenset(_costs(whole, file))
    return Damage((file,), how, lambda root: BREAKS[how](root / file), costs, whole=True)


def older(whole: Whole, file: str) -> Damage:
    """A file of which there is an older version, or the version of another revision or block."""
    kind = kind_of(file)
    if kind in {"repository.json", "restore.sh", "status", "optional"}:
        return Damage((file,), "older", lambda root: _write_older(root / file))
    other = _other(whole, file)
    content = (whole.root / other).read_bytes()
    costs = whole.differing(file, other) if kind == "image" else _costs(whole, file)
    return Damage(
        (file,),
        f"replaced by {whole.label(other)}",
        lambda root: _replace(root / file, content),
        frozenset(costs),
    )


def swapped(whole: Whole, file: str) -> Damage:
    """A file, and another of its kind, each under the other's name."""
    other = _other(whole, file)
    costs: set[Place] = set()
    for one, two in ((file, other), (other, file)):
        is_image = kind_of(one) == "image"
        costs |= whole.differing(one, two) if is_image else _costs(whole, one)

    def strike(root: Path) -> None:
        (root / file).rename(root / "between")
        (root / other).rename(root / file)
        (root / "between").rename(root / other)

    what = f"swapped with {whole.label(other)}"
    return Damage((file, other), what, strike, frozenset(costs))


def _other(whole: Whole, file: str) -> str:
    """The nearest other file of the kind that has other content: an older one where there is."""
    path = Path(file)
    if (kind := kind_of(file)) in {"chunk", "page", "twin"}:
        names = [each for each in whole.files() if kind_of(each) == kind]
        return names[names.index(file) - 1]
    position = whole.ids.index(path.parent.name)
    for each in (*reversed(whole.ids[:position]), *whole.ids[position + 1 :]):
        other = file.replace(whole.ids[position], each)
        if (whole.root / other).read_bytes() != (whole.root / file).read_bytes():
            return other
    raise AssertionError(f"{file} is the same in all revisions")


def _write_older(path: Path) -> None:
    if path.name == "repository.json":
        record = json.loads(path.read_text())
        source = {"type": "file", "disks": {"vda": "/does/not/exist"}}
        path.write_text(json.dumps(record | {"source": source}))
    else:
        path.write_bytes(b"older")


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
    with path.open("rb") as file:
        os.fsync(file.fileno())
