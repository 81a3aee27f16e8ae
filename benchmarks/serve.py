"""backy's NBD server beside nbdkit and zstd: the whole of a cached disk, read by nbdcopy."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import BenchmarkError, output_of
from benchmarks.ours import JOB, on_xfs
from benchmarks.space import cache
from benchmarks.trial import Command, Trial

RUNS = 3


def serve(trial: Trial) -> None:
    """Both stores, each in turn with what it is compared with."""
    plain, chunks = on_xfs(trial) / "serve", trial.folder / "base"
    for base, store in ((plain, "images"), (chunks, "chunks")):
        words = [trial.settings.backy, "--base-dir", base, "backup", JOB, "--store", store]
        output_of([str(word) for word in (*words, "--source", trial.workload.image)])
    [image] = plain.glob(f"{JOB}/revisions/*/vda.img")
    with _served(trial, plain) as uri, _nbdkit(trial, image) as nbdkit:
        _in_turn(trial, image, {"images": _copy(uri), "nbdkit": _copy(nbdkit)})
    # One zstd for each core, as many chunks at a time as a command line takes.
    script = f"find {chunks}/{JOB}/chunks -name '*.zst' | xargs -n 64 -P {trial.settings.cores}"
    unpack = ["sh", "-c", f"{script} zstd -dcq >/dev/null"]
    with _served(trial, chunks) as uri:
        _in_turn(trial, chunks, {"chunks": _copy(uri), "zstd -d": unpack})
    trial.say(f"{RUNS} runs")


def _in_turn(trial: Trial, reads: Path, steps: dict[str, list[str]]) -> None:
    """So that what else the machine does meets all."""
    cache(reads)
    for _ in range(RUNS):
        for step, words in steps.items():
            trial.time(step, Command(words), sync=False, quiet=True)


def _copy(uri: str) -> list[str]:
    return ["nbdcopy", uri, "null:"]


@contextmanager
def _served(trial: Trial, base: Path) -> Iterator[str]:
    """The URI of the disk, served by backy."""
    words = [trial.settings.backy, "--base-dir", base, "serve", JOB, "--json"]
    words += ["--socket", trial.folder / "socket"]
    with subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE) as server:
        try:
            line = server.stdout.readline() if server.stdout else b""
            if not line:
                raise BenchmarkError("backy serve does not listen")
            yield str(json.loads(line)["uris"][0])
        finally:
            server.terminate()


@contextmanager
def _nbdkit(trial: Trial, image: Path) -> Iterator[str]:
    """The URI of a plain image, served by nbdkit."""
    path, started = trial.folder / "nbdkit", trial.folder / "nbdkit.pid"
    words = ["nbdkit", "--foreground", "--readonly", "--unix", path, "--pidfile", started]
    with subprocess.Popen([*map(str, words), "file", str(image)]) as server:
        try:
            while not started.exists():
                if server.poll() is not None:
                    raise BenchmarkError("nbdkit does not listen")
            yield f"nbd+unix:///?socket={path}"
        finally:
            server.terminate()
