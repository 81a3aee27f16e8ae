"""A disk of a mounted repository, read whole by dd, beside the plain image."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import BenchmarkError, Run, output_of
from benchmarks.ours import JOB
from benchmarks.trial import Command, Trial

RUNS = 3
PATIENCE_SECONDS = 30


def mount(trial: Trial) -> None:
    """`first`: from stored blocks. `cached`: once more. `plain`: the image itself, cached."""
    image = trial.workload.image
    backy = [str(trial.settings.backy), "--base-dir", str(trial.folder / "base")]
    output_of([*backy, "backup", JOB, "--source", str(image), "--store", "chunks"])
    folder = trial.folder / "seen"
    folder.mkdir()
    for _ in range(RUNS):
        begin = time.perf_counter()
        with _mounted([*backy, "mount", str(folder)], folder) as process:
            for step in ("first", "cached"):
                trial.time(step, _dd(folder / JOB / "latest" / "vda.img"), sync=False, quiet=True)
            peak_bytes = _peak_bytes(process)
        mounted = Run(time.perf_counter() - begin, 0, peak_bytes)
        trial.results.add_run(trial.row, "mounted", mounted)
        trial.time("plain", _dd(image, reads=image), sync=False, quiet=True)
    trial.say(f"{RUNS} runs")


def _dd(path: Path, reads: Path | None = None) -> Command:
    return Command(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], reads=reads)


def _peak_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextmanager
def _mounted(command: list[str], folder: Path) -> Iterator[int]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + PATIENCE_SECONDS
            while not (folder / JOB).exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise BenchmarkError("backy mount does not show anything")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()
