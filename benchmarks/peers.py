"""The rows of other tools, each with its own best settings for disk images.

What would let a tool skip reading the source because of its mtime is off.
"""

from pathlib import Path

from benchmarks.trial import Command, Cycle, Trial, run_cycle

RESTIC_PASSWORD = "benchmark"


def restic(trial: Trial) -> None:
    """restic with its defaults: chunks by content, zstd, encryption."""
    repository, target = trial.folder / "repository", trial.folder / "target"
    image, changed = trial.workload.image, trial.workload.changed_image
    words: list[str | Path] = ["restic", "--repo", repository, "--quiet"]
    backup = [*words, "backup", "--force"]
    run_cycle(
        trial,
        Cycle(
            repository=repository,
            prepare=Command([*words, "init"]),
            full=Command([*backup, image.name], cwd=image.parent, reads=image),
            unchanged=Command([*backup, image.name], cwd=image.parent, reads=image),
            changed=Command([*backup, changed.name], cwd=changed.parent, reads=changed),
            restore=Command([*words, "restore", "latest", "--target", target]),
            restored=target / changed.name,
            verify=Command([*words, "check", "--read-data"]),
            env={
                "RESTIC_PASSWORD": RESTIC_PASSWORD,
                "RESTIC_CACHE_DIR": str(trial.folder / "cache"),
                "TMPDIR": str(trial.folder),
            },
        ),
    )


def borg(trial: Trial) -> None:
    """borg with fixed 4 MiB chunks and zstd -1, unencrypted; holes are skipped on both ways."""
    repository, target = trial.folder / "repository", trial.folder / "target"
    image, changed = trial.workload.image, trial.workload.changed_image
    target.mkdir()
    create: list[str] = ["borg", "create", "--compression", "zstd,1", "--sparse"]
    create += ["--chunker-params", "fixed,4194304", "--files-cache=disabled"]
    first, second, third = (f"{repository}::{number}" for number in range(3))
    run_cycle(
        trial,
        Cycle(
            repository=repository,
            prepare=Command(["borg", "init", "--encryption", "none", repository]),
            full=Command([*create, first, image.name], cwd=image.parent, reads=image),
            unchanged=Command([*create, second, image.name], cwd=image.parent, reads=image),
            changed=Command([*create, third, changed.name], cwd=changed.parent, reads=changed),
            restore=Command(["borg", "extract", "--sparse", third], cwd=target),
            restored=target / changed.name,
            verify=Command(["borg", "check", "--verify-data", repository]),
            env={
                "BORG_BASE_DIR": str(trial.folder / "borg"),
                "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
                "TMPDIR": str(trial.folder),
            },
        ),
    )


def qemu_img(trial: Trial) -> None:
    """qemu-img to a compressed qcow2 and back."""
    packed, restored = trial.folder / "image.qcow2", trial.folder / "restored.img"
    options = ["-O", "qcow2", "-c", "-o", "compression_type=zstd"]
    image = trial.workload.image
    convert = ["qemu-img", "convert"]
    trial.time("full", Command([*convert, "-f", "raw", *options, image, packed], reads=image))
    trial.figure("size", trial.occupied()(packed))
    back = Command([*convert, "-f", "qcow2", "-O", "raw", packed, restored])
    trial.read_back("restore", back, packed)
    trial.compare(restored, image)
    trial.drop(packed)


def zstd(trial: Trial) -> None:
    """zstd -1 with a thread for each core."""
    packed, restored = trial.folder / "image.zst", trial.folder / "restored.img"
    image = trial.workload.image
    threads = f"-T{trial.settings.cores}"
    command: list[str | Path] = ["zstd", "-q", "-1", threads, image, "-o", packed]
    trial.time("full", Command(command, reads=image))
    trial.figure("size", trial.occupied()(packed))
    trial.read_back("restore", Command(["zstd", "-q", "-d", packed, "-o", restored]), packed)
    trial.compare(restored, image)
    trial.read_back("verify", Command(["zstd", "-q", "-t", packed]), packed)
    trial.drop(packed)


def cp(trial: Trial) -> None:
    """A plain sparse copy on the file system of the work folder."""
    image, copy = trial.workload.image, trial.folder / "copy.img"
    trial.time("full", Command(["cp", "--sparse=always", image, copy], reads=image))
    trial.drop(copy)


def cp_xfs(trial: Trial) -> None:
    """The same copy to XFS, which is what the images store has to keep up with.

    The copy stays until the end of the round, so that nobody writes into space it had allocated.
    """
    image, copy = trial.workload.image, (trial.xfs or trial.folder) / "copy.img"
    trial.time("full", Command(["cp", "--sparse=always", image, copy], reads=image))


def dd(trial: Trial) -> None:
    """Direct writes: how fast this machine's disk takes the data of the image."""
    image, copy = trial.workload.image, trial.folder / "copy.img"
    options = ["bs=4M", "oflag=direct", "conv=sparse", "status=none"]
    trial.time("full", Command(["dd", f"if={image}", f"of={copy}", *options], reads=image))
    trial.drop(copy)
