"""The programs for nodes of Proxmox VE, on a tree that looks like one; no PVE is at hand."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from backy.config.loader import load
from backy.sources import Request, open_source
from tests.cli.runner import wait_for
from tests.docs.markdown import PROJECT, blocks
from tests.lab.guest import needs_guest
from tests.lab.proxmox import make_qm, node
from tests.snapshots import opened

JOBS = PROJECT / "contrib/proxmox/proxmox-jobs"
LOCK = PROJECT / "contrib/proxmox/proxmox-lock"
STORAGE = """\
dir: local
\tpath /var/lib/vz
\tcontent iso,backup,images

lvmthin: local-lvm
\tthinpool data
\tvgname pve

zfspool: tank
\tpool tank/vms
rbd: ceph
\tpool vms
nfs: shared
\tpath /mnt/pve/shared
\tserver nfs.example.com
lvm: san
\tvgname san
\tsnapshot-as-volume-chain 1
"""


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="backy-") as folder:
        (Path(folder) / "etc/pve/qemu-server").mkdir(parents=True)
        (Path(folder) / "etc/pve/storage.cfg").write_text(STORAGE)
        (Path(folder) / "jobs.d").mkdir()
        yield Path(folder)


def written(root: Path, *more: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """The jobs in the file after the program has run, and what it said."""
    file = root / "jobs.d/proxmox.yaml"
    done = subprocess.run(
        [JOBS, "--root", root, file, *more], check=False, capture_output=True, text=True
    )
    assert done.returncode == code, done
    assert len(list(file.parent.iterdir())) <= 1
    return json.loads(file.read_text()) if file.exists() else {}, done.stdout + done.stderr


def configure(root: Path, *lines: str, number: int = 100) -> None:
    path = root / f"etc/pve/qemu-server/{number}.conf"
    path.write_text("\n".join(lines) + "\n")


def source(root: Path, *lines: str) -> dict[str, Any]:
    """Of the only VM, whose configuration has these lines."""
    configure(root, *lines)
    (job,) = written(root)[0].values()
    return dict(job["source"])


@needs_guest
def test_its_jobs_are_backed_up_whether_the_vm_is_on_or_off(root: Path) -> None:
    (root / "etc/pve/qemu-server").rmdir()
    with node(root) as made:
        made.has_uefi = True
        storage = root / "etc/pve/storage.cfg"
        storage.write_text(STORAGE.replace("/var/lib/vz", f"{root}/var/lib/vz"))
        scratch = root / "scratch"
        scratch.mkdir()
        page = (PROJECT / "docs/sources/proxmox.md").read_text()
        (shown,) = [block for block in blocks(page) if "proxmox-jobs" in block.text]
        words = shlex.split(shown.text.partition("proxmox-jobs ")[2].partition("&&")[0])
        jobs, said = written(root, *words[:-1])
        assert said == "100-shop: new\n"
        example = [block.text for block in blocks(page) if block.language == "yaml"][1]
        (root / "backy.yaml").write_text(example)
        loaded = load(root / "backy.yaml", open_source)  # it includes what is in that folder
        assert loaded.problems == ()
        assert loaded.config.jobs.keys() == {"100-shop"}
        settings = jobs["100-shop"]["source"] | {"freeze": False, "scratch": str(scratch)}
        for start in (made.start, made.stop):
            start()
            qemu = open_source(settings)
            assert sorted(qemu.look()) == ["efidisk0", "virtio0"]  # virtio1 has backup=0
            with opened(qemu, Request("20261123T004938Z-x7k2")) as snapshot:
                assert sorted(snapshot.disks) == ["efidisk0", "virtio0"]
                assert snapshot.disks["efidisk0"].size == 540672
                assert snapshot.files == {"vm.conf": made.configuration.read_bytes()}
                assert list(snapshot.warnings()) == []


@pytest.mark.parametrize(
    ("volume", "image"),
    [
        ("local:100/a.qcow2", {"path": "/var/lib/vz/images/100/a.qcow2", "format": "qcow2"}),
        ("shared:100/a.raw", {"path": "/mnt/pve/shared/images/100/a.raw", "format": "raw"}),
        ("local-lvm:vm-100-disk-0", {"path": "/dev/pve/vm-100-disk-0", "format": "raw"}),
        ("local-lvm:a.qcow2", {"path": "/dev/pve/a.qcow2", "format": "qcow2"}),
        ("tank:vm-100-disk-0", {"path": "/dev/zvol/tank/vms/vm-100-disk-0", "format": "raw"}),
        ("/dev/disk/by-id/x", {"path": "/dev/disk/by-id/x", "format": "raw"}),
        ("ceph:vm-100-disk-0", None),
        ("local:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2", None),
        ("local-lvm:base-9000-disk-0/vm-100-disk-0", None),
        ("gone:vm-100-disk-0", None),
        ("local:100/a.iso", None),
    ],
)
def test_images_are_named_where_the_storage_tells_the_path(
    root: Path, volume: str, image: dict[str, str] | None
) -> None:
    found = source(root, f"scsi0: {volume},size=4G")
    assert found["disks"] == {"scsi0": "scsi0"}
    assert found.get("images") == ({"scsi0": image} if image else None)


def test_one_disk_without_a_path_leaves_all_images_out(root: Path) -> None:
    found = source(root, "scsi0: local:100/a.qcow2", "scsi1: ceph:vm-100-disk-1")
    assert "images" not in found  # else that disk would be gone while the VM is off


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["scsi0: local:100/a.raw", "template: 1"], "template"),
        (["scsi0: local:100/a.raw", "tags: web;no-backup"], "tag no-backup"),
        (["scsi0: local:100/a.raw,backup=0"], "no disk"),
        (["ide2: none,media=cdrom", "unused0: local:100/a.raw"], "no disk"),
        (["scsi0: local:100/a.raw", "tags: no-backups"], ""),
    ],
)
def test_a_vm_that_gets_no_job_is_named_with_the_reason(
    root: Path, lines: list[str], why: str
) -> None:
    configure(root, *lines)
    jobs, said = written(root, "--show")
    assert bool(jobs) == (not why)
    assert ("100 is not backed up" in said) == bool(why)
    assert why in said
    assert written(root)[1] == ""  # cron would mail it each time


@pytest.mark.parametrize(
    ("agent", "is_used", "freeze"),
    [
        ("1", True, None),
        ("enabled=1,fstrim_cloned_disks=1", True, None),
        ("1,freeze-fs=0", True, False),
        ("enabled=1,freeze-fs-on-backup=0", True, False),
        ("0", False, None),
        ("enabled=0", False, None),
    ],
)
def test_the_agent_is_used_as_the_options_say(
    root: Path, agent: str, is_used: bool, freeze: bool | None
) -> None:
    found = source(root, f"agent: {agent}", "scsi0: local:1/a.raw")
    assert ("agent" in found) == is_used
    assert found.get("freeze") == freeze


@pytest.mark.parametrize("bios", ["ovmf", "seabios"])
def test_the_variables_of_uefi_are_only_there_with_uefi(root: Path, bios: str) -> None:
    found = source(root, f"bios: {bios}", "efidisk0: local:1/e.raw", "scsi0: local:1/a.raw")
    variables = {"efidisk0": "drive-efidisk0"} if bios == "ovmf" else {}
    assert found["disks"] == variables | {"scsi0": "scsi0"}


def test_a_vm_with_volume_chains_is_locked_and_others_are_only_asked(root: Path) -> None:
    configure(root, "scsi0: local:100/a.raw", "unused0: san:vm-100-disk-1.qcow2")
    configure(root, "scsi0: local:101/a.raw", "scsi1: san:vm-101-disk-1.qcow2", number=101)
    jobs = {name: job["hooks"] for name, job in written(root)[0].items()}
    assert jobs["100-vm"].keys() == {"before-snapshot"}
    assert jobs["100-vm"]["before-snapshot"]["command"] == [str(LOCK), "check"]
    assert jobs["101-vm"]["before-snapshot"]["command"] == [str(LOCK), "hold"]
    assert jobs["101-vm"]["after-backup"] == jobs["101-vm"]["on-failure"]
    assert jobs["101-vm"]["on-failure"]["command"] == [str(LOCK), "release"]


def test_snapshots_comments_and_odd_lines_are_no_settings(root: Path) -> None:
    lines = ["#scsi9: local:100/no.raw", "scsi0: local:100/a.raw", "", "nonsense", ": x"]
    lines += ["[snap]", "scsi1: local:100/old.raw", "name: old", "[PENDING]", "scsi2: local:1/b"]
    configure(root, *lines)
    jobs, _ = written(root)
    assert jobs.keys() == {"100-vm"}
    assert jobs["100-vm"]["source"]["disks"] == {"scsi0": "scsi0"}


def test_a_vm_keeps_its_job_when_it_is_renamed_and_new_disks_and_vms_are_found(root: Path) -> None:
    configure(root, "name: shop", "scsi0: local:100/a.raw")
    written(root)
    configure(root, "name: web", "scsi0: local:100/a.raw", "scsi1: local:100/b.raw")
    configure(root, "name: db", "scsi0: local:1000/a.raw", number=1000)
    jobs, said = written(root)
    assert jobs.keys() == {"100-shop", "1000-db"}
    assert jobs["100-shop"]["source"]["disks"].keys() == {"scsi0", "scsi1"}
    assert said == "1000-db: new\n"
    (root / "etc/pve/qemu-server/100.conf").unlink()  # it moved to another node
    jobs, said = written(root)
    assert jobs.keys() == {"1000-db"}
    assert said == "100-shop: no job any more\n"


def test_if_anything_cannot_be_read_all_jobs_stay(root: Path) -> None:
    configure(root, "scsi0: local:100/a.raw")
    before, _ = written(root)
    (root / "etc/pve/qemu-server/101.conf").mkdir()
    assert written(root, code=1)[0] == before
    (root / "etc/pve/qemu-server/101.conf").rmdir()
    (root / "etc/pve/qemu-server").rename(root / "gone")  # the cluster's file system is not there
    jobs, said = written(root, code=1)
    assert jobs == before
    assert "pve-cluster" in said


class Locks:
    """A VM 100 whose file is there, and a `qm` that changes the lock in it as PVE's does."""

    def __init__(self, root: Path) -> None:
        self.vms, self.base = root / "etc/pve/qemu-server", root / "base"
        self.environment = {
            "PATH": f"{make_qm(root / 'bin')}:{os.environ['PATH']}",
            "BACKY_BASE": str(self.base),
            "BACKY_HELD": str(root / "held"),
            "PVE_VMS": str(self.vms),
            "BACKY_JOB": "100-shop",
        }
        self.write()

    def write(self, *lines: str) -> None:
        more = ["[before]", "lock: snapshot"]
        (self.vms / "100.conf").write_text("\n".join(["name: shop", *lines, *more]) + "\n")

    @property
    def lock(self) -> str:
        first = (self.vms / "100.conf").read_text().partition("\n")[0]
        return first.removeprefix("lock: ") if first.startswith("lock:") else ""

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([LOCK, *words], env=self.environment, stdout=subprocess.DEVNULL)

    def run(self, *words: str) -> int:
        return self.start(*words).wait()


