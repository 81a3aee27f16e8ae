"""Indexes of format 2, from the description in docs/formats.md and from no code of backy.

DISK.blocks has the hash of each page, one a line; a page has the hashes of 252 blocks, one a line.
Pages are in `pages` and in `twins`, under their hashes; a copy of each index is in `twins`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

LINES = 252  # of a page, but the last one of a disk
LINE = 65  # bytes

Digest = Callable[[bytes], str]


def blake3_of(content: bytes) -> str:
    """The hash that names blocks, pages and indexes."""
    return blake3(content).hexdigest()


def in_blocks(content: bytes, block: int) -> list[bytes]:
    """The blocks of a disk; the last one may be short."""
    return [content[start : start + block] for start in range(0, len(content), block)]


def hashes_of(content: bytes, block: int, digest: Digest = blake3_of) -> list[str]:
    """The hash of each block; of equal blocks computed once."""
    known: dict[bytes, str] = {}
    return [
        known.get(each) or known.setdefault(each, digest(each))
        for each in in_blocks(content, block)
    ]


def text_of(hashes: Sequence[str]) -> bytes:
    """A list as it is stored: one hash a line."""
    return "".join(f"{each}\n" for each in hashes).encode()


def pages_of(hashes: Sequence[str]) -> list[bytes]:
    """The pages of a disk whose blocks have these hashes."""
    return [text_of(hashes[start : start + LINES]) for start in range(0, len(hashes), LINES)]


def index_of(hashes: Sequence[str], digest: Digest = blake3_of) -> bytes:
    """DISK.blocks of a disk whose blocks have these hashes."""
    return text_of([digest(page) for page in pages_of(hashes)])


def place(root: Path, folder: str, name: str) -> Path:
    """Where the file of a hash is in `pages` or `twins` of a repository."""
    return root / folder / name[:2] / name


def copies(root: Path, name: str) -> list[Path]:
    """Both copies of a page."""
    return [place(root, "pages", name), place(root, "twins", name)]


def page_names(folder: Path, disk: str = "vda") -> list[str]:
    """The pages of a disk of the revision in `folder`, which has format 2."""
    return (folder / f"{disk}.blocks").read_text().splitlines()


def block_hashes(root: Path, folder: Path, disk: str = "vda") -> list[str]:
    """The hashes of the blocks of a disk of the revision in `folder`, which may have no format."""
    names = page_names(folder, disk)
    record = folder / "revision.json"
    if record.exists() and json.loads(record.read_text())["format"] == 1:
        return names
    return [line for name in names for line in _page(root, name).read_text().splitlines()]


def _page(root: Path, name: str) -> Path:
    """A page, or its twin if somebody lost the page."""
    return next((each for each in copies(root, name) if each.exists()), copies(root, name)[0])


def write_pages(root: Path, hashes: Sequence[str], folder: Path, disk: str = "vda") -> str:
    """Write an index with its pages and all twins; return its hash."""
    index = index_of(hashes)
    for page in pages_of(hashes):
        for path in copies(root, blake3_of(page)):
            _write(path, page)
    (folder / f"{disk}.blocks").write_bytes(index)
    _write(place(root, "twins", blake3_of(index)), index)
    return blake3_of(index)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def stored(root: Path) -> Iterator[tuple[str, bytes]]:
    """Every file in `pages` and `twins`, as (path below the repository, content)."""
    for folder in ("pages", "twins"):
        for path in sorted((root / folder).glob("*/*")):
            yield str(path.relative_to(root)), path.read_bytes()
