"""An index may say anything, and revision.json may have its hash: names are names, or an error."""

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
from backy.stores.chunks import UsedDigests
from backy.stores.index import LINE, Index
from backy.stores.zstd import ZstdCodec
from tests.fuzz.mutate import damaged_bytes
from tests.lab.handmade import digest_of
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
def opened(folder: Path, content: bytes, blocks: int = len(LINES)) -> Iterator[Index]:
    """The index of a disk whose revision.json is as hostile as the index."""
    path = folder / "vda.blocks"
    path.write_bytes(content)
    disk = Disk(blocks * BLOCK - 7, BLOCK, digest_of(content), 0, 0, 0)
    with checked_index(path, disk, ZstdCodec(1)) as index:
        yield index


def use(index: Index) -> None:
    """All that is done with an index; each name must be one."""
    for number in range(index.blocks):
        assert re.fullmatch(r"[0-9a-f]{64}", index.digest(number))
    assert sum(extent.length for extent in index.extents()) == index.size
    assert sum(extent.length for extent in index.extents(index)) == index.size
    assert sum(count for _, count, _ in index.pieces()) == index.blocks
    for number, name in index.find([line.decode() for line in LINES]):
        assert index.digest(number) == name
    UsedDigests().add_all(index)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


def test_a_valid_index_is_read(room: Path) -> None:
    with opened(room, VALID) as index:
        use(index)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_forged_index_is_refused_though_its_hash_is_recorded(room: Path, name: str) -> None:
    with pytest.raises(DamagedError, match=r"vda\.blocks"), opened(room, HOSTILE[name]) as index:
        use(index)


@given(data=st.data())
def test_a_mutated_index_is_read_or_refused(room: Path, data: st.DataObject) -> None:
    content = data.draw(damaged_bytes(VALID, [VALID, *HOSTILE.values()]))
    blocks = data.draw(st.sampled_from([-(-len(content) // LINE) or 1, 1, 5, 6, 1 << 40]))
    try:
        with opened(room, content, blocks) as index:
            use(index)
    except DamagedError as error:
        assert "vda.blocks" in error.message  # noqa: PT017 - either is fine


def forge(made: Made, revision: Revision, lines: bytes) -> None:
    """Give a published revision another index, and its hash to revision.json."""
    folder = made.repository.folder_of(revision).path
    (folder / "vda.blocks").write_bytes(lines)
    record = json.loads((folder / "revision.json").read_text())
    record["disks"]["vda"]["index_hash"] = digest_of(lines)
    (folder / "revision.json").write_text(json.dumps(record))


@pytest.fixture(params=["chunks", "images"])
def forged(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Made, Revision, Revision]:
    """A whole revision with one damaged block, and one whose index has lines that are no hash."""
    base = request.getfixturevalue("reflink_folder") if request.param == "images" else tmp_path
    made = Made(base, request.param)
    first, second = made.backup(disk(1)), made.backup(disk(2))
    forge(made, second, HOSTILE["path"][:LINE] + made_lines(made, second)[LINE:])
    return made, first, second


def disk(seed: int) -> bytes:
    """Four blocks; the last two are in every disk."""
    return bytes([seed]) * 2 * BLOCK + b"same" * (BLOCK // 2)


def made_lines(made: Made, revision: Revision) -> bytes:
    return (made.repository.folder_of(revision).path / "vda.blocks").read_bytes()


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
