"""What can happen to the pages and indexes of a repository, and how often its pages are read."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from backy.stores.pages import Pages
from tests.lab.handmade import digest_of


def index_copies(root: Path, folder: Path, disk: str = "vda") -> list[Path]:
    """Both copies of the index of a disk of the revision in `folder`."""
    path = folder / f"{disk}.blocks"
    name = digest_of(path.read_bytes())
    return [path, root / "twins" / name[:2] / name]


def lose(paths: Iterable[Path]) -> None:
    """Delete these files."""
    for path in paths:
        path.unlink()


def spoil(paths: Iterable[Path]) -> None:
    """Flip a bit in the middle of each of these files."""
    for path in paths:
        with path.open("r+b") as file:
            offset = path.stat().st_size // 2
            [byte] = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)


@contextmanager
def pages_read() -> Iterator[Counter[tuple[str, bool]]]:
    """Count how often each page is read, by its name and whether both copies are checked."""
    reads: Counter[tuple[str, bool]] = Counter()
    get = Pages.get

    def counted(pages: Pages, name: str, count: int, *, is_checked: bool = False) -> bytes:
        reads[name, is_checked] += 1
        return get(pages, name, count, is_checked=is_checked)

    with patch.object(Pages, "get", counted):
        yield reads
