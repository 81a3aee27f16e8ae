"""The rows of backy itself."""

from pathlib import Path

from benchmarks.measure import BenchmarkError
from benchmarks.space import show_size
from benchmarks.trial import Command, Cycle, Trial, run_cycle

SPARSE_BYTES = 1 << 40
VERSION_RUNS = 11
JOB = "vm1"


def chunks(trial: Trial, block_bytes: int) -> None:
    """The chunks store with one block size, on the file system of the work folder."""
    options = ["--store", "chunks", "--block-size", show_size(block_bytes)]
    base = trial.folder / "base"
    run_cycle(trial, _cycle(trial, base, [*options, "--level", str(trial.settings.level)]))


def images(trial: Trial) -> None:
    """The images store on XFS; the restore goes to the file system of the work folder."""
    run_cycle(trial, _cycle(trial, _on_xfs(trial) / "images", ["--store", "images"]))


def sparse_chunks(trial: Trial) -> None:
    """A disk of 1 TiB without data, backed up again unchanged."""
    _sparse(trial, trial.folder / "base", "chunks")


def sparse_images(trial: Trial) -> None:
    """The same with the images store on XFS."""
    _sparse(trial, _on_xfs(trial) / "sparse", "images")


def version(trial: Trial) -> None:
    """What every call of the command costs before it does anything."""
    command = Command([trial.settings.backy, "--version"])
    for _ in range(VERSION_RUNS):
        trial.time("version", command, sync=False, quiet=True)
    trial.say(f"{VERSION_RUNS} runs")


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


def _on_xfs(trial: Trial) -> Path:
    if trial.xfs is None:
        raise BenchmarkError("this row needs the XFS file system")
    return trial.xfs
