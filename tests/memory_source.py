"""A second implementation of Source and Image, in memory: the double, and the smallest example."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from random import Random

from backy.errors import SourceError
from backy.model.extent import Extent, Kind, merge
from backy.model.revision import Consistency
from backy.sources import Request, TakenSnapshot

PIECE = 512  # bytes; extents are told in these, so they hardly ever end where a block does


class BytesImage:
    """An Image of `content`; SAME is what `parent` has in the same place, if a parent is given."""

    def __init__(self, content: bytes, parent: bytes | None = None) -> None:
        self.content = content
        self.size = len(content)
        self._parent = parent

    def extents(self) -> Iterator[Extent]:
        return merge(self._pieces())

    def _pieces(self) -> Iterator[Extent]:
        for start in range(0, self.size, PIECE):
            piece = self.content[start : start + PIECE]
            if self._parent is not None and piece == self._parent[start : start + len(piece)]:
                kind = Kind.SAME
            else:
                kind = Kind.ZERO if piece == bytes(len(piece)) else Kind.DATA
            yield Extent(start, len(piece), kind)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise SourceError(f"the image ends at byte {self.size}")
        buffer[:] = self.content[offset : offset + len(buffer)]


class MemorySource:
    """A Source of disks in memory, which tells what changed since the revisions that it knows."""

    is_shared = True

    def __init__(
        self,
        disks: Mapping[str, bytes],
        known: Mapping[str, Mapping[str, bytes]] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """`known` has the disks of earlier revisions by id; without them, all is DATA or ZERO."""
        self.disks = disks
        self.known = known or {}
        self.files = files or {}
        self.paths: dict[str, Path] = {}
        self.full_read_reasons: dict[str, str] = {}
        self.kept = 0
        self.kept_only: list[list[str]] = []

    def look(self) -> Collection[str]:
        return self.disks

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """What `disks` has now; what is put there later is in no snapshot."""
        yield TakenSnapshot(partial(self.opened, request, dict(self.disks)))

    @contextmanager
    def opened(self, request: Request, disks: Mapping[str, bytes]) -> Iterator["MemorySnapshot"]:
        before = self.known.get(request.parent.id, {}) if request.parent else {}
        yield MemorySnapshot(self, disks, before)

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """Nothing is left behind; what was asked for is in `kept_only`."""
        self.kept_only.append(sorted(revisions))


class MemorySnapshot:
    """Bytes do not change, so all disks are of one point in time."""

    consistency = Consistency.CRASH

    def __init__(
        self, source: MemorySource, disks: Mapping[str, bytes], before: Mapping[str, bytes]
    ) -> None:
        # A disk that was resized has no usable change information, as with every real source.
        self.disks = {
            name: BytesImage(content, old if len(old) == len(content) else None)
            for name, content in disks.items()
            for old in [before.get(name, b"")]
        }
        self.files = source.files
        self.full_read_reasons = source.full_read_reasons
        self.image_formats: dict[str, str] = {}
        self._source = source

    def warnings(self) -> Sequence[str]:
        return []

    def keep_checkpoint(self) -> None:
        self._source.kept += 1


class FailingSource(MemorySource):
    """The last of its disks cannot be read."""

    @contextmanager
    def opened(self, request: Request, disks: Mapping[str, bytes]) -> Iterator[MemorySnapshot]:
        with super().opened(request, disks) as snapshot:
            name, content = list(disks.items())[-1]
            snapshot.disks[name] = UnreadableImage(content)
            yield snapshot


class UnreadableImage(BytesImage):
    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, Kind.DATA)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        raise SourceError("input/output error")


@lru_cache(maxsize=64)
def sample(size: int, seed: int = 0) -> bytes:
    """`size` bytes that do not compress, with zeroes from a quarter to a half and near the end.

    Where these zeroes begin and end follows no boundary of any kind.
    """
    content = bytearray(Random(seed).randbytes(size))
    for start, end in ((size // 4, size // 2), (size - size // 9, size - size // 11)):
        content[start:end] = bytes(end - start)
    return bytes(content)


def changed(content: bytes, *offsets: int, length: int = 100, seed: int = 1) -> bytes:
    """`content` with `length` other bytes at each of `offsets`, none of which is what was there."""
    new = bytearray(content)
    noise = Random(seed)
    for offset in offsets:
        for position in range(offset, min(offset + length, len(content))):
            new[position] ^= noise.randrange(1, 256)
    return bytes(new)
