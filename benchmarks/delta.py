"""The rows of a disk whose storage tells what changed: a real qemu-storage-daemon serves it.

The changes are written through a FUSE export, as a guest would write them. backy asks the daemon
for its dirty bitmap, as it would ask a QEMU with a guest.
"""

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.measure import BenchmarkError, output_of
from benchmarks.ours import JOB, on_xfs
from benchmarks.space import GIB, MIB, cache
from benchmarks.trial import Command, Trial
from benchmarks.workload import SEED, Range, changes

SPARSE_BYTES = 1 << 40
DELTA_BYTES = 100 * MIB
WRITE_BYTES = MIB
ROUNDS = 3
PATIENCE_SECONDS = 30.0


def chunks(trial: Trial) -> None:
    """The changes of the other rows, with the bitmap, to the chunks store."""
    _told(trial, trial.folder / "base", "chunks")


def images(trial: Trial) -> None:
    """The same to the images store on XFS."""
    _told(trial, on_xfs(trial) / "told", "images")


def sparse_chunks(trial: Trial) -> None:
    """A disk of 1 TiB that holds the image, of which 100 MiB change, to the chunks store."""
    _sparse(trial, trial.folder / "base", "chunks")


def sparse_images(trial: Trial) -> None:
    """The same to the images store on XFS."""
    _sparse(trial, on_xfs(trial) / "sparse-told", "images")


def _told(trial: Trial, base: Path, store: str) -> None:
    ranges = list(changes(trial.workload.size_bytes, SEED))
    with _disk(trial, trial.workload.size_bytes) as (door, config):
        backup = _backup(trial, base, config, store)
        trial.time("full", backup)
        _copy(trial.workload.changed_image, door, ranges)
        trial.time("changed", backup)
        restored = trial.folder / "restored.img"
        restore = [trial.settings.backy, "--base-dir", base, "restore", JOB, restored]
        output_of([str(word) for word in restore])
        trial.compare(restored, trial.workload.changed_image)


def _sparse(trial: Trial, base: Path, store: str) -> None:
    """Three deltas; then all of the disk once more, without the bitmap."""
    chance = random.Random(SEED)
    with _disk(trial, SPARSE_BYTES) as (door, config):
        backup = _backup(trial, base, config, store)
        trial.time("full", backup)
        for _ in range(ROUNDS):
            _scribble(door, chance)
            trial.time("delta", backup)
        _scribble(door, chance)
        image = trial.folder / "disk.raw"
        whole: list[str | Path] = [trial.settings.backy, "--base-dir", base, "backup", JOB]
        trial.time("full scan", Command([*whole, "--source", image]))


def _scribble(door: Path, chance: random.Random) -> None:
    """Write 100 MiB in pieces at random places of the first 5 GiB."""
    with door.open("r+b", buffering=0) as file:
        for _ in range(DELTA_BYTES // WRITE_BYTES):
            place = chance.randrange(0, 5 * GIB, 4096)
            os.pwrite(file.fileno(), chance.randbytes(WRITE_BYTES), place)
        os.fsync(file.fileno())


def _copy(origin: Path, door: Path, ranges: Iterable[Range]) -> None:
    with origin.open("rb") as source, door.open("r+b", buffering=0) as target:
        for offset, length in ranges:
            for start in range(offset, offset + length, MIB):
                size = min(MIB, offset + length - start)
                os.pwrite(target.fileno(), os.pread(source.fileno(), size, start), start)
        os.fsync(target.fileno())


def _backup(trial: Trial, base: Path, config: Path, store: str) -> Command:
    """A backup by configuration, which has a base directory of its own."""
    document = json.loads(config.read_text())
    document["global"]["base-dir"] = str(base)
    document["defaults"]["store"] = store
    config.write_text(json.dumps(document))
    return Command([trial.settings.backy, "--config", config, "backup", JOB])


@contextmanager
def _disk(trial: Trial, size_bytes: int) -> Iterator[tuple[Path, Path]]:
    """A daemon with a disk that begins with the image: where to write, and a configuration."""
    folder, image = trial.folder, trial.folder / "disk.raw"
    output_of(["cp", "--sparse=always", str(trial.workload.image), str(image)])
    os.truncate(image, size_bytes)
    cache(trial.workload.image)
    door, monitor = folder / "guest", folder / "monitor"
    door.touch()
    config = folder / "backy.yaml"
    source = {"type": "qemu", "qmp": str(monitor), "disks": {"vda": "vda"}, "scratch": str(folder)}
    job = {"schedule": "daily", "source": source}
    daily = {"daily": {"interval": "1d", "keep": 7}}
    document = {"global": {}, "schedules": {"daily": daily}, "defaults": {}, "jobs": {JOB: job}}
    config.write_text(json.dumps(document))  # JSON is YAML
    node = {"driver": "raw", "node-name": "vda", "file": {"driver": "file", "filename": str(image)}}
    words = ["qemu-storage-daemon", "--blockdev", json.dumps(node)]
    words += ["--export", f"type=fuse,id=guest,node-name=vda,writable=on,mountpoint={door}"]
    words += ["--chardev", f"socket,path={monitor},server=on,wait=off,id=monitor"]
    with subprocess.Popen([*words, "--monitor", "monitor"]) as daemon:
        try:
            _wait(lambda: monitor.exists() and door.stat().st_size == size_bytes)
            yield door, config
        finally:
            daemon.terminate()
            daemon.wait()
            with suppress(BenchmarkError):
                output_of(["umount", "--lazy", str(door)])
    trial.drop(image)


def _wait(is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            raise BenchmarkError("qemu-storage-daemon does not begin")
        time.sleep(0.05)
