"""Real block devices, each a loop device over a file."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.needs import need, no_mounts

needs_loop_devices = pytest.mark.skipif(bool(no_mounts()), reason=str(no_mounts()))


@contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """A block device whose bytes are those of `file`, while the context lasts."""
    need(no_mounts())
    command: list[str | Path] = ["losetup", "--find", "--show", file]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def device_of(content: bytes, folder: Path) -> Iterator[Path]:
    """A block device of `content`, whose length is a multiple of 512; its file lies in `folder`."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="device-") as backing:
        backing.write(content)
        backing.flush()
        with loop_device(Path(backing.name)) as device:
            yield device
