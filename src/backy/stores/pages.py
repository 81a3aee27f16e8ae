"""Pages: lists of digests, named by their own digest, and shared by the indexes of a repository.

A page is metadata of many revisions, so it is kept twice: in `pages` and, as its twin, in `twins`.
An index has a twin, too. Each read checks the hash; a bad copy is replaced by the good one.
"""

from __future__ import annotations

from backy.errors import DamagedError, DamageIgnored, StoreError, translated
from backy.stores.codec import Codec
from backy.stores.named_files import NamedFiles
from backy.system import files
from backy.system.files import Cache
from backy.system.place import Place

LINE = 65  # bytes: 64 hex digits and a newline
_MOST_NOTES = 10
_DIGITS = b"0123456789abcdef"


def is_list(lines: bytes) -> bool:
    """Whether these are whole lines of 64 lower-case hex digits each.

    So a forged list cannot name a path outside the repository.
    """
    ends = b"\n" * (len(lines) // LINE)
    return lines[LINE - 1 :: LINE] == ends and lines.translate(None, _DIGITS) == ends


class Pages:
    """The pages of the repository in `root`. Several threads may use it.

    `checked` counts the bytes of all copies of pages and indexes that were read to check them.
    """

    def __init__(self, root: Place, codec: Codec) -> None:
        self.codec = codec
        self.twins = NamedFiles(root / "twins", cache=Cache.USE)
        self.copies = NamedFiles(root / "pages", cache=Cache.USE), self.twins
        self._notes: list[str] = []
        self.checked = 0

    def get(self, name: str, count: int, *, is_checked: bool = False) -> bytes:
        """The page with this digest, which has `count` lines.

        With `is_checked` it reads both copies, and from the medium. A bad copy is repaired by the
        good one. Raises DamagedError if neither is good.
        """
        cache = Cache.AVOID if is_checked else Cache.USE
        good, bad = b"", []
        for copy in self.copies:
            path = copy.path(name)
            content = self.read(path, name, count, cache)
            if not content:
                bad.append(path)
                continue
            good = content
            if not is_checked:
                break
        if not good or not is_list(good):
            path = self.copies[0].path(name)
            hint = "Another revision may be whole: backy verify shows which are."
            raise DamagedError(f"{path} and its twin are missing or damaged", hint)
        for path in bad:
            self.mend(path, good)
        return good

    def read(self, path: Place, name: str, count: int, cache: Cache) -> bytes:
        """The content of a page or index of `count` lines; nothing if it is missing or not `name`.

        Raises DamagedError if this machine could not read it.
        """
        content = b""
        with (
            DamageIgnored(),
            translated(DamagedError, f"reading {path}"),
            files.open_to_read(path, cache) as file,
        ):
            if file.size() == count * LINE:  # or a record is wrong, and asks for terabytes
                buffer = files.buffer(count * LINE + files.PAGE)
                content = bytes(buffer[: file.read_into(0, buffer)])
        if cache is Cache.AVOID:
            self.checked += len(content)
        is_whole = len(content) == count * LINE and self.codec.digest(content) == name
        return content if is_whole else b""

    def mend(self, path: Place, content: bytes, *, is_index: bool = False) -> None:
        """Replace a bad page, twin or index by its other copy, whose `content` is good.

        In a repository that is read-only or full, the good copy must do. No folder is made for an
        index: its revision may have been removed meanwhile.
        """
        try:
            write = self.twins.replace_durably if is_index else self.twins.repair
            write(path, content)
        except OSError as error:
            self._notes.append(f"{path} is damaged, and cannot be replaced: {error.strerror}")
        else:
            self._notes.append(f"{path} was damaged; its other copy was good and replaced it")

    def take_notes(self) -> list[str]:
        """What was found since the last call: a sentence for each bad copy."""
        notes, self._notes = self._notes, []
        more = len(notes) - _MOST_NOTES
        return [*notes[:_MOST_NOTES], *[f"so it was with {more} more such files"] * (more > 0)]

    def put(self, content: bytes) -> tuple[str, int]:
        """Keep a page; return its digest, and how many bytes were written."""
        name = self.codec.digest(content)
        return name, sum(self.put_copy(copy, name, content) for copy in self.copies)

    def put_copy(self, copy: NamedFiles, name: str, content: bytes) -> int:
        """Keep one of the `copies` of a page or index; return how many bytes were written."""
        path = copy.path(name)
        with translated(StoreError, f"writing {path}"):
            if not path.exists():
                copy.create(path, content)
            elif self.read(path, name, len(content) // LINE, Cache.USE):
                return 0
            else:
                copy.repair(path, content)
        return len(content)

    def twin(self, name: str) -> Place:
        """Where the twin of an index is."""
        return self.twins.path(name)
