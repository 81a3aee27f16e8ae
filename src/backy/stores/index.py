"""The index of a disk: the digests of its blocks, in pages of 252.

Format 2: DISK.blocks lists the digests of the pages, one a line, and each page is a file that
lists the digests of its blocks (see `pages`). So revisions share the pages in which they do not
differ, and whoever compares two of them compares pages first. Format 1: DISK.blocks lists the
digests of all blocks.

All lines have the same length, and `sed` turns both lists into names of files (docs/formats.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from itertools import groupby, repeat

from backy.errors import DamagedError, DamageIgnored
from backy.model.extent import Extent, Kind, merge
from backy.stores.codec import Codec
from backy.stores.pages import LINE, Pages, is_list
from backy.system import files, signals
from backy.system.files import AnyPath

PAGE_LINES = 252  # blocks of a page, which is 16,380 bytes: four blocks of a file system
Found = dict[str, list[tuple[int, str]]]  # see Index.find: by the digest of a page
_PIECE = 1 << 16  # lines of DISK.blocks that are read at a time: 4 MiB of memory


def block_count(size: int, block_size: int) -> int:
    """How many blocks a disk of `size` bytes has. The last one may be short."""
    return -(-size // block_size)


class Index(ABC):
    """The digests of the blocks of a disk, for reading. Several threads may use it."""

    def __init__(self, path: AnyPath, size: int, block_size: int, codec: Codec) -> None:
        self.path = path
        self.size = size
        self.block_size = block_size
        self.blocks = block_count(size, block_size)
        self.pages = block_count(self.blocks, PAGE_LINES)
        self.codec = codec
        self._last = -1, b""  # the page that was read last: most readers ask in order
        self._zero_names: dict[int, str] = {}

    @abstractmethod
    def names(self, first: int = 0, end: int | None = None) -> Iterator[str]:
        """The digests of the pages in [first, end); "" for one that is being written."""

    @abstractmethod
    def _load(self, page: int) -> bytes:
        """The lines of a page. Raises DamagedError if they cannot be read, or are none."""

    def name(self, page: int) -> str:
        """The digest of a page; see `names`."""
        return next(self.names(page, page + 1))

    def page(self, page: int) -> bytes:
        """The lines of a page. Raises DamagedError if it is lost."""
        known = self._last
        if known[0] != page:
            known = self._last = page, self._load(page)
        return known[1]

    def check_page(self, page: int) -> None:
        """Read all copies of a page from the medium, and repair a bad one by a good one.

        Raises DamagedError if there is no good one.
        """
        self.page(page)

    def _end(self, end: int | None) -> int:
        """The end of a range of pages: at most that of the disk, which another may exceed."""
        return self.pages if end is None else min(end, self.pages)

    def lines_of(self, page: int) -> int:
        """How many lines a page has: 252, or fewer in the last one."""
        return min(PAGE_LINES, self.blocks - page * PAGE_LINES)

    def length_of(self, number: int) -> int:
        """The length of a block in bytes: the block size, or less for the last block."""
        return min(self.block_size, self.size - number * self.block_size)

    def parts(self, first: int, end: int) -> Iterator[tuple[int, int, int, str]]:
        """The pages of the blocks in [first, end): each with the first of them, the end, its name.

        The name is the digest of the whole page.
        """
        names = self.names(first // PAGE_LINES, block_count(end, PAGE_LINES))
        for (page, start, stop), name in zip(by_page(first, end), names, strict=False):
            yield page, start, stop, name

    def lines(self, first: int, count: int) -> bytes:
        """`count` lines from block `first` on. Raises DamagedError if a page is lost."""
        return b"".join(
            self.page(page)[(start - page * PAGE_LINES) * LINE : (stop - page * PAGE_LINES) * LINE]
            for page, start, stop in by_page(first, first + count)
        )

    def line(self, number: int) -> bytes:
        """The line of a block, without its end."""
        page, within = divmod(number, PAGE_LINES)
        return self.page(page)[within * LINE : (within + 1) * LINE - 1]

    def digest(self, number: int) -> str:
        """The digest of block `number`. Raises DamagedError if its page is lost."""
        return self.line(number).decode()

    def find(
        self, digests: Collection[str], known: Found | None = None
    ) -> Iterator[tuple[int, str]]:
        """The blocks with one of these digests, as (number, digest), ascending.

        Those in lost pages are not found. `known` has what was found in pages, by their digests;
        who searches several indexes for the same digests reads each page once.
        """
        wanted = {digest.encode() for digest in digests}
        known = {} if known is None else known
        for page, name in enumerate(self.names()):
            signals.obey()
            if (found := known.get(name)) is None:
                found = known[name] = self._found(page, wanted)
            for within, digest in found:
                yield page * PAGE_LINES + within, digest

    def _found(self, page: int, wanted: set[bytes]) -> list[tuple[int, str]]:
        lines: list[bytes] = []
        with DamageIgnored():
            lines = self.page(page).split()
        if wanted.isdisjoint(lines):
            return []
        return [(within, line.decode()) for within, line in enumerate(lines) if line in wanted]

    def zero_line(self, number: int) -> bytes:
        """The line that a block of zeroes has at `number`."""
        return (self.codec.zero_digest(self.length_of(number)) + "\n").encode()

    def zero_page(self, page: int) -> bytes:
        """The lines of a page of zeroes. A short last block has another one than the others."""
        count = self.lines_of(page)
        first = page * PAGE_LINES
        return self.zero_line(first) * (count - 1) + self.zero_line(first + count - 1)

    def is_zero(self, page: int, name: str) -> bool:
        """Whether a page has the digest of a page of zeroes."""
        kind = max(page, self.pages - 2)  # all but the last one are alike
        if kind not in self._zero_names:
            self._zero_names[kind] = self.codec.digest(self.zero_page(page))
        return name == self._zero_names[kind]

    def extents(
        self, since: Index | None = None, first: int = 0, end: int | None = None
    ) -> Iterator[Extent]:
        """Extents of the blocks in [first, end): SAME as in `since`, otherwise ZERO or DATA.

        A lost page is DATA: whoever reads there gets the error. A short last block is an extent of
        its own, because its zero line is another one.
        """
        end = self.blocks if end is None else min(end, self.blocks)
        whole = self.size // self.block_size
        yield from merge(self._extents(since, first, min(end, whole)))
        yield from self._extents(since, max(first, whole), end)

    def _extents(self, since: Index | None, first: int, end: int) -> Iterator[Extent]:
        pages = first // PAGE_LINES, block_count(end, PAGE_LINES)
        old_names = since.names(*pages) if since else repeat("")
        for page, start, stop, name in self.parts(first, end):
            signals.obey()
            old_name = next(old_names, "")
            is_same = name and name == old_name
            if is_same or (not since and self.is_zero(page, name)):
                runs = [(Kind.SAME if is_same else Kind.ZERO, 0, stop - start)]
            else:
                runs = self._compared(since, start, stop)
            for kind, number, length in runs:
                begin = (start + number) * self.block_size
                yield Extent(begin, min(begin + length * self.block_size, self.size) - begin, kind)

    def _compared(self, since: Index | None, first: int, end: int) -> list[tuple[Kind, int, int]]:
        """The runs of blocks in a part of a page; see `_runs`."""
        with DamageIgnored():
            lines = self.lines(first, end - first)
            old = since.lines(first, max(0, min(end, since.blocks) - first)) if since else b""
            return list(_runs(lines, old, self.zero_line(first)))
        return [(Kind.DATA, 0, end - first)]


def by_page(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The pages of the blocks in [first, end), each with the first block in it and the end."""
    while first < end:
        page = first // PAGE_LINES
        stop = min(end, (page + 1) * PAGE_LINES)
        yield page, first, stop
        first = stop


