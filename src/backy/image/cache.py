"""Blocks of images in memory, for those who read here and there: servers and mounts.

All images share one bound. Two threads that want one block cause one read of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Self

from backy.errors import BackyError, StoreError
from backy.image.image import Image
from backy.system import files, process
from backy.units import MiB

_MOST_READERS = 8  # threads; there are two more than processors, so that some wait for the disk
_AHEAD = 8 * MiB  # bytes that are read ahead of each sequential reader
_MOST_STREAMS = 256  # sequential readers that are remembered
Key = tuple[int, int]  # an image, and the number of a block
_numbers = count()  # of images


@dataclass(eq=False, slots=True)
class _Block:
    """A block in memory. It may be replaced while it has no `users`."""

    buffer: memoryview
    length: int
    users: int = 0
    is_ahead: bool = False  # read ahead, and not used since


class BlockCache:
    """The blocks that were used last, of any number of images. Any thread may use it.

    Holds at most `limit` bytes, but at least the blocks that are being read or copied at the
    moment. A context manager: no read is under way after it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0  # bytes of all buffers, also of those that are being filled
        self._blocks: OrderedDict[Key, _Block] = OrderedDict()  # the least recently used first
        self._reads: dict[Key, Future[None]] = {}
        self._ahead = 0  # bytes of blocks that are or were read ahead, and not used since
        self._streams: OrderedDict[Key, None] = OrderedDict()  # the blocks expected next
        self._lock = threading.Lock()
        self._readers = min(_MOST_READERS, process.processors() + 2)
        self._pool = ThreadPoolExecutor(self._readers, "reader")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    @contextmanager
    def using(self, key: Key) -> Iterator[memoryview | None]:
        """A block that nobody replaces meanwhile; None if it is not in memory."""
        with self._lock:
            block = self._blocks.get(key)
            if block:
                block.users += 1
                self._blocks.move_to_end(key)
                self._ahead -= len(block.buffer) if block.is_ahead else 0
                block.is_ahead = False
        try:
            yield block.buffer[: block.length] if block else None
        finally:
            if block:
                with self._lock:
                    block.users -= 1

    def start(
        self, image: CachedImage, number: int, *, is_ahead: bool = False
    ) -> Future[None] | None:
        """Have a thread read a block, unless one is at it; None if the block is in memory.

        A block is read ahead if a thread is free for it, and half of the limit holds what was read
        ahead.
        """
        key, ahead = (image.number, number), image.block_size if is_ahead else 0
        with self._lock:
            has_room = len(self._reads) < self._readers and self._ahead + ahead <= self._limit // 2
            if key in self._blocks or (is_ahead and not has_room):
                return None
            if done := self._reads.get(key):
                return done
            done = self._reads[key] = Future()
            done.set_running_or_notify_cancel()  # others may wait for it, so nobody may cancel it
            self._ahead += ahead
        self._pool.submit(self._fill, image, number, done, is_ahead=is_ahead)
        return done

    def is_sequential(self, image: CachedImage, number: int) -> bool:
        """Whether somebody lately read the block before this one, but not yet this one."""
        this, following = (image.number, number), (image.number, number + 1)
        with self._lock:
            is_next = self._streams.pop(this, False) is None
            self._streams[following] = None
            self._streams.move_to_end(following)
            if len(self._streams) > _MOST_STREAMS:
                self._streams.popitem(last=False)
        return is_next

    def forget(self, image: CachedImage) -> None:
        """Drop the blocks of an image that nobody uses any more. Waits for reads under way."""
        with self._lock:
            wait = [done for (owner, _), done in self._reads.items() if owner == image.number]
        wait_for(wait)
        with self._lock:
            for key in [key for key in self._blocks if key[0] == image.number]:
                self._drop(key)
            for key in [key for key in self._streams if key[0] == image.number]:
                del self._streams[key]

    def _fill(self, image: CachedImage, number: int, done: Future[None], *, is_ahead: bool) -> None:
        key, length = (image.number, number), image.length_of(number)
        try:
            buffer = self._room(image.block_size)
            image.image.readinto(number * image.block_size, buffer[:length])
        except BaseException as error:  # noqa: BLE001 - raised in the threads that wait
            with self._lock:
                self._size -= image.block_size
                self._ahead -= image.block_size if is_ahead else 0
                del self._reads[key]
            done.set_exception(error.without_frames() if isinstance(error, BackyError) else error)
            return
        with self._lock:
            self._blocks[key] = _Block(buffer, length, is_ahead=is_ahead)
            del self._reads[key]
        done.set_result(None)

    def _room(self, size: int) -> memoryview:
        """A buffer of `size` bytes: that of the least recently used block, if it fits."""
        with self._lock:
            while self._size + size > self._limit:
                unused = (key for key, block in self._blocks.items() if not block.users)
                if (oldest := next(unused, None)) is None:
                    break
                if len(buffer := self._drop(oldest)) == size:
                    self._size += size
                    return buffer
            self._size += size
        return files.buffer(size)

    def _drop(self, key: Key) -> memoryview:
        block = self._blocks.pop(key)
        self._size -= len(block.buffer)
        self._ahead -= len(block.buffer) if block.is_ahead else 0
        return block.buffer


