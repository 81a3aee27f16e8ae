"""An index or a page may say anything, and what names it may have its hash.

Names are names, or there is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.errors import BackyError, DamagedError
from backy.model.revision import Disk, Revision
from backy.operations.restore import restore
from backy.operations.scrub import Limits, Scrub
from backy.operations.verify import verify
from backy.stores.blocks import checked_index
from backy.stores.data import data_bytes
from backy.stores.index import Index
from backy.stores.pages import Pages
from backy.stores.used import Used
from backy.stores.zstd import ZstdCodec
from backy.system.place import Place
from tests.fuzz.mutate import damaged_bytes
from tests.lab.handmade import digest_of
from tests.lab.paged import LINE, copies, text_of
from tests.lab.paged import LINES as PAGE
from tests.lab.repositories import BLOCK, Made

WEEK = timedelta(days=7)
ZERO = digest_of(bytes(BLOCK)).encode()
LINES = [digest_of(b"1").encode(), ZERO, digest_of(b"2").encode(), ZERO, ZERO]
VALID = b"".join(line + b"\n" for line in LINES)
HOSTILE = {
    "capitals": VALID.upper(),
    "no-newlines": VALID.replace(b"\n", b"0"),
    "carriage-returns": VALID.replace(b"\n", b"\r"),
    "spaces": b"ab " * (len(VALID) // 3) + b"a",
    "slashes": b"../" * (len(VALID) // 3) + b".",
    "path": b"../../../../../../../../neighbour/".ljust(64, b"a") + b"\n" + VALID[LINE:],
    "newline-in-a-name": VALID[:10] + b"\n" + VALID[11:],
    "signs": (b"+" + b"1" * 63 + b"\n") * 5,
    "underscores": (b"1_" * 32 + b"\n") * 5,
    "minus": (b"-" + b"f" * 63 + b"\n") * 5,
    "prefix": (b"0x" + b"f" * 62 + b"\n") * 5,
    "not-utf-8": b"\xff" * len(VALID),
    "arabic-digits": ("٣" * 32 + "\n").encode() * 5,
    "shifted": VALID[1:] + b"0",
    "one-odd-digit": VALID[:-2] + b"g\n",
}


@contextmanager
def opened(folder: Path, content: bytes, kind: str, blocks: int = len(LINES)) -> Iterator[Index]:
    """The index of a disk, or with `content` as one of its pages, and all hashes are right."""
    index = content
    if kind == "page":
        for path in copies(folder, digest_of(content)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        index = text_of([digest_of(content)])
    elif kind == "index":
        blocks *= PAGE
    (folder / "vda.blocks").write_bytes(index)
    disk = Disk(blocks * BLOCK - 7, BLOCK, digest_of(index), 0, 0, 0)
    place, codec = Place.at(folder), ZstdCodec(1)
    shelf = None if kind == "format-1" else Pages(place, codec)
    with checked_index(place / "vda.blocks", disk, codec, shelf) as opened:
        yield opened


def use(index: Index) -> None:
    """All that is done with an index; each name must be one."""
    for name in index.names():
        assert re.fullmatch(r"[0-9a-f]{64}", name)
    for number in range(index.blocks):
        assert re.fullmatch(r"[0-9a-f]{64}", index.digest(number))
    assert sum(extent.length for extent in index.extents()) == index.size
    assert sum(extent.length for extent in index.extents(index)) == index.size
    assert data_bytes(index) <= index.blocks * BLOCK
    for number, name in index.find([line.decode() for line in LINES]):
        assert index.digest(number) == name
    used = Used(has_named_blocks=True)
    used.add(index, "0" * 64)
    assert not used.unknown
    for page in range(index.pages):
        index.check_page(page)


KINDS = ["format-1", "index", "page"]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.mark.parametrize("kind", ["format-1", "page"])
def test_a_valid_index_is_read(room: Path, kind: str) -> None:
    with opened(room, VALID, kind) as index:
        use(index)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_forged_list_is_refused_though_its_hash_is_recorded(
    room: Path, name: str, kind: str
) -> None:
    with pytest.raises(DamagedError), opened(room, HOSTILE[name], kind) as index:
        use(index)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_mutated_list_is_read_or_refused(room: Path, kind: str, data: st.DataObject) -> None:
    content = data.draw(damaged_bytes(VALID, [VALID, *HOSTILE.values()]))
    blocks = data.draw(st.sampled_from([-(-len(content) // LINE) or 1, 1, 5, 6, 1 << 40]))
    try:
        with opened(room, content, kind, blocks) as index:
            use(index)
    except DamagedError as error:
        names = {"format-1": ["vda.blocks"]}.get(kind, ["vda.blocks", "/pages/"])
        assert any(name in error.message for name in names)  # noqa: PT017 - either is fine


def test_an_index_that_names_itself_or_other_indexes_as_pages_is_only_a_list(room: Path) -> None:
    """There are two levels: what a page lists are blocks, whatever else has their names."""
    inner = text_of([digest_of(bytes([number])) for number in range(5)])
    for path in (*copies(room, digest_of(inner)), *copies(room, digest_of(VALID))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(inner if path.name == digest_of(inner) else VALID)
    page = text_of([digest_of(inner)] * 3 + [digest_of(VALID)] * 2)
    with opened(room, page, "page") as index:
        use(index)
        assert [index.digest(number) for number in range(5)] == page.decode().split()


def test_a_page_that_two_disks_of_different_sizes_claim_is_read_by_the_one_that_it_fits(
    room: Path,
) -> None:
    with opened(room, VALID, "page") as index:
        use(index)
    with opened(room, VALID, "page", blocks=4) as index, pytest.raises(DamagedError):
        index.digest(0)
    for path in copies(room, digest_of(VALID)):
        assert path.read_bytes() == VALID, "nobody mends what is good"


def forge(made: Made, revision: Revision, lines: bytes, kind: str) -> None:
    """Give a published revision another index or page, and all hashes above it."""
    folder = made.folder(revision)
    content = lines
    if kind == "page":
        for path in copies(made.root, digest_of(lines)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(lines)
        content = text_of([digest_of(lines)])
    (folder / "vda.blocks").write_bytes(content)
    record = json.loads((folder / "revision.json").read_text())
    record["disks"]["vda"]["index_hash"] = digest_of(content)
    record["format"] = 1 if kind == "format-1" else 2
    (folder / "revision.json").write_text(json.dumps(record))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["chunks", "images"])
def forged(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> tuple[Made, Revision, Revision]:
    """A whole revision, and one whose index or page has lines that are no hash."""
    base = request.getfixturevalue("reflink_folder") if request.param == "images" else tmp_path
    made = Made(base, request.param)
    first, second = made.backup(disk(1)), made.backup(disk(2))
    good = b"" if kind == "index" else text_of(made.lines(second))
    forge(made, second, HOSTILE["path"][:LINE] + good[LINE:], kind)
    return made, first, made.again(second)


def disk(seed: int) -> bytes:
    """Four blocks; the last two are in every disk."""
    return bytes([seed]) * 2 * BLOCK + b"same" * (BLOCK // 2)


def damage(made: Made, revision: Revision) -> None:
    """Spoil the first block of a revision."""
    path = made.repository.store.plain_path(revision, "vda").path
    if made.store == "images":
        path.chmod(0o600)
        path.write_bytes(b"\xff" * BLOCK + path.read_bytes()[BLOCK:])
    else:
        made.chunk(revision, 0).write_bytes(b"")


def test_one_forged_index_does_not_hide_the_damage_of_other_revisions(
    forged: tuple[Made, Revision, Revision],
) -> None:
    made, first, second = forged
    damage(made, first)
    found = {
        each.revision
        for each in verify(made.repository, made.repository.history().revisions, origins=[])
    }
    assert found == {first.id, second.id}


def test_one_forged_index_does_not_keep_a_scrub_from_its_end(
    forged: tuple[Made, Revision, Revision],
) -> None:
    made, first, second = forged
    damage(made, first)
    run = Scrub(made.repository, within=WEEK)
    assert {each.revision for each in run.run(Limits(), origins=[])} == {first.id, second.id}
    assert all(each["read"] for each in memory(made))


def memory(made: Made) -> list[dict[str, str]]:
    slices: list[dict[str, str]] = json.loads((made.root / "scrub.json").read_text())["disks"][
        "vda"
    ]
    return slices


def test_a_forged_index_is_restored_from_no_further_than_its_good_lines(
    forged: tuple[Made, Revision, Revision], tmp_path: Path
) -> None:
    made, first, second = forged
    with pytest.raises(BackyError):
        restore(made.repository, second, "vda", str(tmp_path / "second.img"), origins=[])
    assert not (tmp_path / "second.img").exists()
    restore(made.repository, first, "vda", str(tmp_path / "first.img"), origins=[])
    assert (tmp_path / "first.img").read_bytes() == disk(1)


def test_a_forged_index_is_not_built_upon(forged: tuple[Made, Revision, Revision]) -> None:
    made, _, _ = forged
    third = made.backup(disk(2))
    assert made.read(third) == disk(2)