def _runs(lines: bytes, old: bytes, zero: bytes) -> Iterator[tuple[Kind, int, int]]:
    """Runs of one kind as (kind, first line, count)."""

    def kind(number: int) -> Kind:
        line = lines[number * LINE : number * LINE + LINE]
        if line == old[number * LINE : number * LINE + LINE]:
            return Kind.SAME
        return Kind.ZERO if line == zero else Kind.DATA

    for run_kind, group in groupby(range(len(lines) // LINE), kind):
        numbers = list(group)
        yield run_kind, numbers[0], len(numbers)


class FlatIndex(Index):
    """An index of format 1, in an open file: a line for each block."""

    def __init__(self, file: files.File, size: int, block_size: int, codec: Codec) -> None:
        super().__init__(file.path, size, block_size, codec)
        self._file = file

    def names(self, first: int = 0, end: int | None = None) -> Iterator[str]:
        """See Index. Reads the pages to name them."""
        for page in range(first, self._end(end)):
            yield self.codec.digest(self.page(page))

    def _load(self, page: int) -> bytes:
        return read_list(self._file, page * PAGE_LINES, self.lines_of(page))


class PagedIndex(Index):
    """An index of format 2, in an open file: a line for each page."""

    def __init__(self, file: files.File, size: int, block_size: int, shelf: Pages) -> None:
        super().__init__(file.path, size, block_size, shelf.codec)
        self._file = file
        self._shelf = shelf

    def names(self, first: int = 0, end: int | None = None) -> Iterator[str]:
        """See Index. Raises DamagedError if the file cannot be read any more."""
        end = self._end(end)
        for start in range(first, end, _PIECE):
            count = min(_PIECE, end - start)
            yield from read_list(self._file, start, count).decode().split()

    def _load(self, page: int) -> bytes:
        try:
            return self._shelf.get(self.name(page), self.lines_of(page))
        except DamagedError as error:
            start = page * PAGE_LINES * self.block_size
            end = min(start + PAGE_LINES * self.block_size, self.size)
            what = f"bytes {start} to {end}: {error.message}"
            raise DamagedError(what, error.hint) from error.__cause__

    def check_page(self, page: int) -> None:
        """See Index."""
        self._shelf.get(self.name(page), self.lines_of(page), is_checked=True)


def read_list(file: files.File, first: int, count: int) -> bytes:
    """`count` lines of a list, from line `first` on. Raises DamagedError if they are no list."""
    try:
        lines = file.read_bytes(first * LINE, count * LINE)
    except OSError as error:
        raise DamagedError(f"reading {file.path}: {error.strerror}") from error
    if len(lines) != count * LINE or not is_list(lines):
        raise DamagedError(f"{file.path} has no hash in line {first + 1}, or in one after that")
    return lines


def check_hash(file: files.File, count: int, name: str, codec: Codec) -> None:
    """Raises DamagedError unless a file is a list of `count` lines with the digest `name`."""
    if file.size() != count * LINE:
        raise DamagedError(f"{file.path} has {file.size()} bytes, not {count * LINE}")

    def pieces() -> Iterator[bytes]:
        for first in range(0, count, _PIECE):
            signals.obey()
            yield read_list(file, first, min(_PIECE, count - first))

    if codec.digest_of_pieces(pieces()) != name:
        raise DamagedError(f"{file.path} is not the index that was published")
