"""Which blocks of an index have data: all but those that are zero."""

from collections.abc import Iterator

from backy.stores.index import PAGE_LINES, Index
from backy.stores.pages import LINE
from backy.system import signals


def data_bytes(index: Index, enough: int | None = None) -> int:
    """How many bytes are in blocks that are not zero; a short last block counts as a whole one.

    Counts no further than it takes to know that there are more than `enough` bytes.
    """
    zero = (index.codec.zero_digest(index.block_size) + "\n").encode()
    data = 0
    for page, name in enumerate(index.names()):
        signals.obey()
        if not index.is_zero(page, name):
            data += (index.lines_of(page) - index.page(page).count(zero)) * index.block_size
        if enough is not None and data > enough:
            break
    return data


def data_blocks(index: Index, first: int, end: int) -> Iterator[int]:
    """The numbers of the blocks in [first, end) that are not zero, ascending.

    Reads page by page, so the first result comes quickly.
    """
    for page, start, stop, name in index.parts(first, end):
        if not index.is_zero(page, name):
            lines, zeroes = index.page(page), index.zero_page(page)
            for number in range(start, stop):
                at = (number - page * PAGE_LINES) * LINE
                if lines[at : at + LINE] != zeroes[at : at + LINE]:
                    yield number