class CachedImage:
    """An Image whose blocks are kept in a BlockCache; see Image for the contract.

    Reads whole blocks of `block_size` bytes, so each is decompressed and hashed once. Several
    blocks ahead of each reader that goes through the disk in order are read by other threads.
    Call `close` before `image` is closed.
    """

    def __init__(self, image: Image, block_size: int, cache: BlockCache) -> None:
        self.size = image.size
        self.block_size = block_size
        self.extents = image.extents
        self.number = next(_numbers)
        self.image = image
        self._cache = cache

    def close(self) -> None:
        """Forget its blocks. Nobody may read it any more."""
        self._cache.forget(self)

    def read(self, offset: int, length: int) -> bytes:
        """A copy of the bytes in a range that is inside the image. Raises as `readinto` does."""
        return b"".join(map(bytes, self.pieces(offset, length)))

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image."""
        done = 0
        for piece in self.pieces(offset, len(buffer)):
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """The bytes of a range, block by block. A piece is valid until the next one is asked for.

        Raises what the image raises; the pieces before that were good.
        """
        end = offset + length
        if offset < 0 or end > self.size:
            raise StoreError(f"cannot read bytes {offset} to {end}: the disk has {self.size} bytes")
        while offset < end:
            with self.cached(offset, end - offset) as piece:
                if piece:
                    yield piece
                    offset += len(piece)
            if not piece and (done := self.start(offset)):
                done.result()

    @contextmanager
    def cached(self, offset: int, length: int) -> Iterator[memoryview | None]:
        """The bytes from `offset` to the end of its block, at most `length`; None if not in memory.

        Does not wait. They are valid until the context ends. Reads ahead if this is what comes
        after the last read.
        """
        number, within = divmod(offset, self.block_size)
        self._read_ahead(number)
        with self._cache.using((self.number, number)) as block:
            yield None if block is None else block[within : within + length]

    def start(self, offset: int) -> Future[None] | None:
        """Have the block at `offset` read by another thread; None if it is in memory.

        Has the exception if the read failed.
        """
        return self._cache.start(self, offset // self.block_size)

    def look_ahead(self, offset: int) -> None:
        """Have the block at `offset` read, if a thread is free for it."""
        self._cache.start(self, offset // self.block_size, is_ahead=True)

    def length_of(self, number: int) -> int:
        """The length of a block in bytes: less than the block size for the last one."""
        return min(self.block_size, self.size - number * self.block_size)

    def _read_ahead(self, number: int) -> None:
        if not self._cache.is_sequential(self, number):
            return
        end = min(self.size, (number + 1) * self.block_size + max(_AHEAD, 2 * self.block_size))
        for following in range((number + 1) * self.block_size, end, self.block_size):
            self.look_ahead(following)
