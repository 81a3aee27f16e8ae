"""Indexes and pages as files, from the description of both formats and from no code of backy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from tests.lab.handmade import digest_of

PAGE_BLOCKS = 252
COPIES = ("pages", "twins")


def format_of(revision: Path) -> int:
    """The format of a revision, which its folder's revision.json says."""
    version: int = json.loads((revision / "revision.json").read_text())["format"]
    return version


def page_path(root: Path, name: str, folder: str = "pages") -> Path:
    """Where a page is in a repository; with "twins" where its twin is, or that of an index."""
    return root / folder / name[:2] / name


def page_names(revision: Path, disk: str) -> list[str]:
    """The pages of a disk of a revision of format 2, in order."""
    return (revision / f"{disk}.blocks").read_text().split()


def block_names(root: Path, revision: Path, disk: str) -> list[str]:
    """The hashes of all blocks of a disk, in order, whatever the format of the revision."""
    names = page_names(revision, disk)
    if format_of(revision) == 1:
        return names
    return [line for name in names for line in page_path(root, name).read_text().split()]


def page_of(blocks: list[bytes]) -> bytes:
    """The page of these blocks."""
    return "".join(f"{digest_of(block)}\n" for block in blocks).encode()


def lists_of(root: Path) -> set[str]:
    """Both copies of each list that revisions of format 2 use, relative to the repository."""
    found = set()
    for record in root.glob("revisions/*/revision.json"):
        if format_of(record.parent) == 1:
            continue
        for disk, entry in json.loads(record.read_text())["disks"].items():
            found.add(f"revisions/{record.parent.name}/{disk}.blocks")
            found.add(str(page_path(Path(), entry["index_hash"], "twins")))
            for name in page_names(record.parent, disk):
                found |= {str(page_path(Path(), name, each)) for each in COPIES}
    return found


def bad_lists(root: Path) -> set[str]:
    """Those of them that are missing, or do not have their hash."""
    bad = set()
    for name in lists_of(root):
        path = root / name
        wanted = path.name
        if path.suffix:
            record = json.loads((path.parent / "revision.json").read_text())
            wanted = record["disks"][path.stem]["index_hash"]
        if not path.is_file() or digest_of(path.read_bytes()) != wanted:
            bad.add(name)
    return bad


def turn_back(root: Path, digest: Callable[[bytes], str] = digest_of) -> None:
    """Make a repository one of format 1, as older versions wrote it, with the same revisions."""
    revisions = root.glob("revisions/*/revision.json"), root.glob("trash/*/*/revision.json")
    for record in chain(*revisions):
        document = json.loads(record.read_text())
        for disk, entry in document["disks"].items():
            lines = "".join(f"{name}\n" for name in block_names(root, record.parent, disk))
            (record.parent / f"{disk}.blocks").write_text(lines)
            entry["index_hash"] = digest(lines.encode())
            entry.pop("pages", None)
        _write_record(record, document)
    _write_record(root / "repository.json", json.loads((root / "repository.json").read_text()))
    for folder in COPIES:
        shutil.rmtree(root / folder, ignore_errors=True)


def _write_record(path: Path, document: dict[str, object]) -> None:
    document["format"] = 1
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
