"""What a restore costs to a target that has most of the disk already, beside a whole one.

To each kind of target that needs no cluster, in one row: to a new file; to the same target after
one block in a hundred was overwritten; and to one of which half is missing, as an interrupted
restore leaves it.
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import BenchmarkError, output_of
from benchmarks.nbd import qemu_nbd
from benchmarks.ours import JOB
from benchmarks.space import MIB
from benchmarks.trial import Command, Trial
from benchmarks.workload import SEED

WHOLE, ONE_PERCENT, RESUMED = "restore", "restore 1 %", "restore resumed"
STEPS = tuple(
    f"{kind}{step}" for kind in ("", "qcow2 ", "nbd ") for step in (WHOLE, ONE_PERCENT, RESUMED)
)
ONE_IN = 100


def differential(trial: Trial) -> None:
    """The store is chunks; the targets are on the file system of the work folder."""
    base, image = trial.folder / "base", trial.workload.image
    backy: list[str | Path] = [trial.settings.backy, "--base-dir", base]
    output_of([*map(str, backy), "backup", JOB, "--source", str(image), "--store", "chunks"])
    restore: list[str | Path] = [*backy, "restore", JOB]
    _to_a_file(trial, restore, base)
    path = trial.folder / "target.qcow2"
    _to_an_image(trial, restore, base, "qcow2 ", f"qcow2:{path}", ("qcow2", str(path)))
    trial.drop(path)
    path = trial.folder / "exported.img"
    path.touch()
    os.truncate(path, trial.workload.size_bytes)
    options = ("--shared=16", "--cache=none", "--discard=unmap")
    with qemu_nbd(path, trial.folder / "exported.socket", *options) as uri:
        _to_an_image(trial, restore, base, "nbd ", uri, ("raw", uri))
    trial.drop(path)


def _to_a_file(trial: Trial, restore: list[str | Path], base: Path) -> None:
    target, image = trial.folder / "target.img", trial.workload.image
    trial.read_back(WHOLE, Command([*restore, target]), base)
    _compare(image, "raw", str(target))
    with target.open("r+b", buffering=0) as file:
        for place in _places(image):
            os.pwrite(file.fileno(), random.randbytes(4096), place)
        os.fsync(file.fileno())
    trial.read_back(ONE_PERCENT, Command([*restore, target, "--overwrite"]), base)
    _compare(image, "raw", str(target))
    os.truncate(target, trial.workload.size_bytes // 2)
    target.rename(target.with_name(f".{target.name}.partial"))
    trial.read_back(RESUMED, Command([*restore, target]), base)
    trial.compare(target, image)


def _to_an_image(
    trial: Trial,
    restore: Sequence[str | Path],
    base: Path,
    kind: str,
    word: str,
    opened: tuple[str, str],
) -> None:
    """The same to what QEMU opens as `opened`, its format and its name."""
    image, size = trial.workload.image, trial.workload.size_bytes
    half = size // 2 // MIB * MIB
    over = Command([*restore, word, "--overwrite"])
    trial.read_back(f"{kind}{WHOLE}", Command([*restore, word]), base)
    _compare(image, *opened)
    _change(opened, [f"write -q -P 7 {place} 4096" for place in _places(image)])
    trial.read_back(f"{kind}{ONE_PERCENT}", over, base)
    _compare(image, *opened)
    pieces = range(half, size, 1024 * MIB)
    _change(opened, [f"write -q -z -u {at} {min(1024 * MIB, size - at)}" for at in pieces])
    trial.read_back(f"{kind}{RESUMED}", over, base)
    _compare(image, *opened)


def _places(image: Path) -> list[int]:
    """The offsets of one MiB in a hundred of those that have data."""
    with image.open("rb", buffering=0) as file:
        places, position, size = [], 0, image.stat().st_size
        while position < size:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA) // MIB * MIB
            except OSError:  # nothing follows
                break
            places.append(position)
            position += MIB
    return random.Random(SEED).sample(places, max(1, len(places) // ONE_IN))


def _change(opened: tuple[str, str], commands: Sequence[str]) -> None:
    """Change a closed image durably by commands of qemu-io."""
    words = ["qemu-io", "-f", opened[0], *(word for each in commands for word in ("-c", each))]
    output_of([*words, "-c", "flush", opened[1]])


def _compare(image: Path, image_format: str, name: str) -> None:
    try:
        output_of(["qemu-img", "compare", "-q", "-f", "raw", "-F", image_format, str(image), name])
    except BenchmarkError:
        raise BenchmarkError("the restored image differs from the source") from None
