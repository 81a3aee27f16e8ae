"""Measure backy against other tools on this machine, in one run.

Makes a disk image with real files and a second one with changes, then backs both up, restores and
verifies with every tool, round by round, and prints Markdown tables with the targets met or not.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from benchmarks import machine
from benchmarks.measure import BenchmarkError
from benchmarks.report import Report, markdown
from benchmarks.results import Results
from benchmarks.rounds import Plan, only_one, run_all
from benchmarks.rows import OURS, PEERS, Row, all_rows, choose, missing
from benchmarks.space import GIB, MIB, file_system_of, free_bytes, parse_size, show_size, usage_of
from benchmarks.trial import Settings
from benchmarks.workload import Recipe, Workload, prepare

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
WORK_NAME = "backy-benchmark"
# For an image of 8 GiB: 45 GiB for both images, all repositories of a round and one restored image,
# and 3 GiB for each block size after the first.
SPACE_FACTOR = 45 / 8
SPACE_FACTOR_BLOCK_SIZE = 3 / 8
EPILOG = f"""\
rows and groups for --only:
  backy   {", ".join(OURS)}
  peers   {", ".join(PEERS)}
  floor   how fast these cores hash and compress the image
  all     every one of them (the default)

examples:
  run.py                                         everything, three rounds: about an hour
  run.py --quick                                 1 GiB, one round: does it work at all?
  run.py --only chunks,restic,floor,dd --block-sizes 1MiB,2MiB,4MiB
  run.py --only peers --rounds 1                 only the other tools

Run it as root: the rows on XFS mount a loop device. Nothing stays mounted, also after Ctrl-C.
"""


def main() -> int:
    """Run the benchmark; the exit code is 1 where a row failed and 2 where it could not begin."""
    parser = _parser()
    options = parser.parse_args()
    _stop_by_signal()
    # mkfs, mount and losetup are there, where only root looks by default.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        return _benchmark(options)
    except (BenchmarkError, ValueError, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("benchmark: interrupted, everything is cleaned up", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_workload_options(parser)
    _add_row_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every measurement, as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables, also to a file")
    return parser


def _add_workload_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help=f"folder on the disk to measure; the benchmark keeps to {WORK_NAME} in it, where the"
        " images stay for the next run (default: a temporary folder with enough space)",
    )
    add("--size", type=_size, metavar="SIZE", help="of the image (default: 8GiB)")
    add("--rounds", type=int, metavar="N", help="the median of them counts (default: 3)")
    add(
        "--quick",
        action="store_true",
        help="1GiB of /usr/share, one round, unless --size, --tree or --rounds say otherwise",
    )
    add("--tree", metavar="DIR", help="files that fill the image (default: /usr)")
    add("--image", metavar="FILE", help="back up this image, read only, instead of making one")
    add(
        "--cold",
        action="store_true",
        help="restore and verify with the repository evicted from the page cache",
    )


def _add_row_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    beside = Path(__file__).resolve().parent.parent / ".venv/bin/backy"
    add("--only", default="all", metavar="ROWS", help="rows or groups, comma-separated; see below")
    add(
        "--skip-missing",
        action="store_true",
        help="leave out rows whose programs are not installed, instead of refusing to begin",
    )
    add(
        "--block-sizes",
        type=_sizes,
        default="1MiB",
        metavar="SIZES",
        help="a row of the chunks store for each, as 1MiB,2MiB,4MiB (default: 1MiB)",
    )
    add("--level", type=int, default=1, help="zstd level of the chunks store (default: 1)")
    add("--backy", type=Path, default=beside, metavar="PATH", help="default: .venv/bin/backy")


def _benchmark(options: argparse.Namespace) -> int:
    settings = Settings(
        backy=options.backy.absolute(),
        block_sizes_bytes=options.block_sizes,
        level=options.level,
        cold=options.cold,
        cores=len(os.sched_getaffinity(0)),
    )
    rows = _runnable(choose(all_rows(settings), options.only.split(",")), settings, options)
    recipe, rounds = _recipe(options)
    factor = SPACE_FACTOR + SPACE_FACTOR_BLOCK_SIZE * (len(settings.block_sizes_bytes) - 1)
    work = _work_folder(options.work, int(recipe.size_bytes * factor))
    with only_one(work):
        _say(f"images of {show_size(recipe.size_bytes)}")
        workload = prepare(work / "images", recipe)
        results = Results()
        run_all(Plan(work, rows, rounds, workload, settings), results)
        description = machine.describe(work, settings.backy)
    report = Report(datetime.now(UTC), description, workload, rows, rounds, options.cold, results)
    _publish(report, options)
    return EXIT_FAILED if results.problems else 0


def _runnable(rows: list[Row], settings: Settings, options: argparse.Namespace) -> list[Row]:
    reasons = {row.name: reason for row in rows if (reason := missing(row, settings))}
    if reasons and not options.skip_missing:
        text = "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
        raise BenchmarkError(f"cannot run\n{text}\nSee --only and --skip-missing in --help.")
    for name, reason in reasons.items():
        _say(f"left out {name}: {reason}")
    return [row for row in rows if row.name not in reasons]


def _recipe(options: argparse.Namespace) -> tuple[Recipe, int]:
    size_bytes = options.size or (GIB if options.quick else 8 * GIB)
    tree = options.tree or ("/usr/share" if options.quick else "/usr")
    rounds = options.rounds or (1 if options.quick else 3)
    if options.image is not None:
        tree = str(Path(options.image).resolve())
        size_bytes = Path(tree).stat().st_size
    return Recipe(tree, size_bytes), rounds


def _work_folder(given: Path | None, needed: int) -> Path:
    candidates = [given] if given else [Path(tempfile.gettempdir()), Path("/var/tmp")]
    free = {}
    for parent in candidates:
        # Never the given folder itself: what a run leaves or finds in its own one, it deletes.
        folder = parent.absolute() / WORK_NAME
        existing = next(path for path in (folder, *folder.parents) if path.is_dir())
        # Direct writes do not work on tmpfs, and it would measure the memory.
        if file_system_of(existing) == "tmpfs":
            continue
        # What an earlier run left is used again or deleted, so it counts as free.
        held = usage_of(folder).allocated_bytes if folder.is_dir() else 0
        free[folder] = free_bytes(existing) + held
        if free[folder] >= needed:
            return _own(folder)
    found = ", ".join(f"{size / GIB:.1f} GiB in {path}" for path, size in free.items())
    raise BenchmarkError(
        f"about {needed / GIB:.0f} GiB of disk are needed, free are {found or 'none'};"
        " give a folder on a larger disk with --work, or less with --size"
    )


def _own(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise BenchmarkError(f"{folder} belongs to somebody else; give another with --work")
    return folder


def _publish(report: Report, options: argparse.Namespace) -> None:
    text = markdown(report)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json is not None:
        document = {
            "time": report.when.isoformat(timespec="seconds"),
            "machine": dict(report.machine),
            "workload": _numbers(report.workload),
            "rounds": report.rounds,
            "cold": report.cold,
            **report.results.as_json(),
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _numbers(workload: Workload) -> dict[str, float]:
    return {
        "size_bytes": workload.size_bytes,
        "data_bytes": workload.data_bytes,
        "changed_bytes": workload.changed_bytes,
        "changed_blocks_share": workload.changed_blocks_share,
    }


def _stop_by_signal() -> None:
    # The first Ctrl-C or SIGTERM stops the run; more of them would only disturb the cleaning up.
    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size < 16 * MIB or size % 4096:
        raise argparse.ArgumentTypeError("at least 16MiB and a multiple of 4KiB")
    return size


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(parse_size(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
