"""Repositories made by hand, from the description of the format on disk and from no code of backy.

What restores from these restores by the format, and not by what backy happens to write.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blake3
import zstandard

RESTORE_SH = Path(__file__).parents[2] / "src" / "backy" / "repository" / "restore.sh"
MIB = 1024**2
PAGE = 252  # how many blocks a page names


@dataclass(frozen=True, slots=True)
class Handmade:
    """A repository at `path`, which `make` begins and `add` fills."""

    path: Path
    store: Literal["chunks", "images"]
    block_size: int = MIB
    format: Literal[1, 2] = 2

    def make(self) -> None:
        """Make the folder with everything but revisions."""
        self.path.mkdir(parents=True)
        settings = {"format": self.format, "store": self.store, "block_size": self.block_size}
        (self.path / "repository.json").write_text(json.dumps(settings, indent=2))
        for name in ("revisions", "trash", "quarantine"):
            (self.path / name).mkdir()
        if self.store == "chunks":
            (self.path / "chunks").mkdir()
        if self.format == 2:
            (self.path / "pages").mkdir()
            (self.path / "twins").mkdir()
        shutil.copy(RESTORE_SH, self.path / "restore.sh")
        (self.path / "restore.sh").chmod(0o755)

    def add(
        self,
        revision: str,
        disks: Mapping[str, bytes],
        *,
        tags: Sequence[str] = ("daily",),
        trust: str = "trusted",
    ) -> None:
        """Add a revision, its id such as 20261123T004938Z-x7k2, with these disks."""
        folder = self.path / "revisions" / revision
        folder.mkdir()
        document = {
            "format": self.format,
            "id": revision,
            "time": time_of(revision),
            "parent": None,
            "tags": list(tags),
            "trust": trust,
            # The keys of disks stand in other places too, where a reader must not take them from.
            "verification": {name: {"size": 1, "block_size": 1} for name in disks},
            "disks": {name: self._add_disk(folder, name, data) for name, data in disks.items()},
            "durations": {"vda": {"size": 2}},
            "warnings": ["this is no tag"],
        }
        (folder / "revision.json").write_text(json.dumps(document, indent=2))

    def index(self, revision: str, disk: str) -> Path:
        """The list of the pages of a disk, or in format 1 of its blocks: one hash a line."""
        return self.path / "revisions" / revision / f"{disk}.blocks"

    def index_twin(self, revision: str, disk: str) -> Path:
        """The second copy of the index, which format 1 does not have."""
        return self.path / list_name("twins", digest_of(self.index(revision, disk).read_bytes()))

    def pages(self, revision: str, disk: str) -> list[Path]:
        """The files with the pages of a disk, in its order, which format 1 does not have."""
        digests = self.index(revision, disk).read_text().splitlines()
        return [self.path / list_name("pages", digest) for digest in digests]

    def twin(self, page: Path) -> Path:
        """The second copy of a page."""
        return self.path / list_name("twins", page.name)

    def lines(self, revision: str, disk: str) -> list[str]:
        """The hashes of the blocks of a disk, whatever the format."""
        if self.format == 1:
            return self.index(revision, disk).read_text().splitlines()
        pages = self.pages(revision, disk)
        return [digest for page in pages for digest in page.read_text().splitlines()]

    def image(self, revision: str, disk: str) -> Path:
        """The plain image, which is there in the store "images" only."""
        return self.path / "revisions" / revision / f"{disk}.img"

    def chunk(self, revision: str, disk: str, block: int) -> Path:
        """The file with that block, which is there in the store "chunks" only."""
        return self.path / chunk_name(self.lines(revision, disk)[block])

    def _add_disk(self, folder: Path, name: str, data: bytes) -> dict[str, object]:
        hashes = [self._add_block(block) for block in blocks(data, self.block_size)]
        index = text_of(hashes)
        if self.format == 2:
            pages = [text_of(hashes[at : at + PAGE]) for at in range(0, len(hashes), PAGE)]
            index = text_of([self._add_list(page, "pages", "twins") for page in pages])
            self._add_list(index, "twins")
        (folder / f"{name}.blocks").write_bytes(index)
        if self.store == "images":
            write_sparse(folder / f"{name}.img", data)
            (folder / f"{name}.img").chmod(0o444)
        return {
            "size": len(data),
            "block_size": self.block_size,
            "index_hash": digest_of(index),
            "changes": {"kind": "full", "size": 3},
        }

    def _add_list(self, text: bytes, *folders: str) -> str:
        digest = digest_of(text)
        for folder in folders:
            path = self.path / list_name(folder, digest)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text)
        return digest

    def _add_block(self, block: bytes) -> str:
        digest = digest_of(block)
        chunk = self.path / chunk_name(digest)
        if self.store == "chunks" and not chunk.exists():
            chunk.parent.mkdir(exist_ok=True)
            chunk.write_bytes(compressed(block))
        return digest


def digest_of(content: bytes) -> str:
    """The name of a block or page, and the hash of an index."""
    return blake3.blake3(content).hexdigest()


def chunk_name(digest: str) -> str:
    """Where the block with this hash is, seen from the repository."""
    return f"chunks/{digest[:2]}/{digest}.zst"


def list_name(folder: str, digest: str) -> str:
    """Where `folder`, which is "pages" or "twins", has the list with this hash."""
    return f"{folder}/{digest[:2]}/{digest}"


def text_of(digests: Sequence[str]) -> bytes:
    """A page or an index: one hash a line."""
    return "".join(f"{digest}\n" for digest in digests).encode()


def compressed(block: bytes) -> bytes:
    """A zstd frame with content size and checksum."""
    return zstandard.ZstdCompressor(write_checksum=True, write_content_size=True).compress(block)


def blocks(data: bytes, size: int) -> Iterator[bytes]:
    """All blocks; the last one is shorter where the disk is no multiple of a block."""
    for offset in range(0, len(data), size):
        yield data[offset : offset + size]


def frame_length(chunk: Path) -> int:
    """The bytes of the frame in a chunk; what follows only fills the last page of the file."""
    content = chunk.read_bytes()
    unpacked = zstandard.ZstdDecompressor().decompressobj()
    unpacked.decompress(content)
    return len(content) - len(unpacked.unused_data)


def write_sparse(path: Path, data: bytes) -> None:
    """Write `data` with a hole for every 64 KiB that are zero."""
    with path.open("wb") as file:
        for block in blocks(data, 65536):
            if block != bytes(len(block)):
                file.write(block)
            else:
                file.seek(len(block), os.SEEK_CUR)
        file.truncate(len(data))


def time_of(revision: str) -> str:
    """20261123T004938Z-x7k2 -> 2026-11-23T00:49:38Z."""
    date, time = revision[:8], revision[9:15]
    return f"{date[:4]}-{date[4:6]}-{date[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}Z"
