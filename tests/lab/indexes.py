"""What revisions of format 2 need of pages and twins, and repositories of format 1.

From the description in docs/formats.md and from no code of backy.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from tests.lab.paged import blake3_of, block_hashes, page_names, place, text_of

COPIES = ("pages", "twins")


def format_of(revision: Path) -> int:
    """The format of a revision, which its folder's revision.json says."""
    version: int = json.loads((revision / "revision.json").read_text())["format"]
    return version


def lists_of(root: Path) -> set[str]:
    """Both copies of each list that revisions of format 2 use, relative to the repository."""
    found = set()
    for record in root.glob("revisions/*/revision.json"):
        if format_of(record.parent) == 1:
            continue
        for disk, entry in json.loads(record.read_text())["disks"].items():
            found.add(f"revisions/{record.parent.name}/{disk}.blocks")
            found.add(str(place(Path(), "twins", entry["index_hash"])))
            for name in page_names(record.parent, disk):
                found |= {str(place(Path(), each, name)) for each in COPIES}
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
        if not path.is_file() or blake3_of(path.read_bytes()) != wanted:
            bad.add(name)
    return bad


def turn_back(root: Path, digest: Callable[[bytes], str] = blake3_of) -> None:
    """Make a repository one of format 1, as older versions wrote it, with the same revisions."""
    revisions = root.glob("revisions/*/revision.json"), root.glob("trash/*/*/revision.json")
    for record in chain(*revisions):
        document = json.loads(record.read_text())
        for disk, entry in document["disks"].items():
            lines = text_of(block_hashes(root, record.parent, disk))
            (record.parent / f"{disk}.blocks").write_bytes(lines)
            entry["index_hash"] = digest(lines)
            entry.pop("pages", None)
        _write_record(record, document)
    _write_record(root / "repository.json", json.loads((root / "repository.json").read_text()))
    for folder in COPIES:
        shutil.rmtree(root / folder, ignore_errors=True)


def _write_record(path: Path, document: dict[str, object]) -> None:
    document["format"] = 1
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
