"""What the revisions of a repository use: whoever deletes the rest must know all of it."""

from __future__ import annotations

import secrets

from backy.errors import DamagedError
from backy.stores.index import Index
from backy.stores.pages import LINE

_DIGEST_BITS = 28  # of each digest, which UsedDigests looks at; it takes 2**28 bits: 32 MiB


class Used:
    """The pages of all indexes that were added, and the blocks in them. Reads each page once.

    What cannot be read may use anything, so nothing that it may use is called unused. `unknown`
    says what that was.
    """

    def __init__(self, *, has_named_blocks: bool) -> None:
        self.unknown: list[str] = []
        self._pages: set[str] = set()
        self._blocks = UsedDigests() if has_named_blocks else None
        self._all_pages_known = True

    def add(self, index: Index, index_hash: str) -> None:
        """Add the index with this hash, with its pages and their blocks."""
        self._pages.add(index_hash)
        try:
            for page, name in enumerate(index.names()):
                if name not in self._pages:
                    self._pages.add(name)
                    self._add_page(index, page)
        except DamagedError as error:
            self.add_unknown(error.message)

    def _add_page(self, index: Index, page: int) -> None:
        if not self._blocks:
            return
        try:
            self._blocks.add_all(index.page(page))
        except DamagedError as error:
            self.unknown.append(f"{index.path}: {error.message}")

    def add_unknown(self, text: str) -> None:
        """Note an index that cannot be read. It may have any page."""
        self.unknown.append(text)
        self._all_pages_known = False

    def is_page(self, digest: str) -> bool:
        """Whether a page, or an index, may be in use."""
        return not self._all_pages_known or digest in self._pages

    def is_block(self, digest: str) -> bool:
        """Whether a block may be in use."""
        return bool(self.unknown) or not self._blocks or digest in self._blocks


class UsedDigests:
    """A set of digests that takes 32 MiB, however many it has. It may say yes too often, never no.

    It remembers 28 bits of each digest, so it takes a digest for a member if another one has the
    same bits. With a million members that is 0.4 % of all others, whose chunks stay until a later
    purge: each set looks at other 28 bits. A Python set would take 100 bytes for each digest.
    """

    def __init__(self) -> None:
        self._bits = bytearray(1 << (_DIGEST_BITS - 3))
        self._start = secrets.randbelow(64 - _DIGEST_BITS // 4 + 1)

    def _bit_of(self, digest: bytes | str) -> tuple[int, int]:
        """Where the bit of a digest is: the byte, and the bit in it as a mask."""
        value = int(digest[self._start : self._start + _DIGEST_BITS // 4], 16)
        return value >> 3, 1 << (value & 7)

    def __contains__(self, digest: str) -> bool:
        byte, bit = self._bit_of(digest)
        return bool(self._bits[byte] & bit)

    def add_all(self, lines: bytes) -> None:
        """Add every line of a page."""
        for start in range(0, len(lines), LINE):
            byte, bit = self._bit_of(lines[start : start + LINE])
            self._bits[byte] |= bit
