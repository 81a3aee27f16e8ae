"""The index of a disk: a text file with the digest of each block, one a line.

All lines have the same length: line n is at byte 65 * n. So a delta changes lines in place, and
`sed` turns the file into a list of chunks (docs/formats.md). In a draft the line of a block that
is not yet written is 65 NUL bytes: a hole, so a new index of any length takes no space.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Iterator
from itertools import groupby

from backy.errors import DamagedError
from backy.model.extent import Extent, Kind, merge
from backy.stores.codec import Codec
from backy.system import files, signals
from backy.system.files import AnyPath

LINE = 65  # bytes: 64 hex digits and a newline
PIECE = 1 << 16  # lines read at a time: 4 MiB of memory, whatever the size of the disk
_SMALL_PIECE = 1 << 12  # lines read at a time if the caller may stop after the first result
UNWRITTEN = bytes(LINE)
_DIGITS = b"0123456789abcdef"
_HEX = frozenset(string.hexdigits.lower())


def is_digest(text: str) -> bool:
    """Whether a text has the form of a digest: 64 lower-case hex digits."""
    return len(text) == LINE - 1 and _HEX.issuperset(text)


def block_count(size: int, block_size: int) -> int:
    """How many blocks a disk of `size` bytes has. The last one may be short."""
    return -(-size // block_size)


class Index:
    """An index in an open file, for reading. Several threads may use it."""

    def __init__(self, file: files.File, size: int, block_size: int, codec: Codec) -> None:
        self.file = file
        self.size = size
        self.block_size = block_size
        self.blocks = block_count(size, block_size)
        self.codec = codec

    def length_of(self, number: int) -> int:
        """The length of a block in bytes: the block size, or less for the last block."""
        return min(self.block_size, self.size - number * self.block_size)

    def comparable(self, other: Index) -> int:
        """How many blocks from the start have the same length in both, so may be the same."""
        if self.block_size != other.block_size:
            return 0
        if self.size == other.size:
            return self.blocks
        return min(self.size, other.size) // self.block_size

    def lines(self, first: int, count: int) -> bytes:
        """`count` lines as they are. Raises DamagedError if they cannot all be read."""
        try:
            lines = self.file.read_bytes(first * LINE, count * LINE)
        except OSError as error:
            raise DamagedError(f"reading {self.file.path}: {error.strerror}") from error
        if len(lines) != count * LINE:
            raise DamagedError(f"{self.file.path} ends in line {first + len(lines) // LINE}")
        return lines

    def digest(self, number: int) -> str:
        """The digest of block `number`. Raises DamagedError if the line is not 64 hex digits.

        This check also keeps a forged index from naming a path outside the repository.
        """
        line = self.lines(number, 1)
        digest = line[:-1].decode("ascii", "replace")
        if line[-1:] != b"\n" or not is_digest(digest):
            raise DamagedError(f"{self.file.path}: line {number} is not a hash")
        return digest

    def pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """All lines as (first line, count, bytes), at most PIECE lines at a time."""
        for first in range(0, self.blocks, PIECE):
            signals.obey()
            count = min(PIECE, self.blocks - first)
            yield first, count, self.lines(first, count)

    def find(self, digests: Collection[str]) -> Iterator[tuple[int, str]]:
        """The blocks with one of these digests, as (number, digest), ascending."""
        wanted = {digest.encode() for digest in digests}
        for first, count, lines in self.pieces():
            if not wanted.isdisjoint(lines.split()):
                for number in range(count):
                    line = lines[number * LINE : (number + 1) * LINE - 1]
                    if line in wanted:
                        yield first + number, line.decode()

    def zero_line(self, number: int) -> bytes:
        """The line that a block of zeroes has at `number`."""
        return (self.codec.zero_digest(self.length_of(number)) + "\n").encode()

    def data(self) -> int:
        """How many bytes are in blocks that are not zero. A short last block always counts."""
        zero = (self.codec.zero_digest(self.block_size) + "\n").encode()
        return self.size - self.block_size * sum(lines.count(zero) for _, _, lines in self.pieces())

    def data_blocks(self, first: int, end: int) -> Iterator[int]:
        """The numbers of the blocks in [first, end) that are not zero, ascending.

        Reads few lines at a time, so the first result comes quickly.
        """
        whole = self.size // self.block_size
        while first < end:
            # A short last block has another zero line, so it is compared alone.
            stop = min(end, whole) if first < whole else end
            count = min(_SMALL_PIECE, stop - first)
            lines, zero = self.lines(first, count), self.zero_line(first)
            for number in range(count) if lines != zero * count else ():
                if lines[number * LINE : (number + 1) * LINE] != zero:
                    yield first + number
            first += count

    def hash(self) -> str:
        """The digest of the file, which revision.json records as `index_hash`.

        Raises DamagedError if the length is wrong or a line is not a hash.
        """
        if self.file.size() != self.blocks * LINE:
            sizes = f"{self.file.size()} bytes, not {self.blocks * LINE}"
            raise DamagedError(f"{self.file.path} has {sizes}")
        return self.codec.digest_of_pieces(self._checked_pieces())

    def _checked_pieces(self) -> Iterator[bytes]:
        """All lines. Raises DamagedError if one is not a hash."""
        for first, _, lines in self.pieces():
            if b"\0" in lines:
                unwritten = first + lines.index(b"\0") // LINE
                raise DamagedError(f"{self.file.path}: block {unwritten} was never written")
            ends = b"\n" * (len(lines) // LINE)
            if lines[LINE - 1 :: LINE] != ends or lines.translate(None, _DIGITS) != ends:
                raise DamagedError(f"{self.file.path}: a line after {first} is not a hash")
            yield lines

    def extents(
        self, since: Index | None = None, first: int = 0, end: int | None = None
    ) -> Iterator[Extent]:
        """Extents of the blocks in [first, end): SAME as in `since`, otherwise ZERO or DATA.

        A short last block is an extent of its own, because its zero line is another one.
        """
        end = self.blocks if end is None else min(end, self.blocks)
        whole = self.size // self.block_size
        yield from merge(self._extents(since, first, min(end, whole)))
        yield from self._extents(since, max(first, whole), end)

    def _extents(self, since: Index | None, first: int, end: int) -> Iterator[Extent]:
        while first < end:
            signals.obey()
            count = min(PIECE, end - first)
            lines, old = self.lines(first, count), b""
            if since:
                old = since.lines(first, max(0, min(count, self.comparable(since) - first)))
            for kind, number, length in _runs(lines, old, self.zero_line(first)):
                start = (first + number) * self.block_size
                stop = min(start + length * self.block_size, self.size)
                yield Extent(start, stop - start, kind)
            first += count


def _runs(lines: bytes, old: bytes, zero: bytes) -> Iterator[tuple[Kind, int, int]]:
    """Runs of one kind as (kind, first line, count). The usual cases cost one comparison."""
    count = len(lines) // LINE
    if lines == old:
        yield Kind.SAME, 0, count
    elif not old and lines == zero * count:
        yield Kind.ZERO, 0, count
    else:

        def kind(number: int) -> Kind:
            line = lines[number * LINE : number * LINE + LINE]
            if line == old[number * LINE : number * LINE + LINE]:
                return Kind.SAME
            return Kind.ZERO if line == zero else Kind.DATA

        for run_kind, group in groupby(range(count), kind):
            numbers = list(group)
            yield run_kind, numbers[0], len(numbers)


class IndexDraft(Index):
    """An index while it is written. Starts with the parent's lines; takes lines in any order."""

    def put(self, number: int, digest: str) -> None:
        """Write the line of block `number`."""
        self.file.write(number * LINE, (digest + "\n").encode())

    def discard(self, first: int, count: int) -> None:
        """Make lines unwritten again, whatever the parent had there."""
        for start in range(first, first + count, PIECE):
            self.file.write(start * LINE, UNWRITTEN * min(PIECE, first + count - start))

    def put_zero(self, first: int, count: int) -> None:
        """Write the lines of `count` zero blocks, which have all the same length."""
        line = self.zero_line(first)
        for start in range(first, first + count, PIECE):
            self.file.write(start * LINE, line * min(PIECE, first + count - start))


def start_draft(
    path: AnyPath, size: int, block_size: int, codec: Codec, parent: Index | None
) -> IndexDraft:
    """Create the index of a draft at `path`, with the lines that it can take from its parent.

    If the disk was resized, the line of a short last block is not one of them. The caller closes
    `.file`. Raises OSError.
    """
    file = files.create(path)
    draft = IndexDraft(file, size, block_size, codec)
    if parent:
        file.copy_from(parent.file, draft.comparable(parent) * LINE)
    file.resize(draft.blocks * LINE)
    return draft
