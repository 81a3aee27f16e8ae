"""The index of an image: the digest of each block, 64 hex digits and a newline a block.

The fixed width puts line n at byte 65 * n, so a delta patches the lines that changed, and `sed`
turns the file into the list of chunks (docs/formats.md). A draft's line is 65 NUL bytes until its
block has been written: a hole in the file, so an unwritten index of any length costs nothing.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path

from backy.errors import DamagedError
from backy.model.extent import Extent, Kind, merge
from backy.stores.codec import Codec
from backy.system import files

LINE = 65  # bytes: 64 hex digits and a newline
PIECE = 1 << 16  # lines looked at in one go: 4 MiB of memory, whatever the disk's size
_FEW = 1 << 12  # lines looked at where the first answer may be the last that is wanted
UNWRITTEN = bytes(LINE)
_DIGITS = b"0123456789abcdef"
_HEX = frozenset(string.hexdigits.lower())


def is_digest(text: str) -> bool:
    """Whether a text has the form of a digest: 64 lower-case hex digits."""
    return len(text) == LINE - 1 and _HEX.issuperset(text)


def block_count(size: int, block_size: int) -> int:
    """How many blocks an image of `size` bytes has; the last may be short."""
    return -(-size // block_size)


class Index:
    """The index in an open file, for reading; safe for several threads."""

    def __init__(self, file: files.File, size: int, block_size: int, codec: Codec) -> None:
        self.file = file
        self.size = size
        self.block_size = block_size
        self.blocks = block_count(size, block_size)
        self.codec = codec

    def length_of(self, number: int) -> int:
        """The bytes in block `number`: the block size, or less for the last."""
        return min(self.block_size, self.size - number * self.block_size)

    def comparable(self, other: Index) -> int:
        """How many blocks can be the same as in `other`; a short last one only in equal sizes."""
        whole = min(self.size, other.size) // self.block_size
        count = self.blocks if self.size == other.size else whole
        return count if self.block_size == other.block_size else 0

    def lines(self, first: int, count: int) -> bytes:
        """`count` raw lines. Raises DamagedError where the file ends before or is unreadable."""
        try:
            lines = self.file.read_bytes(first * LINE, count * LINE)
        except OSError as error:
            raise DamagedError(f"reading {self.file.path}: {error.strerror}") from error
        if len(lines) != count * LINE:
            raise DamagedError(f"{self.file.path} ends within line {first + len(lines) // LINE}")
        return lines

    def digest(self, number: int) -> str:
        """The name of block `number`. Raises DamagedError where the line is not 64 hex digits.

        That check is also what keeps a forged index from naming a path outside the repository.
        """
        line = self.lines(number, 1)
        digest = line[:-1].decode("ascii", "replace")
        if line[-1:] != b"\n" or not is_digest(digest):
            raise DamagedError(f"{self.file.path}: line {number} is not a hash")
        return digest

    def pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """All lines as (first line, how many, bytes), at most PIECE lines at a time."""
        for first in range(0, self.blocks, PIECE):
            count = min(PIECE, self.blocks - first)
            yield first, count, self.lines(first, count)

    def find(self, digests: Collection[str]) -> Iterator[tuple[int, str]]:
        """The blocks that have one of these names, as (number, name), ascending."""
        wanted = {digest.encode() for digest in digests}
        for first, count, lines in self.pieces():
            if not wanted.isdisjoint(lines.split()):
                for number in range(count):
                    line = lines[number * LINE : (number + 1) * LINE - 1]
                    if line in wanted:
                        yield first + number, line.decode()

    def zero_line(self, number: int) -> bytes:
        """The line that block `number` has where it is all zero."""
        return (self.codec.zero_digest(self.length_of(number)) + "\n").encode()

    def data(self) -> int:
        """The bytes in blocks that are not zero, by their names; a short last block counts."""
        zero = (self.codec.zero_digest(self.block_size) + "\n").encode()
        return self.size - self.block_size * sum(lines.count(zero) for _, _, lines in self.pieces())

    def data_blocks(self, first: int, end: int) -> Iterator[int]:
        """The numbers of the blocks from `first` to before `end` that are not zero, ascending.

        Lazy, and looks at few lines at a time: asking for the first one costs little.
        """
        whole = self.size // self.block_size
        while first < end:
            # A short last block has another zero line, so it is looked at alone.
            count = min(_FEW, (min(end, whole) if first < whole else end) - first)
            lines, zero = self.lines(first, count), self.zero_line(first)
            for number in range(count) if lines != zero * count else ():
                if lines[number * LINE : (number + 1) * LINE] != zero:
                    yield first + number
            first += count

    def hash(self) -> str:
        """The digest of the file, which revision.json records.

        Raises DamagedError where the length is wrong or a line was never written.
        """
        if self.file.size() != self.blocks * LINE:
            sizes = f"{self.file.size()} bytes, not {self.blocks * LINE}"
            raise DamagedError(f"{self.file.path} has {sizes}")
        return self.codec.digest_of_pieces(self._checked_pieces())

    def _checked_pieces(self) -> Iterator[bytes]:
        """All lines. Raises DamagedError at a piece in which one is not a digest."""
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
        """What the blocks hold: SAME where `since` has the same line, ZERO by their name, or DATA.

        Covers the blocks from `first` to before `end`. A short last block is an extent of its
        own: the zero block of another length has another name.
        """
        end = self.blocks if end is None else min(end, self.blocks)
        whole = self.size // self.block_size
        yield from merge(self._extents(since, first, min(end, whole)))
        yield from self._extents(since, max(first, whole), end)

    def _extents(self, since: Index | None, first: int, end: int) -> Iterator[Extent]:
        while first < end:
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
    """Runs of equal kind as (kind, first line, how many); the common cases cost one comparison."""
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
    """An index while it is written: the parent's lines, patched, in any order."""

    def put(self, number: int, digest: str) -> None:
        """Name block `number`."""
        self.file.write(number * LINE, (digest + "\n").encode())

    def discard(self, first: int, count: int) -> None:
        """Make blocks unwritten again, whatever the parent had there."""
        for start in range(first, first + count, PIECE):
            self.file.write(start * LINE, UNWRITTEN * min(PIECE, first + count - start))

    def put_zero(self, first: int, count: int) -> None:
        """Name `count` blocks, all of one length, as zero."""
        line = self.zero_line(first)
        for start in range(first, first + count, PIECE):
            self.file.write(start * LINE, line * min(PIECE, first + count - start))


def start_draft(
    path: Path, size: int, block_size: int, codec: Codec, parent: Index | None
) -> IndexDraft:
    """Make a draft's index file, with those of the parent's lines whose blocks can be the same.

    Where the disk was resized, a short last block is not one of them. The caller closes `.file`.
    """
    file = files.create(path)
    draft = IndexDraft(file, size, block_size, codec)
    if parent:
        file.copy_from(parent.file, draft.comparable(parent) * LINE)
    file.resize(draft.blocks * LINE)
    return draft
