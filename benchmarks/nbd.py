"""backy's NBD client beside nbdcopy: the same export of a cached image, read whole into memory.

As a program, `python -m benchmarks.nbd URI`, it is what reads with backy's client.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import BenchmarkError, Run, output_of
from benchmarks.space import cache
from benchmarks.trial import Command, Trial

CONNECTIONS = 4
RUNS = 5
STEP_BYTES = 4 << 20
PATIENCE_SECONDS = 10


def nbd(trial: Trial) -> None:
    """The two in turn, so that what else the machine does meets both."""
    program = [sys.executable, "-m", "benchmarks.nbd"]
    root = Path(__file__).resolve().parent.parent
    options = ("--read-only", f"--shared={2 * CONNECTIONS}")
    with qemu_nbd(trial.workload.image, trial.folder / "nbd.socket", *options) as uri:
        words = ["nbdcopy", f"--connections={CONNECTIONS}", uri, "null:"]
        copy = Command(words, reads=trial.workload.image)
        cache(trial.workload.image)
        for _ in range(RUNS):
            # The start of Python is not what is compared, so the program takes its own time.
            cost = json.loads(output_of([*program, uri], cwd=root))
            trial.results.add_run(trial.row, "read", Run(**cost))
            trial.time("nbdcopy", copy, sync=False, quiet=True)
    trial.say(f"{RUNS} runs")


@contextmanager
def qemu_nbd(image: Path, path: Path, *options: str) -> Iterator[str]:
    """The URI of a raw image that a qemu-nbd serves at the socket `path`."""
    command = ["qemu-nbd", "--persistent", "--format=raw", f"--socket={path}", *options]
    with subprocess.Popen([*command, str(image)]) as server:
        try:
            end = time.monotonic() + PATIENCE_SECONDS
            while not path.is_socket():
                if server.poll() is not None or time.monotonic() > end:
                    raise BenchmarkError("qemu-nbd does not listen")
                time.sleep(0.01)
            yield f"nbd+unix:///?socket={path}"
        finally:
            server.terminate()


def main() -> int:
    """Read all that is not a hole, and print what it cost."""
    # Only this program needs backy; the benchmark itself runs with any Python.
    from backy.image.workers import in_parallel  # noqa: PLC0415
    from backy.model.extent import chop  # noqa: PLC0415
    from backy.nbd.remote_image import open_image  # noqa: PLC0415
    from backy.nbd.uri import parse_uri  # noqa: PLC0415

    begin = time.perf_counter()
    with open_image(parse_uri(sys.argv[1])) as image:
        steps = chop(image.extents(), STEP_BYTES)
        in_parallel(
            steps,
            lambda step, buffer: image.readinto(step.start, buffer[: step.length]),
            STEP_BYTES,
            CONNECTIONS,
        )
    seconds = time.perf_counter() - begin
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cost = {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    print(json.dumps(cost | {"peak_rss_bytes": usage.ru_maxrss * 1024}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
