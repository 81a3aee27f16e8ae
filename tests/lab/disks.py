"""Disks with several pages that cost little: most of their blocks are zero."""

from tests.lab.repositories import BLOCK
from tests.memory_source import sample

PAGE = 252 * BLOCK  # bytes of a disk whose blocks are in one page


def sparse(*, pages: int, rest: int, seed: int = 0) -> bytes:
    """So many full pages and `rest` bytes; each page has three blocks of its own, or fewer."""
    content = bytearray(pages * PAGE + rest)
    for page in range(pages + bool(rest)):
        for within in range(3):
            start = page * PAGE + within * 100 * BLOCK
            data = sample(BLOCK, seed + page * 3 + within)[: max(0, len(content) - start)]
            content[start : start + len(data)] = data
    return bytes(content)


THREE_PAGES = sparse(pages=2, rest=10 * BLOCK + 12_345)
