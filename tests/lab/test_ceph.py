"""The lab's Ceph cluster is real, its own, and gone afterwards, whatever its owner dies of."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import ceph as lab
from tests.lab.ceph import Cluster
from tests.lab.needs import need
from tests.lab.watchdog import ends


def processes_of(folder: Path) -> list[Path]:
    """What runs with this folder in its arguments or its environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(process)
    return found


def test_an_image_can_be_written_read_and_snapshotted(ceph: Cluster) -> None:
    image = ceph.create("rbd/lab", 1024**2)
    ceph.write(image, "write -P 7 4k 512")
    ceph.rbd("snap", "create", "--no-progress", f"{image}@s")
    ceph.write(image, "write -P 8 4k 512")
    content = bytes(4096) + b"\7" * 512
    assert ceph.export(f"{image}@s") == content.ljust(1024**2, b"\0")
    assert ceph.snapshots(image) == ["s"]


def test_what_a_vm_may_not_write_is_an_error(ceph: Cluster) -> None:
    image = ceph.create("rbd/lab-small", 1024**2)
    with pytest.raises(RuntimeError):
        ceph.write(image, "write -P 7 1M 512")


def test_nothing_is_left_of_a_cluster_whose_test_run_was_killed() -> None:
    need(lab.missing())
    code = (
        "from tests.lab.ceph import running\n"
        "with running() as cluster:\n"
        "    print(cluster.folder, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout
        folder = Path(owner.stdout.readline().strip())
        assert folder.is_dir()
        assert len(processes_of(folder)) >= 3
        os.kill(owner.pid, signal.SIGKILL)
    with ends(60):
        while folder.exists() or processes_of(folder):
            pass


def test_a_cluster_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(lab.missing())
    (tmp_path / "ceph-mon").write_text("#!/bin/sh\necho no monitor today >&2; exit 1\n")
    (tmp_path / "ceph-mon").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match="no monitor today"), lab.running():
        pytest.fail("it runs")
    assert not list(tmp_path.glob("backy-ceph-*"))


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "PROGRAMS", ("sh", "ceph-none"))
    assert re.fullmatch("ceph-none not installed", lab.missing() or "")
