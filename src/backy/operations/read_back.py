"""Read back: before a revision is published, look whether what it relies on is stored.

A draft skips what its parent has, and what it wrote went into a cache. Only a look at the medium
shows that a hook, an administrator or the disk took something away.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable
from datetime import datetime
from itertools import chain, islice

from backy.errors import DamagedError, StoreError
from backy.image.image import Image
from backy.image.workers import in_parallel
from backy.operations.tracking_check import PERIOD_SECONDS
from backy.stores.blocks import StoredImage
from backy.stores.data import data_blocks
from backy.stores.draft import BlockDraft
from backy.stores.index import Index

_SAMPLE = 8  # blocks of the whole disk that are read
_LOOK_UP_SECONDS = 0.2  # for blocks; IndexDraft has 0.05 s for pages


class ReadBack:
    """Checks the blocks of a draft, which is read as `stored`, past the page cache.

    A block that is missing or bad is stored again from `source`. `read` counts the bytes that had
    their hash, `looked_up` the blocks that were looked up by name, `rewritten` those stored again.
    """

    def __init__(self, source: Image, draft: BlockDraft, stored: StoredImage) -> None:
        self.read = 0
        self.looked_up = 0
        self.rewritten = 0
        self._is_missing = False
        self._source = source
        self._draft = draft
        self._stored = stored
        self._lock = threading.Lock()

    def run(self, now: datetime, *, is_complete: bool) -> None:
        """Look up names, and read a few blocks of the disk and a few that were written.

        Reads all blocks with `is_complete`, or if one has no name any more. Raises DamagedError
        that names the block if one cannot be read although it was stored again.
        """
        index = self._stored.index
        self._is_missing = not self._has_all_names()
        if not is_complete and not self._is_missing:
            self._check_all(sorted({*sample(index, now), *self._draft.written}))
        if is_complete or self._is_missing:
            self._check_all(range(index.blocks))

    def _check_all(self, numbers: Iterable[int]) -> None:
        steps = ((number,) for number in numbers)
        in_parallel(steps, self._check, self._stored.block_size)

    def _has_all_names(self) -> bool:
        """Look up the blocks, from any of them on, until all are found or the time is over."""
        index, until = self._stored.index, time.monotonic() + _LOOK_UP_SECONDS
        start = random.randrange(index.blocks)  # noqa: S311 - it keeps nothing secret
        zero = islice(index.find([index.codec.zero_digest(index.block_size)]), 1)
        data = chain(data_blocks(index, start, index.blocks), data_blocks(index, 0, start))
        for number in chain(data, (number for number, _ in zero)):  # a search without data is slow
            if (is_stored := self._stored.is_stored(number)) is None:
                break
            if not is_stored:
                return False
            self.looked_up += 1
            if time.monotonic() > until:
                break
        return True

    def _check(self, step: tuple[int], buffer: memoryview) -> None:
        [number] = step
        block = buffer[: self._stored.index.length_of(number)]
        try:
            self._stored.readinto(number * self._stored.block_size, block)
        except StoreError as error:
            if not error.is_damage:
                raise
            self._is_missing |= self._stored.is_stored(number) is False
            self._store_again(number, block)
        with self._lock:
            self.read += len(block)

    def _store_again(self, number: int, block: memoryview) -> None:
        index, start = self._stored.index, number * self._stored.block_size
        self._source.readinto(start, block)
        if index.codec.digest(block) == index.digest(number):
            self._stored.repair(number, block)
        else:  # the source has no snapshot, and was written to
            self._draft.write(start, block)
        try:
            self._stored.readinto(start, block)
        except StoreError as error:
            why = f"block {number} was stored again, but cannot be read back: {error.message}"
            raise DamagedError(why) from error
        with self._lock:
            self.rewritten += 1


def sample(index: Index, now: datetime) -> Iterable[int]:
    """Blocks with data at equal distances, which move through the disk in 30 days."""
    stride = -(-index.blocks // _SAMPLE)
    first = index.blocks * int(now.timestamp()) // PERIOD_SECONDS % stride
    for number in range(first, index.blocks, stride):
        end = min(number + stride, index.blocks)
        yield next(data_blocks(index, number, end), number)
