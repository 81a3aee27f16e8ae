"""Real block devices, each a loop device over a file."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_loop_devices = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(),
    reason="there are no loop devices, or only root can use them",
)


@contextmanager
def loop_device(content: bytes, folder: Path) -> Iterator[Path]:
    """A block device of `content`, whose length is a multiple of 512; its file lies in `folder`."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="device-") as backing:
        backing.write(content)
        backing.flush()
        command = ["losetup", "--find", "--show", backing.name]
        device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        try:
            yield Path(device)
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)
