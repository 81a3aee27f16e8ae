"""What the revisions of a repository use: whoever deletes the rest must know all of it."""

import re
import secrets
from collections.abc import Callable
from itertools import count

from backy.errors import DamagedError, StoreError, translated
from backy.stores.index import Index, PagedIndex
from backy.stores.pages import LINE, NamedFiles
from backy.system import folders
from backy.system.place import Place

_PREFIX = re.compile("[0-9a-f]{2}")  # of digests, the name of a folder
_DIGEST = re.compile("[0-9a-f]{64}")
_DIGEST_BITS = 28  # of each digest, which UsedDigests looks at; it takes 2**28 bits: 32 MiB


class Used:
    """The pages of all indexes that were added, and the blocks in them. Reads each page once.

    What cannot be read may use anything, so nothing that it may use is called unused. `unknown`
    says what that was.
    """

    def __init__(self, *, has_named_blocks: bool) -> None:
        self.unknown: list[str] = []
        self._read: set[str] = set()  # pages of both formats whose blocks are known
        self._lists: set[str] = set()  # pages and indexes that are files of their own
        self._blocks = UsedDigests() if has_named_blocks else None
        self._all_pages_known = True

    def add(self, index: Index, index_hash: str) -> None:
        """Add the index with this hash, with its pages and their blocks."""
        try:
            # A long history has millions of names, nearly all of them known.
            places = dict(zip(index.names(), count(), strict=False))
            new = set(places) - self._read
            self._read |= new
            for page in sorted(places[name] for name in new):
                self._add_page(index, page)
            if isinstance(index, PagedIndex):
                self._lists |= places.keys() | {index_hash}
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

    def remove_others(
        self, files: NamedFiles, leave: Callable[[Place], None], *, are_pages: bool
    ) -> int:
        """Delete the pages and indexes, or the blocks, that are surely not used; may keep a few.

        Returns how many bytes that freed. What is not named by a digest was not made by backy. It
        stays, and `leave` gets it. Raises StoreError.
        """
        is_used = self._is_page if are_pages else self.is_block
        freed = 0
        for folder in (files.folder / name for name in folders.list_folder(files.folder)):
            if not (_PREFIX.fullmatch(folder.name) and folder.is_folder()):
                leave(folder)
                continue
            for file in (folder / name for name in folders.list_folder(folder)):
                is_draft = file.name.startswith(".")
                digest = file.name.lstrip(".").partition(".")[0]
                is_complete = file.name == digest + files.suffix
                if not (_DIGEST.fullmatch(digest) and (is_complete or is_draft)):
                    leave(file)
                elif is_draft or not is_used(digest):
                    with translated(StoreError, f"removing {file}"):
                        freed += folders.remove_file(file)
        return freed

    def _is_page(self, digest: str) -> bool:
        return not self._all_pages_known or digest in self._lists

    def is_block(self, digest: str) -> bool:
        """Whether a block may be in use; see UsedDigests."""
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

    def __contains__(self, digest: str) -> bool:
        value = int(digest[self._start : self._start + _DIGEST_BITS // 4], 16)
        return bool(self._bits[value >> 3] & 1 << (value & 7))

    def add_all(self, lines: bytes) -> None:
        """Add every line of a page."""
        # As in `__contains__`: a long history has millions of lines, a call for each is slow.
        bits, digits = self._bits, _DIGEST_BITS // 4
        for start in range(self._start, len(lines), LINE):
            value = int(lines[start : start + digits], 16)
            bits[value >> 3] |= 1 << (value & 7)
