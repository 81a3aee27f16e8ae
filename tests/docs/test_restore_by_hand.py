"""Every command in docs/restore-by-hand.md works as it is written there."""

import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.devices import loop_device
from tests.lab.handmade import MIB, Handmade
from tests.lab.needs import absent, no_mounts

PAGE = Path(__file__).parents[2] / "docs" / "restore-by-hand.md"
REV = "20261123T004938Z-x7k2"
BLOCK = re.compile(r"^```sh *(?P<cases>.*)\n(?P<commands>(?:.*\n)*?)```$", re.MULTILINE)

MISSING = no_mounts() or absent("b3sum", "debugfs", "losetup", "mkfs.ext4", "zstd")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))


def commands(case: str, version: int = 2) -> Iterator[str]:
    """The blocks that the page marks for a case; without a mark, for both healthy stores."""
    formats = {"format1", "format2"}
    for block in BLOCK.finditer(PAGE.read_text()):
        words = set(block["cases"].split())
        cases, versions = words - formats, words & formats
        if case in (cases or {"chunks", "images"}) and f"format{version}" in (versions or formats):
            yield block["commands"]


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    """A real file system, on a disk that is no multiple of a block."""
    tree, image = tmp_path / "tree", tmp_path / "ext4"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hostname").write_text("vm1\n")
    (tree / "etc" / "big").write_bytes(random.Random(0).randbytes(5 * MIB))
    image.touch()
    os.truncate(image, 16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, image], check=True)
    return image.read_bytes() + b"tail" * 128


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the page calls /mnt/rescue."""
    folder = tmp_path / "rescue"
    folder.mkdir()
    return folder


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """What the page calls /dev/vg0/restored."""
    file = tmp_path / "device"
    file.touch()
    os.truncate(file, 20 * MIB)
    with loop_device(file) as device:
        yield device


@pytest.fixture
def repository(request: pytest.FixtureRequest, tmp_path: Path, disk: bytes) -> Handmade:
    store, version = request.param
    repository = Handmade(tmp_path / "vm1", store, format=version)
    repository.make()
    repository.add("20261122T004938Z-a1b2", {"vda": disk[:MIB]})
    repository.add(REV, {"vda": disk})
    return repository


def with_places(text: str, repository: Handmade, folder: Path, device: Path, disk: bytes) -> str:
    """Replace the example values that the page names in its first lines."""
    places = {
        "/srv/backy/vm1": str(repository.path),
        "/mnt/rescue": str(folder),
        "/dev/vg0/restored": str(device),
        "8589934592": str(len(disk)),
    }
    for example, value in places.items():
        text = text.replace(example, value)
    return text


def checked(block: str) -> str:
    """The block; where it restores, then onto other bytes, and with a comparison behind it."""
    restores = re.search(r'(restore\.sh|cp|xargs|dd) .*("\$(NEW/\$DISK\.img|DEVICE)")\n$', block)
    if restores is None:
        return block
    size = '"$(stat -c %s "$EXPECTED")"'
    fill = f"yes | head -c {size} > {restores[2]}\n"
    return f'{fill}{block}cmp -n {size} {restores[2]} "$EXPECTED"\n'


CHUNKS = [pytest.param(("chunks", version), id=f"chunks-format-{version}") for version in (1, 2)]
IMAGES = [pytest.param(("images", version), id=f"images-format-{version}") for version in (1, 2)]


@pytest.mark.parametrize("repository", [*CHUNKS, *IMAGES], indirect=True)
def test_each_way_of_restoring_gives_the_disk(
    repository: Handmade, folder: Path, device: Path, disk: bytes, tmp_path: Path
) -> None:
    (tmp_path / "expected").write_bytes(disk)
    blocks = [checked(block) for block in commands(repository.store, repository.format)]
    assert sum("$EXPECTED" in block for block in blocks) == 4
    result = subprocess.run(
        ["sh", "-eu"],
        env={**os.environ, "EXPECTED": str(tmp_path / "expected")},
        input=with_places("\n".join(blocks), repository, folder, device, disk),
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every block is right" in result.stdout
    assert ("every page is right" in result.stdout) == (repository.format == 2)
    for way in ("from-mount", "from-debugfs/etc"):
        assert (folder / way / "hostname").read_text() == "vm1\n"
        assert (folder / way / "big").stat().st_size == 5 * MIB


@pytest.mark.parametrize("repository", CHUNKS, indirect=True)
def test_all_that_is_not_damaged_can_be_saved(
    repository: Handmade, folder: Path, device: Path, disk: bytes
) -> None:
    damaged = repository.chunk(REV, "vda", 5)
    os.truncate(damaged, damaged.stat().st_size // 2)
    repository.chunk(REV, "vda", 16).unlink()
    result = subprocess.run(
        ["sh", "-u"],
        input=with_places(
            "\n".join(commands("damaged", repository.format)), repository, folder, device, disk
        ),
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"block 5 at byte {5 * MIB}: chunks/" in result.stderr
    assert f"block 16 at byte {16 * MIB}: chunks/" in result.stderr
    expected = disk[: 5 * MIB] + bytes(MIB) + disk[6 * MIB : 16 * MIB] + bytes(512)
    assert (folder / "vda.img").read_bytes() == expected


@pytest.mark.parametrize("repository", [CHUNKS[1]], indirect=True)
def test_lost_pages_and_a_lost_index_come_back_from_their_twins(
    repository: Handmade, folder: Path, device: Path, disk: bytes
) -> None:
    (page,) = repository.pages(REV, "vda")
    index = repository.index(REV, "vda")
    before = page.read_bytes(), index.read_bytes()
    page.unlink()
    index.unlink()
    named = f"REV={REV} DISK=vda NEW={folder}\ncd {repository.path}\n"
    text = with_places("\n".join(commands("lost-pages")), repository, folder, device, disk)
    result = subprocess.run(
        ["sh", "-eu"], input=named + text, text=True, capture_output=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (page.read_bytes(), index.read_bytes()) == before
    assert (folder / "vda.list").read_bytes() == page.read_bytes()


@pytest.mark.parametrize("repository", [CHUNKS[1]], indirect=True)
def test_a_page_that_is_lost_twice_is_zeroes_in_the_list_of_the_blocks(
    repository: Handmade, folder: Path, device: Path, disk: bytes
) -> None:
    (page,) = repository.pages(REV, "vda")
    page.unlink()
    repository.twin(page).unlink()
    (*_, make_list) = commands("lost-pages")
    named = f"REV={REV} DISK=vda NEW={folder}\ncd {repository.path}\n"
    text = with_places(make_list, repository, folder, device, disk)
    subprocess.run(["sh", "-u"], input=named + text, text=True, check=True, capture_output=True)
    assert (folder / "vda.list").read_text() == ("0" * 64 + "\n") * 252
