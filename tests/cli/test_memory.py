"""However large a disk is, 200 MiB of memory do."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runner import MIB, Backy, environment

TIB = 1024**4
LIMIT_KIB = 200 * 1024
# The kernel counts for a program what its parent had before it began, so the parent is a small one.
MEASURE = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[
    (os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def peak_kib(backy: Backy, *arguments: str | Path) -> int:
    """Run a command, and give the most memory that it had at any time."""
    command = [sys.executable, "-I", "-S", "-c", MEASURE, *backy.command(*arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    code, peak = map(int, done.stdout.split())
    assert code == 0, done.stderr
    return peak


def scattered(path: Path, size: int) -> Path:
    """A sparse disk with data at its beginning, at its end, and 6 MiB in between."""
    source = random.Random(1)
    with path.open("wb") as file:
        for offset in [0, *(source.randrange(size) for _ in range(6)), size - MIB]:
            file.seek(offset)
            file.write(source.randbytes(min(MIB, size - offset)))
    os.truncate(path, size)
    return path


@pytest.mark.parametrize("block_size", ["1MiB", "16MiB"])
def test_a_disk_of_a_tebibyte_is_handled_in_bounded_memory(
    either: Backy, tmp_path: Path, block_size: str
) -> None:
    source = scattered(tmp_path / "vm1.img", TIB - 5000)
    options = ["--source", str(source), "--store", either.store, "--block-size", block_size]
    peaks = {
        "full": peak_kib(either, "backup", "vm1", *options),
        "unchanged": peak_kib(either, "backup", "vm1"),
        "restore": peak_kib(either, "restore", "vm1", tmp_path / "new.img"),
        "verify": peak_kib(either, "verify", "vm1"),
    }
    restored = tmp_path / "new.img"
    assert restored.stat().st_size == TIB - 5000
    assert restored.stat().st_blocks * 512 < 200 * MIB
    assert head_and_tail(restored) == head_and_tail(source)
    assert max(peaks.values()) <= LIMIT_KIB, peaks


def head_and_tail(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        head = file.read(MIB)
        file.seek(-MIB, os.SEEK_END)
        return head, file.read()


def test_a_disk_full_of_data_is_handled_in_bounded_memory(either: Backy, tmp_path: Path) -> None:
    source = tmp_path / "vm1.img"
    source.write_bytes(random.Random(1).randbytes(MIB) * 112)
    options = ["--source", str(source), "--store", either.store, "--block-size", "16MiB"]
    peaks = {
        "full": peak_kib(either, "backup", "vm1", *options),
        "restore": peak_kib(either, "restore", "vm1", tmp_path / "new.img"),
        "verify": peak_kib(either, "verify", "vm1"),
    }
    assert max(peaks.values()) <= LIMIT_KIB, peaks
