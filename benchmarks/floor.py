"""How fast this machine could be: hash and compress the same data, and store nothing.

Or read the chunks that are stored: past the page cache and do nothing with them ("read"), from the
page cache, decompress and hash them ("decode"), or both, one after the other ("one-by-one").

A program of its own, so that its threads and memory are not those of the benchmark. It is the
one part that needs more than the standard library: the two libraries that backy uses.
"""

import argparse
import json
import mmap
import os
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import blake3
import zstandard

Item = TypeVar("Item")
LEVEL = 1
# Room for a frame that did not get smaller.
FRAME_MARGIN_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pass over the image took."""

    seconds: float
    cpu_seconds: float
    output_bytes: int


def data_offsets(image: Path, block_bytes: int) -> Iterator[int]:
    """Offsets of the blocks that are not wholly in a hole."""
    with image.open("rb") as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            first = max(position, start - start % block_bytes)
            position = -(-end // block_bytes) * block_bytes
            yield from range(first, position, block_bytes)


def spread(
    items: Iterable[Item], worker: Callable[[], Callable[[Item], int]], threads: int
) -> Cost:
    """Give `items` to as many threads; each has the function that one call of `worker` made."""
    lock, queue, totals = threading.Lock(), iter(items), [0] * threads

    def loop(number: int) -> None:
        work = worker()
        while True:
            with lock:
                item = next(queue, None)
            if item is None:
                return
            totals[number] += work(item)

    begin, cpu = time.perf_counter(), _cpu_seconds()
    pool = [threading.Thread(target=loop, args=(number,)) for number in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return Cost(time.perf_counter() - begin, _cpu_seconds() - cpu, sum(totals))


def hashing(image: Path, block_bytes: int, known: dict[int, bytes]) -> Callable[[int], int]:
    """Read, zero test, BLAKE3; keeps the hashes in `known`."""
    read = _reader(image, block_bytes)
    zero = bytearray(block_bytes)

    def work(offset: int) -> int:
        block = read(offset)
        if _is_zero(block, zero):
            return 0
        known[offset] = blake3.blake3(block).digest()
        return 0

    return work


def compressing(image: Path, block_bytes: int, known: dict[int, bytes]) -> Callable[[int], int]:
    """The same, and zstd where the hash is not the one in `known`."""
    read = _reader(image, block_bytes)
    zero = bytearray(block_bytes)
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)

    def work(offset: int) -> int:
        block = read(offset)
        if _is_zero(block, zero) or blake3.blake3(block).digest() == known.get(offset):
            return 0
        return len(compressor.compress(block))

    return work


def pack(image: Path, block_bytes: int, target: Path) -> list[tuple[int, int]]:
    """Write the frames of all blocks one after the other; gives start and end of each."""
    read = _reader(image, block_bytes)
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    ends = [0]
    with target.open("wb") as file:
        for offset in data_offsets(image, block_bytes):
            ends.append(ends[-1] + file.write(compressor.compress(read(offset))))
    return list(pairwise(ends))


def unpacking(packed: Path, block_bytes: int) -> Callable[[tuple[int, int]], int]:
    """Read a frame, decompress it, BLAKE3."""
    file = os.open(packed, os.O_RDONLY)
    frame = memoryview(bytearray(block_bytes + FRAME_MARGIN_BYTES))
    block = memoryview(bytearray(block_bytes))
    decompressor = zstandard.ZstdDecompressor()

    def work(frame_range: tuple[int, int]) -> int:
        start, end = frame_range
        os.preadv(file, [frame[: end - start]], start)
        with decompressor.stream_reader(frame[: end - start]) as reader:
            length = reader.readinto(block)
        blake3.blake3(block[:length]).digest()
        return length

    return work


def chunks(repository: Path) -> list[Path]:
    """The chunks of all repositories below a folder, in no order."""
    return [path for path in repository.rglob("*.zst") if path.is_file()]


def reading(block_bytes: int) -> Callable[[Path], int]:
    """Read a file past the page cache."""
    buffer = memoryview(mmap.mmap(-1, block_bytes + FRAME_MARGIN_BYTES))

    def work(path: Path) -> int:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            return os.preadv(file, [buffer], 0)
        finally:
            os.close(file)

    return work


def decoding(block_bytes: int, flags: int) -> Callable[[Path], int]:
    """Read a chunk, decompress it, BLAKE3."""
    frame = memoryview(mmap.mmap(-1, block_bytes + FRAME_MARGIN_BYTES))
    block = memoryview(mmap.mmap(-1, block_bytes))
    decompressor = zstandard.ZstdDecompressor()

    def work(path: Path) -> int:
        file = os.open(path, flags)
        try:
            length = os.preadv(file, [frame], 0)
        finally:
            os.close(file)
        with decompressor.stream_reader(frame[:length]) as reader:
            length = reader.readinto(block)
        blake3.blake3(block[:length]).digest()
        return length

    return work


def measure(options: argparse.Namespace) -> Cost:
    """One mode. Only the pass itself is timed, not what it needs beforehand."""
    image, step, threads = options.image, options.block_size, options.threads
    known: dict[int, bytes] = {}
    if options.mode == "read":
        return spread(chunks(options.scratch), lambda: reading(step), threads)
    if options.mode in {"decode", "one-by-one"}:
        direct = os.O_DIRECT if options.mode == "one-by-one" else 0
        threads = 1 if direct else threads
        return spread(
            chunks(options.scratch), lambda: decoding(step, os.O_RDONLY | direct), threads
        )
    if options.mode == "unchanged":
        offsets = data_offsets(image, step)
        return spread(offsets, lambda: hashing(image, step, known), threads)
    if options.mode == "verify":
        frames = pack(image, step, options.scratch)
        return spread(frames, lambda: unpacking(options.scratch, step), threads)
    if options.mode == "changed":
        spread(data_offsets(image, step), lambda: hashing(image, step, known), threads)
        image = options.changed
    return spread(data_offsets(image, step), lambda: compressing(image, step, known), threads)


def main() -> None:
    """Measure one mode and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    image_modes = ["full", "unchanged", "changed", "verify"]
    parser.add_argument("mode", choices=[*image_modes, "read", "decode", "one-by-one"])
    parser.add_argument("--image", type=Path, help="for the first four modes")
    parser.add_argument("--changed", type=Path, help="for the first four modes")
    parser.add_argument(
        "--scratch",
        type=Path,
        required=True,
        help="file to write frames to; for the other modes the folder whose chunks are read",
    )
    parser.add_argument("--block-size", type=int, default=1 << 20, help="bytes")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    cost = measure(parser.parse_args())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**_fields(cost), "peak_rss_bytes": peak}))


def _reader(image: Path, block_bytes: int) -> Callable[[int], memoryview]:
    file = os.open(image, os.O_RDONLY)
    buffer = memoryview(mmap.mmap(-1, block_bytes))

    def read(offset: int) -> memoryview:
        return buffer[: os.preadv(file, [buffer], offset)]

    return read


def _is_zero(block: memoryview, zero: bytearray) -> bool:
    # The bytearray stands on the left because its comparison is memcmp, that of memoryview is not;
    # only the last block of an image can be short, so that a slice is copied for it alone.
    return zero == block or (len(block) < len(zero) and zero[: len(block)] == block)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _fields(cost: Cost) -> dict[str, float]:
    return {
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds,
        "output_bytes": cost.output_bytes,
    }


if __name__ == "__main__":
    main()
