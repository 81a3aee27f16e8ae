"""A real Ceph cluster, started by ceph.sh: one a test session, as it takes 5 seconds to start."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.needs import absent, need
from tests.lab.ports import free_port

SCRIPT = Path(__file__).with_suffix(".sh")
PROGRAMS = ("ceph-mon", "ceph-osd", "ceph", "rbd", "qemu-io", "qemu-nbd", "setpriv")
_LIMIT = 120  # seconds that anything here may take before the test fails


def missing() -> str | None:
    """What this machine lacks for a cluster, or None."""
    return absent(*PROGRAMS)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster with the pool "rbd"; its files are in `folder`."""

    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "ceph.conf"

    def ceph(self, *arguments: str) -> bytes:
        """What `ceph` says; raises RuntimeError where it fails, as do the others."""
        return self._run("ceph", "--conf", str(self.conf), *arguments)

    def rbd(self, *arguments: str) -> bytes:
        return self._run("rbd", "--conf", str(self.conf), *arguments)

    def json(self, *arguments: str) -> Any:  # noqa: ANN401 - whatever it says
        """What `rbd` says as JSON."""
        return json.loads(self.rbd(*arguments, "--format", "json"))

    def pool(self, name: str) -> str:
        """Make a pool for images."""
        self.ceph("osd", "pool", "create", name, "8", "8")
        self.rbd("pool", "init", name)
        return name

    def user(self, name: str, mon: str, osd: str) -> str:
        """Make a user with these rights, whose key the configuration finds."""
        path = self.folder / f"ceph.client.{name}.keyring"
        self.ceph(
            "auth", "get-or-create", f"client.{name}", "mon", mon, "osd", osd, "-o", str(path)
        )
        return name

    def create(self, image: str, size: int, *options: str) -> str:
        """Make an image of `size` bytes: "pool/image" or "pool/namespace/image"."""
        self.rbd("create", "--size", f"{size}B", *options, image)
        return image

    def snapshots(self, image: str) -> list[str]:
        return [each["name"] for each in self.json("snap", "ls", image)]

    def export(self, image: str) -> bytes:
        """What an image, or pool/image@snapshot, holds, as Ceph's own program reads it."""
        return self.rbd("export", "--no-progress", image, "-")

    def write(self, image: str, *commands: str, user: str = "admin") -> None:
        """Run commands of qemu-io on an image, as a VM would: "write -P 7 0 64k"."""
        *above, name = image.split("/")
        keys = dict(zip(("pool", "namespace"), above, strict=False))
        options = ",".join(f"{key}={value}" for key, value in keys.items())
        target = f"driver=rbd,{options},image={name},conf={self.conf},user={user}"
        words = [word for command in commands for word in ("-c", command)]
        self._run("qemu-io", "-d", "unmap", *words, "--image-opts", target)

    @contextmanager
    def hangs(self) -> Iterator[None]:
        """Within the body no request to the OSD is answered."""
        osd = int((self.folder / "osd.pid").read_text())
        os.kill(osd, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(osd, signal.SIGCONT)

    def _run(self, *command: str) -> bytes:
        done = subprocess.run(command, check=False, capture_output=True, timeout=_LIMIT)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr).decode()}")
        return done.stdout


@contextmanager
def running() -> Iterator[Cluster]:
    """A new cluster, gone at the end with all it stored; also where this process is killed."""
    folder, process = _started()
    try:
        yield Cluster(folder)
    finally:
        process.communicate(timeout=_LIMIT)


def _started() -> tuple[Path, "subprocess.Popen[str]"]:
    said = ""
    for _ in range(3):  # somebody may take a port before the monitor does
        folder = Path(tempfile.mkdtemp(prefix="backy-ceph-"))
        process = subprocess.Popen(
            [SCRIPT, folder, str(free_port(2))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which end the cluster last
        )
        assert process.stdout
        if process.stdout.readline() == "ready\n":
            return folder, process
        said = process.communicate(timeout=_LIMIT)[1]
    raise RuntimeError(f"the cluster does not start: {said}")


@pytest.fixture(scope="session")
def ceph() -> Iterator[Cluster]:
    """The cluster of this test session; with xdist each worker has its own."""
    need(missing())
    with running() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ceph_pools(ceph: Cluster) -> Cluster:
    """The same with the pools "data" and "templates", and the namespace "rbd/customers"."""
    ceph.pool("data")
    ceph.pool("templates")
    ceph.rbd("namespace", "create", "rbd/customers")
    return ceph
