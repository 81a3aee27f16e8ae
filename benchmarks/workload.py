"""The two images every tool backs up: real files of this machine, and the same with changes."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import BenchmarkError, output_of
from benchmarks.space import GIB, MIB, usage_of

SEED = 20261123
ALIGNMENT_BYTES = 4096
SCATTERED_WRITES = 64
SCATTERED_BYTES = 64 << 10
RUN_BYTES = 32 * MIB
FILL = 0.75
# mkfs.ext4 makes one inode for each 16 KiB unless it is told otherwise.
BYTES_PER_INODE = 16384

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the images are made from. `tree` is a folder of files, or an image made elsewhere."""

    tree: str
    size_bytes: int
    seed: int = SEED


@dataclass(frozen=True, slots=True)
class Workload:
    """The images, and how they differ. The data bytes are those that are allocated."""

    image: Path
    changed_image: Path
    size_bytes: int
    data_bytes: int
    changed_bytes: int
    changed_blocks_share: float


def prepare(folder: Path, recipe: Recipe) -> Workload:
    """The workload of `recipe` in `folder`: made the first time, used again afterwards."""
    given = Path(recipe.tree).is_file()
    image = Path(recipe.tree) if given else folder / "source.img"
    changed = folder / "changed.img"
    stamp = folder / "stamp.json"
    wanted = json.dumps(asdict(recipe), sort_keys=True)
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        if not given:
            _make_image(image, recipe)
        _make_changed(image, changed, recipe)
        os.sync()
        stamp.write_text(wanted, encoding="utf-8")
    return _describe(image, changed, recipe)


def changes(size_bytes: int, seed: int) -> Iterator[Range]:
    """Offset and length of each write: 64 of 64 KiB and one of 32 MiB in each GiB.

    In a last part below one GiB there are as many as its share of a GiB.
    """
    chance = random.Random(seed)
    for start in range(0, size_bytes, GIB):
        part = min(GIB, size_bytes - start)
        lengths = [SCATTERED_BYTES] * (SCATTERED_WRITES * part // GIB)
        lengths.append(RUN_BYTES * part // GIB // ALIGNMENT_BYTES * ALIGNMENT_BYTES)
        for length in lengths:
            yield start + chance.randrange(0, part - length + 1, ALIGNMENT_BYTES), length


def merged(ranges: list[Range]) -> list[Range]:
    """The same bytes as ascending ranges that do not overlap."""
    result: list[Range] = []
    for offset, length in sorted(ranges):
        if result and offset <= sum(result[-1]):
            last, _ = result[-1]
            result[-1] = last, max(sum(result[-1]), offset + length) - last
        else:
            result.append((offset, length))
    return result


def select(tree: Path, budget_bytes: int, budget_files: int) -> list[Path]:
    """Files and whole folders below `tree`, in order of name, that fit into the budget.

    A folder that does not fit is entered, so what is left out is as little as possible.
    """
    chosen: list[Path] = []
    for entry in sorted(tree.iterdir()):
        usage = usage_of(entry)
        if usage.allocated_bytes <= budget_bytes and usage.files <= budget_files:
            part, chosen = [entry], [*chosen, entry]
        elif entry.is_dir() and not entry.is_symlink():
            part = select(entry, budget_bytes, budget_files)
            chosen = [*chosen, *part]
        else:
            continue
        for path in part:
            taken = usage_of(path)
            budget_bytes -= taken.allocated_bytes
            budget_files -= taken.files
    return chosen


def _make_image(image: Path, recipe: Recipe) -> None:
    tree = Path(recipe.tree)
    usage = usage_of(tree)
    budget_bytes = int(recipe.size_bytes * FILL)
    budget_files = int(recipe.size_bytes / BYTES_PER_INODE * FILL)
    fits = usage.allocated_bytes <= budget_bytes and usage.files <= budget_files
    if fits and os.geteuid() == 0:
        _make_file_system(image, tree, recipe.size_bytes)
        return
    # mkfs.ext4 -d takes one folder, so a part of the tree has to be copied together first; it also
    # fails at the first file that it may not read, where cp goes on with the next.
    staging = image.with_suffix(".tree")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        for path in select(tree, budget_bytes, budget_files):
            relative = str(path.relative_to(tree))
            with suppress(BenchmarkError):
                output_of(["cp", "-a", "--parents", relative, str(staging)], cwd=tree)
        _make_file_system(image, staging, recipe.size_bytes)
    finally:
        shutil.rmtree(staging)


def _make_file_system(image: Path, tree: Path, size_bytes: int) -> None:
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size_bytes)
    output_of(["mkfs.ext4", "-q", "-F", "-d", str(tree), str(image)])


def _make_changed(image: Path, changed: Path, recipe: Recipe) -> None:
    changed.unlink(missing_ok=True)
    output_of(["cp", "--sparse=always", str(image), str(changed)])
    content = random.Random(recipe.seed + 1)
    with changed.open("r+b", buffering=0) as file:
        for offset, length in changes(image.stat().st_size, recipe.seed):
            for start in range(0, length, MIB):
                size = min(MIB, length - start)
                os.pwrite(file.fileno(), content.randbytes(size), offset + start)


def _describe(image: Path, changed: Path, recipe: Recipe) -> Workload:
    size_bytes = image.stat().st_size
    ranges = merged(list(changes(size_bytes, recipe.seed)))
    step = 4 * MIB
    touched = {
        block
        for offset, length in ranges
        for block in range(offset // step, (offset + length - 1) // step + 1)
    }
    return Workload(
        image,
        changed,
        size_bytes,
        usage_of(image).allocated_bytes,
        sum(length for _, length in ranges),
        len(touched) / -(-size_bytes // step),
    )
