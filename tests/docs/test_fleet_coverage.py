"""The scripts of docs/fleet.md that compare backy with a real libvirt and a real Ceph."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cli.runner import wait_for
from tests.docs.fleet import SCRIPTS, Fleet
from tests.lab.ceph import Cluster
from tests.lab.libvirt import Libvirt
from tests.lab.needs import absent, need

SCHEDULE = {"daily": {"interval": "1d", "keep": 9}}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    need(absent("jq"))
    made = Fleet(tmp_path / "fleet")
    made.make()
    (made.root / "jobs.d").mkdir()
    yield made
    made.power_cut()


def configure(fleet: Fleet, **sources: dict[str, object]) -> None:
    """A configuration written by hand with these jobs."""
    configuration = {
        "global": {"base-dir": str(fleet.backy.base), "socket": str(fleet.root / "socket")},
        "schedules": {"default": SCHEDULE},
        "jobs": {name: {"schedule": "default", "source": each} for name, each in sources.items()},
    }
    (fleet.root / "backy.yaml").write_text(json.dumps(configuration))


def generated(fleet: Fleet) -> Path:
    """The file that fleet-jobs writes."""
    return fleet.root / "jobs.d" / "fleet.yaml"


@dataclass
class Host:
    """A fleet whose VMs are domains of this libvirtd; fleet-jobs knows its socket."""

    fleet: Fleet
    libvirtd: Libvirt
    env: dict[str, str] = field(default_factory=dict)

    def make(self) -> None:
        self.env |= {"LIBVIRT_DEFAULT_URI": self.libvirtd.uri, "RELOAD": "true"}
        (self.fleet.root / "scratch").mkdir()
        keys = json.dumps(self.source("vm1") | {"domain": "DOMAIN"}).replace('"DOMAIN"', ".")
        script = self.fleet.root / "bin" / "fleet-jobs"  # an operator may change it
        text = SCRIPTS["fleet-jobs"].replace("{type: $kind, domain: .}", keys)
        assert text != SCRIPTS["fleet-jobs"]
        script.write_text(text)

    def source(self, name: str) -> dict[str, object]:
        scratch = str(self.fleet.root / "scratch")
        return {"type": "libvirt", "domain": name, "uri": self.libvirtd.uri, "scratch": scratch}

    def coverage(self) -> tuple[int, list[str]]:
        done = self.fleet.run("fleet-coverage", "libvirt", "fleet-libvirt", env=self.env)
        return done.returncode, done.stdout.splitlines()

    def jobs(self) -> subprocess.CompletedProcess[str]:
        command = ("fleet-jobs", "libvirt", generated(self.fleet), "fleet-libvirt")
        return self.fleet.run(*command, env=self.env)

    def back_up(self, name: str) -> None:
        done = self.fleet.run("backy", "backup", name)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def odd_domain(self, name: str) -> Iterator[None]:
        """A domain that is found only by its UUID: virsh takes its name for something else."""
        uuid = str(uuid4())
        disk = "<disk type='file'><source file='/nowhere.img'/><target dev='vda'/></disk>"
        self.libvirtd.virsh(
            "define",
            "/dev/stdin",
            stdin=f"<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory>9999</memory>"
            f"<os><type>hvm</type></os><devices>{disk}</devices></domain>",
        )
        try:
            yield
        finally:
            self.libvirtd.virsh("undefine", uuid)


@pytest.fixture
def host(fleet: Fleet, libvirtd: Libvirt) -> Host:
    made = Host(fleet, libvirtd)
    made.make()
    configure(fleet, vm1=made.source("vm1"), vm9=made.source("vm9"))
    return made


def test_machines_of_libvirt_without_backup_are_found_and_get_jobs(host: Host) -> None:
    odd = '$(touch owned) "|\u00fc--'
    with (
        host.libvirtd.domain("vm1", "vda.qcow2") as vm1,
        host.libvirtd.domain("my vm", "vda.qcow2", "vdb.qcow2"),
        host.libvirtd.domain(odd, "vda.qcow2"),
        host.libvirtd.domain("build", "vda.qcow2") as build,
        host.odd_domain("--help"),
    ):
        vm1.start()
        number = vm1.virsh("domid").strip()
        with host.odd_domain(number):  # virsh takes this name for the running one
            lines = host.fleet.run("fleet-libvirt", env=host.env).stdout.splitlines()
            assert [number, "vda"] in [json.loads(line) for line in lines]
        build.virsh("desc", "--config", "backy.no-backup=made anew | every night")
        assert host.coverage() == (
            2,
            [
                "CRITICAL - 5 machines, 5 problems",
                f"CRITICAL: {json.dumps(odd, ensure_ascii=False).replace('|', '/')} has no job",
                'CRITICAL: "--help" has no job',
                'CRITICAL: "my vm" has no job',
                'CRITICAL: vda of "vm1" is in no newest revision of vm1',
                'WARNING: job vm9: "vm9" does not exist any more',
                'OK: no backup of "build" is wanted: "made anew / every night"',
            ],
        )
        with host.fleet.started("backy", "daemon") as daemon:
            host.env["RELOAD"] = f"kill -HUP {daemon.pid}"
            wait_for((host.fleet.root / "socket").exists, "the daemon listens")
            done = host.jobs()
            assert done.returncode == 1
            asked = [line for line in done.stderr.splitlines() if line.startswith("fleet-jobs: ")]
            assert {json.loads(line.partition(" for ")[2]) for line in asked} == {"--help", odd}
            wait_for(
                lambda: "my+vm" in host.fleet.run("backy", "status", "--json").stdout,
                "the daemon has the job",
            )
        assert set(json.loads(generated(host.fleet).read_text())) == {"my+vm"}
        host.back_up("my+vm")
        assert not [line for line in host.coverage()[1] if "my vm" in line]
    assert not list(host.fleet.root.rglob("owned"))


def test_a_new_disk_is_missed_and_what_disappears_keeps_its_job_until_it_is_not_wanted(
    host: Host,
) -> None:
    with (
        host.libvirtd.domain("vm1", "vda.qcow2") as vm1,
        host.libvirtd.domain("vm2", "vda.qcow2") as vm2,
    ):
        assert host.jobs().returncode == 0
        before = generated(host.fleet).read_bytes()
        assert set(json.loads(before)) == {"vm2"}
        host.back_up("vm1")
        host.back_up("vm2")
        host.fleet.plan("vm2")  # a mass restore can make new domains
        target = f"libvirt:{{job}}-new?folder={vm2.folder}&uri={host.libvirtd.uri}"
        done = host.fleet.run("mass-restore", "1", env={**host.env, "TARGET": target})
        assert done.returncode == 0, done.stderr
        host.libvirtd.virsh("undefine", "vm2-new")
        gone = ['WARNING: job vm9: "vm9" does not exist any more']
        assert host.coverage() == (1, ["WARNING - 2 machines, 1 problems", *gone])
        vm1.define(vm1.folder / "vda.qcow2", vm1.make("vdb.qcow2"))
        missing = 'CRITICAL: vdb of "vm1" is in no newest revision of vm1'
        assert host.coverage() == (2, ["CRITICAL - 2 machines, 2 problems", missing, *gone])

        vm2.virsh("undefine")
        assert host.jobs().returncode == 0
        assert generated(host.fleet).read_bytes() == before
        assert 'WARNING: job vm2: "vm2" does not exist any more' in host.coverage()[1]

        vm2.define(vm2.folder / "vda.qcow2")
        vm2.virsh("desc", "--config", "backy.no-backup=sold")
        assert host.jobs().returncode == 0
        assert json.loads(generated(host.fleet).read_text()) == {}


def test_a_libvirt_that_fails_or_is_empty_is_unknown_and_changes_no_job(host: Host) -> None:
    generated(host.fleet).write_text("{}\n")
    said = ["UNKNOWN - fleet-libvirt failed, so the machines are not known"]
    assert host.coverage() == (3, said)
    assert host.jobs().returncode == 3
    host.env["LIBVIRT_DEFAULT_URI"] = f"qemu+unix:///system?socket={host.fleet.root}/nowhere"
    assert host.coverage() == (3, said)
    assert host.jobs().returncode == 1
    assert generated(host.fleet).read_text() == "{}\n"


def test_backups_that_cannot_be_listed_are_unknown_too(host: Host) -> None:
    with host.libvirtd.domain("vm1", "vda.qcow2"):
        repository = host.fleet.backy.base / "vm1"
        repository.mkdir()
        (repository / "repository.json").write_text("{")
        assert host.coverage()[0] == 2  # one that cannot be read is no backup
        shutil.rmtree(host.fleet.backy.base)
        assert host.coverage() == (3, ["UNKNOWN - backy could not list its jobs"])
        assert host.jobs().returncode not in {0, 1}
        assert json.loads(generated(host.fleet).read_text()) == {}


def test_images_of_ceph_without_backup_are_found_and_get_jobs(fleet: Fleet, ceph: Cluster) -> None:
    need(absent("rbd"))
    ceph.pool("fleet")  # other tests have images in the other pools
    ceph.rbd("namespace", "create", "rbd/fleet")
    env = {"CEPH_CONF": str(ceph.conf), "RELOAD": "true"}
    places = ["fleet", "rbd/fleet"]

    def coverage(*where: str) -> tuple[int, list[str]]:
        done = fleet.run("fleet-coverage", "rbd", "fleet-rbd", *where, env=env)
        return done.returncode, done.stdout.splitlines()

    conf = {"type": "rbd", "conf": str(ceph.conf)}
    configure(
        fleet,
        vm1={**conf, "disks": {"vda": "fleet/vm1-root", "vdb": "rbd/fleet/vm1-data"}},
        vm2={"type": "ceph-rbd", "conf": str(ceph.conf), "pool": "fleet", "image": "vm2"},
    )
    assert coverage("fleet", "nowhere")[0] == 3
    assert coverage("fleet")[0] == 3  # the pool has no image
    ceph.create("fleet/vm1-root", 4 * 1024**2)
    ceph.create("rbd/fleet/vm1-data", 4 * 1024**2)
    ceph.write("fleet/vm1-root", "write -P 7 0 1M")
    ceph.create("fleet/my vm", 4 * 1024**2)
    ceph.create("fleet/tmp", 4 * 1024**2)
    ceph.rbd("create", "--size", "4M", "--pool", "fleet", "--image=-vm")
    ceph.rbd("image-meta", "set", "fleet/tmp", "backy.no-backup", "$(scratch)")
    for number in range(3):  # more than one argument of a program holds
        key = f"note{number}"
        ceph.rbd("image-meta", "set", "rbd/fleet/vm1-data", key, "x" * 60000)
    assert fleet.run("backy", "backup", "vm1", env=env).returncode == 0
    assert coverage(*places) == (
        2,
        [
            "CRITICAL - 5 machines, 3 problems",
            'CRITICAL: "fleet/-vm" has no job',
            'CRITICAL: "fleet/my vm" has no job',
            'WARNING: job vm2: "fleet/vm2" does not exist any more',
            'OK: no backup of "fleet/tmp" is wanted: "$(scratch)"',
        ],
    )
    done = fleet.run("fleet-jobs", "rbd", generated(fleet), "fleet-rbd", *places, env=env)
    assert done.returncode == 0, done.stderr
    jobs = json.loads(generated(fleet).read_text())
    assert set(jobs) == {"fleet+my+vm", "fleet+-vm"}
    for job in jobs:
        jobs[job]["source"]["conf"] = str(ceph.conf)
    generated(fleet).write_text(json.dumps(jobs))
    done = fleet.run("backy", "backup", "fleet+my+vm")
    assert done.returncode == 0, done.stderr
    said = coverage(*places)[1]
    assert 'CRITICAL: disk of "fleet/-vm" is in no newest revision of fleet+-vm' in said
    assert not [line for line in said if "my vm" in line]

    # A mass restore to images of their own, by a template.
    fleet.plan("vm1")
    target = f"rbd:rbd/{{job}}-{{disk}}?conf={ceph.conf}"
    done = fleet.run("mass-restore", "2", env={**env, "TARGET": target})
    assert done.returncode == 0, done.stderr
    for disk, image in {"vda": "fleet/vm1-root", "vdb": "rbd/fleet/vm1-data"}.items():
        assert ceph.export(f"rbd/vm1-{disk}") == ceph.export(image)


def test_a_configuration_with_a_problem_leaves_the_jobs_as_they_were(fleet: Fleet) -> None:
    configure(fleet, vm1={"type": "file", "disks": {"vda": "/dev/null"}})
    lister = fleet.root / "bin" / "list"
    lister.write_text(
        """#!/bin/sh\necho '["vm2","vda"]'\necho '["vm.1","vda"]'\necho '["vm1","vda"]'\n"""
    )
    lister.chmod(0o755)
    run = ("fleet-jobs", "libvirt", generated(fleet), "list")
    done = fleet.run(*run, env={"RELOAD": "true"})
    assert done.returncode == 1
    assert done.stderr.endswith(
        'fleet-jobs: write a job by hand for "vm1"\n'
    )  # another file has the name
    before = generated(fleet).read_bytes()
    assert set(json.loads(before)) == {"vm.1", "vm2"}
    generated(fleet).write_text("{}\n")
    assert fleet.run(*run, env={"RELOAD": "false"}).returncode == 1  # the daemon was not told,
    done = fleet.run(*run, env={"RELOAD": f"touch {fleet.root}/told"})
    assert (fleet.root / "told").exists()  # so the next run tells it, though it changes nothing
    assert generated(fleet).read_bytes() == before
    lister.write_text("""#!/bin/sh\necho '["vm3","vda"]'\n""")
    text = (fleet.root / "backy.yaml").read_text()
    (fleet.root / "backy.yaml").write_text(text.replace('"default"', '"other"'))
    generated(fleet).write_text("{}\n")  # its template names a schedule that is no more
    before = generated(fleet).read_bytes()
    done = fleet.run(*run, env={"RELOAD": "false"})
    assert done.returncode == 1
    assert "is as it was" in done.stderr
    assert generated(fleet).read_bytes() == before
    assert [path.name for path in generated(fleet).parent.iterdir()] == ["fleet.yaml"]