@pytest.fixture
def locks(root: Path) -> Locks:
    return Locks(root)


@pytest.mark.parametrize("word", ["check", "hold"])
def test_a_backup_is_refused_where_pve_works_on_the_vm_or_has_it_elsewhere(
    locks: Locks, word: str
) -> None:
    locks.write("lock: migrate")
    assert locks.run(word) == 1
    (locks.vms / "100.conf").unlink()
    assert locks.run(word) == 1
    locks.write()
    assert locks.run(word) == 0


def test_a_lock_is_held_until_it_is_released_and_nobody_elses_is(locks: Locks) -> None:
    assert locks.run("hold") == 0
    assert locks.lock == "backup"
    assert locks.run("release") == 0
    assert locks.lock == ""
    locks.write("lock: backup")  # of vzdump
    assert locks.run("hold") == 1
    assert locks.run("release") == 0  # on-failure
    assert "lock: backup" in (locks.vms / "100.conf").read_text()


def test_the_lock_of_a_backup_that_was_killed_goes_with_the_next_one(locks: Locks) -> None:
    assert locks.run("hold") == 0
    assert locks.run("hold") == 0
    assert locks.lock == "backup"
    (locks.vms / "100.conf").unlink()
    assert locks.run("hold") == 1  # it moved, after somebody had unlocked it
    locks.write()
    assert locks.run("check") == 0


def is_flock(child: str) -> bool:
    """Whether that process is a `flock` that has begun to wait."""
    process = Path("/proc") / (child.strip() or "none")
    with suppress(OSError):
        return b"flock" in (process / "cmdline").read_bytes()
    return False


def test_vzdump_waits_for_a_backup_of_that_vm_and_for_no_other(locks: Locks) -> None:
    for job in ("100-shop", "1000-db"):
        (locks.base / job).mkdir(parents=True)
    with (locks.base / "1000-db/lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert locks.run("backup-start", "snapshot", "100") == 0
        with (locks.base / "100-shop/lock").open("w") as mine:
            fcntl.flock(mine, fcntl.LOCK_EX)
            with locks.start("backup-start", "snapshot", "100") as waiting:
                children = Path(f"/proc/{waiting.pid}/task/{waiting.pid}/children")
                wait_for(lambda: is_flock(children.read_text()), "it waits for the lock")
                assert waiting.poll() is None
                fcntl.flock(mine, fcntl.LOCK_UN)
                assert waiting.wait(60) == 0
    assert locks.run("job-start") == 0  # vzdump's other words
    assert locks.run("log-end", "snapshot", "100") == 0
