"""Domains of a real libvirtd with a guest in them that has an agent and writes all the time."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from backy.errors import SourceError
from backy.model.revision import Consistency
from backy.sources import Request
from tests.cli.runner import environment, wait_for
from tests.lab.libvirt import MIB, Libvirt, Machine
from tests.snapshots import opened, pulled
from tests.sources.libvirt_machine import (
    IDS,
    SERVER,
    leftovers,
    revision,
    same,
    scratch,
    sizes,
    source,
)

DELTAS = 3 * int(os.environ.get("BACKY_ROUNDS", "1"))
SIZE = 48 * MIB


@pytest.fixture(scope="module")
def booted(libvirtd: Libvirt) -> Iterator[Machine]:
    """A domain with two disks, each an ext4, one of which libvirt cannot track."""
    with libvirtd.domain("guest", "vda.qcow2", "vdb.raw") as made:
        images = [formatted(made.folder / name) for name in ("vda.qcow2", "vdb.raw")]
        made.define(*images, has_guest=True)
        made.start()
        wait_for(lambda: status(made) == "thawed", "the agent answers")
        yield made


@pytest.fixture
def machine(booted: Machine) -> Machine:
    """As new, but for what the guest has written."""
    source(booted).remove_all_except([])
    return booted


def formatted(image: Path) -> Path:
    raw = image.with_name("formatted")
    raw.touch()
    os.truncate(raw, SIZE)
    subprocess.run(["mkfs.ext4", "-q", raw], check=True)
    kind = image.suffix.removeprefix(".")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, raw, image], check=True)
    raw.unlink()
    return image


def status(machine: Machine) -> object:
    """Whether the file systems are "frozen" or "thawed"; None without an agent."""
    try:
        said = machine.virsh("qemu-agent-command", '{"execute":"guest-fsfreeze-status"}')
    except subprocess.CalledProcessError:
        return None
    answer: dict[str, object] = json.loads(said)
    return answer["return"]


def wait_for_writes(machine: Machine) -> None:
    """Return when the guest has written to both disks."""
    before = [writes(machine, disk) for disk in ("vda", "vdb")]
    wait_for(
        lambda: all(
            writes(machine, d) > b + 20 for d, b in zip(("vda", "vdb"), before, strict=True)
        ),
        "the guest has written",
    )


def writes(machine: Machine, disk: str) -> int:
    """How many requests to write there were since it was started."""
    words = machine.virsh("domblkstat", disk).split()
    return int(words[words.index("wr_req") + 1])


def counters(disks: Mapping[str, bytes], folder: Path) -> list[int]:
    """How far the guest had counted on each disk, whose file system must be without any fault."""
    found = []
    for disk, content in disks.items():
        path = folder / disk
        path.write_bytes(content)
        subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
        command: list[str | Path] = ["debugfs", "-R", "cat /counter", path]
        said = subprocess.run(command, check=True, capture_output=True).stdout
        found.append(int(said or b"0"))
    return found


def test_a_guest_under_load_is_clean_in_each_delta(machine: Machine, tmp_path: Path) -> None:
    parent, reached, got = None, -1, dict[str, bytes]()
    for number in range(DELTAS + 1):
        wait_for_writes(machine)
        source(machine).remove_all_except([parent.id] if parent else [])
        with opened(source(machine, freeze=True), Request(IDS[number], parent)) as snapshot:
            assert snapshot.consistency is Consistency.FILESYSTEM
            assert list(snapshot.warnings()) == []
            assert status(machine) == "thawed"
            if parent:
                assert SIZE // 2 < same(snapshot.disks["vda"]) < SIZE
                assert same(snapshot.disks["vdb"]) == 0
            got = pulled(snapshot, got)
            parent = revision(number, **sizes(snapshot))
            snapshot.keep_checkpoint()
        first, second = counters(got, tmp_path)
        assert reached < first
        assert second in {first - 1, first}
        reached = first


# Stands before the real one: the guest is frozen by then, and it does not go on.
STUCK = """#!/bin/sh
case $* in
*backup-begin*) echo stuck >"$BACKY_STUCK" && exec sleep 600 ;;
esac
exec {virsh} "$@"
"""


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virsh that hangs while the guest is frozen, and the file that says that it does."""
    wrapper, said = tmp_path / "virsh", tmp_path / "said"
    wrapper.write_text(STUCK.format(virsh=shutil.which("virsh")))
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("BACKY_STUCK", str(said))
    return said


def test_a_freeze_ends_within_its_limit(machine: Machine, stuck: Path) -> None:
    frozen = source(machine, freeze=True, **{"freeze-timeout": 4})
    with (
        pytest.raises(SourceError, match=r"backup-begin.*longer than [1-4]\b"),
        opened(frozen, Request(IDS[0], None)),
    ):
        pytest.fail("a snapshot was taken")
    assert stuck.exists()
    assert status(machine) == "thawed"


TAKE = """
import sys
from backy.sources import Request
from backy.sources.libvirt import LibvirtSource
from backy.system.signals import cancellable
domain, uri, server, scratch, revision = sys.argv[1:]
source = LibvirtSource(
    domain=domain, uri=uri, server=server, scratch=scratch, freeze_timeout=300, timeout=300
)
with cancellable(), source.snapshot(Request(revision, None)) as taken, taken.open():
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda each: each.name)
def test_a_guest_is_thawed_when_its_backup_is_stopped(
    machine: Machine, stuck: Path, number: signal.Signals
) -> None:
    where = [machine.name, machine.libvirt.uri, SERVER, scratch(machine), IDS[0]]
    with subprocess.Popen(
        [sys.executable, "-c", TAKE, *where],
        env=environment(PATH=os.environ["PATH"], BACKY_STUCK=str(stuck)),
        stderr=subprocess.DEVNULL,
    ) as child:
        wait_for(stuck.exists, "the backup begins")
        assert status(machine) == "frozen"
        child.send_signal(number)
        child.wait(60)
    wait_for(lambda: status(machine) == "thawed", "the guest goes on")
    source(machine).remove_all_except([])
    assert leftovers(machine) == []
    assert not machine.has_job()


def test_a_guest_that_hooks_froze_stays_as_it_is(machine: Machine) -> None:
    machine.virsh("domfsfreeze")
    try:
        request = Request(IDS[0], None, is_frozen=True)
        with opened(source(machine, freeze=True), request) as snapshot:
            assert status(machine) == "frozen"
            assert snapshot.consistency is Consistency.CRASH
    finally:
        machine.virsh("domfsthaw")


def test_a_freeze_that_somebody_else_ended_is_none(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows does by itself after ten seconds."""
    virsh = shutil.which("virsh")
    wrapper = tmp_path / "virsh"
    thaw = f'{virsh} -c "{machine.libvirt.uri}" domfsthaw {machine.name} >&2'
    wrapper.write_text(f'#!/bin/sh\ncase $* in *backup-begin*) {thaw} ;; esac\nexec {virsh} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with opened(source(machine, freeze=True), Request(IDS[0], None)) as snapshot:
        assert snapshot.consistency is Consistency.CRASH
        [warning] = snapshot.warnings()
        assert "Thawed 0" in warning
