"""Make a page again that is lost in both copies: hash the blocks that it names.

The digests of these blocks are not known, but that of the page is, so the result is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from backy.errors import StoreError, translated
from backy.operations.origin import Origin
from backy.repository.quarantine import Occurrence
from backy.repository.repository import Repository
from backy.stores.codec import Codec
from backy.stores.index import PAGE_LINES, FlatIndex

if TYPE_CHECKING:
    from backy.operations.heal import StoredDisk

_MOST_TRIED = 100  # places where the blocks should be, before the page is given up
PageMap = dict[tuple[str, int], dict[int, list["StoredDisk"]]]
_Read = Callable[[int], bytes | None]  # gives the content of a block of a disk


def pages_of(disks: Iterable[StoredDisk]) -> PageMap:
    """Where these disks have which page: by its digest and length in lines, by its number.

    Made once for all pages that are lost. If a record is wrong about the size of its disk, the
    last page has another length there.
    """
    pages: PageMap = {}
    for disk in disks:
        for number, name in enumerate(disk.image.index.names()):
            key = name, disk.image.index.lines_of(number)
            pages.setdefault(key, {}).setdefault(number, []).append(disk)
    return pages


def lost_ranges(
    stored: StoredDisk, places: Iterable[tuple[StoredDisk, int]]
) -> Sequence[Occurrence]:
    """The ranges of disks whose blocks only a lost page names: one of format 1 has its own lines.

    `stored` is where the page could not be read.
    """
    lost: dict[Occurrence, None] = {}
    for disk, page in places:
        index = disk.image.index
        if disk is stored or not isinstance(index, FlatIndex):
            start = page * PAGE_LINES * index.block_size
            length = min(PAGE_LINES * index.block_size, index.size - start)
            lost[Occurrence(disk.revision.id, disk.disk, start, length)] = None
    return list(lost)


def make_again(
    repository: Repository,
    origins: Sequence[Origin],
    places: Sequence[tuple[StoredDisk, int]],
    name: str,
) -> str | None:
    """Store the page `name` again; return where the blocks are from, or None if nobody has them.

    Asks indexes of format 1 and images of revisions that have the page, and `origins`. Raises
    StoreError.
    """
    codec, tried = repository.codec, set[tuple[str, str, int]]()
    disk, page = places[0]
    if codec.digest(zeroes := disk.image.index.zero_page(page)) == name:
        _store(repository, name, zeroes)
        return "its hash, which is that of zeroes"
    for disk, page in places:
        if isinstance(disk.image.index, FlatIndex) and disk.digest(page * PAGE_LINES):
            _store(repository, name, disk.image.index.page(page))
            return f"revision {disk.revision.id}"
    for disk, page in islice(places, _MOST_TRIED):
        first = page * PAGE_LINES
        numbers = range(first, first + disk.image.index.lines_of(page))
        for title, read in _readers(repository, origins, disk):
            if (title, disk.disk, page) not in tried:
                tried.add((title, disk.disk, page))
                lines = _lines(read, numbers, codec)
                if codec.digest(lines) == name:
                    _store(repository, name, lines)
                    return title
    return None


def _readers(
    repository: Repository, origins: Sequence[Origin], disk: StoredDisk
) -> Iterator[tuple[str, _Read]]:
    """Who may have the blocks of a disk, although nobody knows their digests."""
    if not repository.store.shares_blocks:
        yield f"revision {disk.revision.id}", partial(disk.image.read_stored, digest="")
    for origin in origins:
        yield origin.name, partial(origin.read, disk.revision, disk.disk, digest="")


def _lines(read: _Read, numbers: Iterable[int], codec: Codec) -> bytes:
    """The page that names these blocks, as `read` gives them; another one if some are missing."""
    return "".join(f"{codec.digest(read(number) or b'')}\n" for number in numbers).encode()


def _store(repository: Repository, name: str, lines: bytes) -> None:
    """Replace both copies, which may look good in the page cache."""
    for copy in repository.store.pages.copies:
        path = copy.path(name)
        with translated(StoreError, f"writing {path}"):
            copy.repair(path, lines)
