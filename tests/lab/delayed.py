"""A file system on a medium whose reads take long, such as a network or slow disks.

A loop device over a FUSE file that answers each read later; see `delayed_file`. The kernels of many
test machines have neither NBD nor device-mapper's delay.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab import reflink
from tests.lab.needs import absent, no_mounts

SECONDS = 0.01  # a read: about that of a hard disk, or of an NFS server that is far away


def missing() -> str | None:
    """What this machine lacks for it, or None."""
    no_fuse = None if Path("/dev/fuse").exists() else "there is no FUSE"
    return no_mounts() or no_fuse or absent("mkfs.ext4", "mkfs.xfs", "losetup")


class Delayed:
    """A mounted file system, `folder`, and what its medium was asked for."""

    def __init__(self, folder: Path, device: str, server: "subprocess.Popen[str]") -> None:
        self.folder = folder
        self._device = device
        self._server = server

    def mount(self) -> None:
        """Mount it; if it is mounted, again, so that nothing of it is cached."""
        if os.path.ismount(self.folder):
            subprocess.run(["umount", self.folder], check=True)
        subprocess.run(["mount", self._device, self.folder], check=True)

    def reads(self) -> tuple[int, int]:
        """How many reads came since the last call, and the most that waited at once."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write("\n")
        self._server.stdin.flush()
        count, most = self._server.stdout.readline().split()
        return int(count), int(most)


@contextmanager
def delayed_file_system(
    size: int, kind: str = "ext4", seconds: float = SECONDS
) -> Iterator[Delayed]:
    """A new file system of `size` bytes, ext4 or xfs; its medium takes `seconds` more for a read.

    Reads wait side by side, so that many at once take no longer than one. Writes do not wait.
    """
    with ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="backy-delayed-"))
        stack.callback(shutil.rmtree, base)
        content, front, folder = base / "content", base / "front", base / "mounted"
        for file in (content, front):
            file.touch()
        folder.mkdir()
        os.truncate(content, size)
        subprocess.run([f"mkfs.{kind}", "-q", content], check=True)
        server = stack.enter_context(_served(content, front, seconds))
        attach: list[str | Path] = ["losetup", "--find", "--show", "--direct-io=on", front]
        device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
        delayed = Delayed(folder, device, server)
        delayed.mount()
        stack.callback(reflink.unmount, folder)
        yield delayed


@contextmanager
def _served(content: Path, front: Path, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    """The program that serves `content` at `front`."""
    fuse = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fuse},rootmode=100000,user_id=0,group_id=0"
        mount: list[str | Path] = ["mount", "-i", "-t", "fuse", "-o", options, "delayed", front]
        subprocess.run(mount, check=True, pass_fds=[fuse])
        program = Path(__file__).with_name("delayed_file.py")
        words: list[str | Path] = [sys.executable, program, content, str(fuse)]
        server = subprocess.Popen(
            [*words, str(seconds)],
            pass_fds=[fuse],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(fuse)
    with server:
        try:
            yield server
        finally:
            reflink.unmount(front)
            server.communicate()
