"""The rows of backy itself."""

import json
import shlex
import shutil
from pathlib import Path

from benchmarks.measure import BenchmarkError, output_of
from benchmarks.space import MIB, cache, show_size
from benchmarks.trial import Command, Cycle, Trial, on_floor, run_cycle

SPARSE_BYTES = 1 << 40
VERSION_RUNS = 11
FLEET_JOBS, FLEET_REVISIONS, FLEET_RUNS = 10_000, 5, 5
JOB = "vm1"


def chunks(trial: Trial, block_bytes: int) -> None:
    """The chunks store with one block size, on the file system of the work folder."""
    options = ["--store", "chunks", "--block-size", show_size(block_bytes)]
    base = trial.folder / "base"
    run_cycle(trial, _cycle(trial, base, [*options, "--level", str(trial.settings.level)]))
    # What verify cannot be faster than, on the same files.
    on_floor(trial, "read", base, block_bytes, step="read past the cache")
    cache(base)
    on_floor(trial, "decode", base, block_bytes, step="decompress and hash")


def images(trial: Trial) -> None:
    """The images store on XFS; the restore goes to the file system of the work folder."""
    run_cycle(trial, _cycle(trial, on_xfs(trial) / "images", ["--store", "images"]))


def sparse_chunks(trial: Trial) -> None:
    """A disk of 1 TiB without data, backed up again unchanged."""
    _sparse(trial, trial.folder / "base", "chunks")


def sparse_images(trial: Trial) -> None:
    """The same with the images store on XFS."""
    _sparse(trial, on_xfs(trial) / "sparse", "images")


def version(trial: Trial) -> None:
    """What every call of the command costs before it does anything."""
    command = Command([trial.settings.backy, "--version"])
    for _ in range(VERSION_RUNS):
        trial.time("version", command, sync=False, quiet=True)
    trial.say(f"{VERSION_RUNS} runs")


def fleet(trial: Trial) -> None:
    """What monitoring costs where there are very many jobs; no daemon helps it."""
    base, disk = trial.folder / "base", trial.folder / "small.img"
    disk.write_bytes(bytes(MIB))
    backy = _backy(trial, base)
    for _ in range(FLEET_REVISIONS):
        output_of([*map(str, backy), "backup", JOB, "--source", str(disk), "--store", "chunks"])
    jobs = [JOB, *(f"vm{number}" for number in range(2, FLEET_JOBS + 1))]
    for job in jobs[1:]:
        shutil.copytree(base / JOB, base / job)
    configuration = {
        "global": {"base-dir": str(base), "socket": str(base / "none.sock")},
        "schedules": {"daily": {"daily": {"interval": "1d", "keep": 7}}},
        "defaults": {"schedule": "daily", "source": {"type": "file", "filename": str(disk)}},
        "jobs": {job: {} for job in jobs},
    }
    path = trial.folder / "backy.yaml"
    path.write_text(json.dumps(configuration, indent=1))  # JSON is YAML
    # It ends with 2, since no daemon runs; anything else is not what is to be measured.
    words = shlex.join([str(trial.settings.backy), "--config", str(path), "check"])
    command = Command(
        ["sh", "-c", f'{words} >{base}/said; test $? = 2 && grep -q "^BACKY" {base}/said']
    )
    for _ in range(FLEET_RUNS):
        trial.time("check", command, sync=False, quiet=True)
    trial.say(f"{FLEET_RUNS} runs")


def _cycle(trial: Trial, base: Path, options: list[str]) -> Cycle:
    backy = _backy(trial, base)
    image, changed = trial.workload.image, trial.workload.changed_image
    restored = trial.folder / "restored.img"
    return Cycle(
        repository=base,
        full=Command([*backy, "backup", JOB, "--source", image, *options], reads=image),
        unchanged=Command([*backy, "backup", JOB], reads=image),
        changed=Command([*backy, "backup", JOB, "--source", changed], reads=changed),
        restore=Command([*backy, "restore", JOB, restored]),
        restored=restored,
        verify=Command([*backy, "verify", JOB]),
        scrub=Command([*backy, "scrub", JOB]),
    )


def _sparse(trial: Trial, base: Path, store: str) -> None:
    disk = trial.folder / "sparse.img"
    with disk.open("wb") as file:
        file.truncate(SPARSE_BYTES)
    backy = _backy(trial, base)
    trial.time("full", Command([*backy, "backup", JOB, "--source", disk, "--store", store]))
    trial.time("unchanged", Command([*backy, "backup", JOB]))


def _backy(trial: Trial, base: Path) -> list[str | Path]:
    return [trial.settings.backy, "--base-dir", base]


def on_xfs(trial: Trial) -> Path:
    """Where the row may write on XFS."""
    if trial.xfs is None:
        raise BenchmarkError("this row needs the XFS file system")
    return trial.xfs


def on_ext4(trial: Trial) -> Path:
    """Where the row may write on a new ext4."""
    if trial.ext4 is None:
        raise BenchmarkError("this row needs the ext4 file system")
    return trial.ext4
