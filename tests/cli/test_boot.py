"""A VM runs from a revision at once, and nothing that its guest writes is ever lost."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backy.clients.qmp import connect
from backy.errors import SourceError
from tests.cli.runner import (
    MIB,
    PROGRAM,
    Backy,
    Running,
    data,
    environment,
    image,
    refusal,
    wait_for,
)
from tests.cli.test_json import valid
from tests.lab.bootable import POWERS_OFF, boot_disk, data_disk, missing
from tests.lab.ceph import Cluster

pytestmark = pytest.mark.skipif(bool(missing), reason=str(missing))
ROUNDS = int(os.environ.get("BACKY_ROUNDS", "0"))
SIZE = 4 * MIB
TEXT = "written by the guest"
NUMBERS = itertools.count(1000)


class Vm:
    """What runs in the folder of a boot, as an administrator sees it who has no backy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def overlay(self, disk: str = "vda") -> Path:
        return self.folder / f"{disk}.qcow2"

    def server(self) -> int:
        """The process id of the server; 0 if nobody listens."""
        return self._listener("backy.sock")

    def qemu(self) -> int:
        """The process id of QEMU; 0 if it does not run."""
        return self._listener("monitor.sock")

    def _listener(self, name: str) -> int:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.folder / name))
            except OSError:
                return 0
            peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("=iII", peer)[0])

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - QEMU says
        with connect(self.folder / "monitor.sock", 60) as monitor:
            return monitor.ask(command, **arguments)

    def events_until(self, *last: str) -> list[str]:
        """The events of QEMU, from now to one of these."""
        names: list[str] = []
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(self.folder / "monitor.sock"))
            client.sendall(b'{"execute": "qmp_capabilities"}\n')
            with client.makefile() as lines:
                while not {*names} & {*last}:
                    names += filter(None, [json.loads(next(lines)).get("event")])
        return names

    def write(self, disk: int, offset: int, byte: int) -> None:
        """Write 64 KiB as the guest would do it, and wait until they are durable."""
        device = f"-d /machine/peripheral/device{disk}/virtio-backend"
        for command in (f"write -P {byte} {offset} 65536", "flush"):
            line = f'qemu-io {device} "{command}"'
            assert self.ask("human-monitor-command", command_line=line) == ""

    def kill(self, *pids: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not {self.server(), self.qemu()} & {*pids}, "they are gone")

    def needs(self, disk: str = "vda") -> str:
        """The URI of what an overlay needs beside itself."""
        command = ["qemu-img", "info", "-U", "--output=json", str(self.overlay(disk))]
        info = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return str(info.get("backing-filename", ""))

    def content(self, disk: str = "vda") -> bytes:
        """A disk that needs nothing else; QEMU must not have it open."""
        raw = self.folder / f"{disk}.raw"
        convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw"]
        subprocess.run([*convert, self.overlay(disk), raw], check=True)
        return raw.read_bytes()

    def guest(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - the agent says
        """Ask the guest agent, until it answers."""
        number = next(NUMBERS)
        asked = [
            {"execute": "guest-sync", "arguments": {"id": number}},
            {"execute": command, "arguments": arguments},
        ]
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(120)  # a guest that starts on a busy machine
            wait_for(lambda: agent.connect_ex(str(self.folder / "agent.sock")) == 0, "it is free")
            agent.sendall("".join(json.dumps(each) + "\n" for each in asked).encode())
            with agent.makefile(errors="replace") as answers:
                for line in answers:  # late answers to others come first
                    if json.loads(line[line.index("{") :]).get("return") == number:
                        return json.loads(next(answers))["return"]
        raise AssertionError("the agent hung up")

    def shell(self, script: str) -> str:
        """What a script prints that the guest runs."""
        run = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        pid = self.guest("guest-exec", **run)["pid"]
        while not (status := self.guest("guest-exec-status", pid=pid))["exited"]:
            pass
        assert status["exitcode"] == 0, status
        return base64.b64decode(status.get("out-data", "")).decode()


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    """A folder for a boot; nothing of it runs after the test."""
    machine = Vm(tmp_path / "vm")
    yield machine
    machine.kill(*filter(None, (machine.server(), machine.qemu())))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Backy:
    """What `backy` copies: vm1 has two disks with random content, which start nothing."""
    folder = tmp_path_factory.mktemp("boot")
    backy = Backy(folder / "backups")
    disks = (image(folder / f"{seed}.img", data(seed, SIZE)) for seed in (1, 2))
    sources = [f"{name}={path}" for name, path in zip(("vda", "vdb"), disks, strict=True)]
    backy.ok("backup", "vm1", "--source", sources[0], "--source", sources[1], "--tag", "daily")
    return backy


@pytest.fixture
def backy(first: Backy, tmp_path: Path) -> Backy:
    shutil.copytree(first.base, tmp_path / "backups")
    return Backy(tmp_path / "backups")


@contextmanager
def booting(backy: Backy, vm: Vm, *options: str, rate: str = "1MiB") -> Iterator[Running]:
    """A boot that copies slowly, once its VM runs."""
    words = ("boot", "vm1", "--state", str(vm.folder), "--rate", rate, *options)
    with backy.started(*words) as running:
        wait_for(lambda: running.process.poll() is not None or is_copying(vm), "it copies")
        assert running.process.poll() is None, running.end()
        yield running


def copying(vm: Vm) -> list[Any]:
    with suppress(SourceError):
        return list(vm.ask("query-jobs"))
    return []


def is_copying(vm: Vm) -> bool:
    """Whether it copies while the guest runs: when a move begins the guest stands still."""
    return bool(copying(vm)) and vm.ask("query-status")["status"] == "running"


def is_held(backy: Backy) -> bool:
    """Whether a tag keeps the revision from being removed."""
    return "manual:boot:" in backy.ok("list", "vm1").out


def boot(backy: Backy, vm: Vm, *options: str) -> str:
    return backy.ok("boot", "vm1", "--state", str(vm.folder), *options).out


def changed(seed: int, *writes: tuple[int, int]) -> bytes:
    """A disk of vm1 with what `Vm.write` wrote: the offsets and the bytes."""
    content = bytearray(data(seed, SIZE))
    for offset, byte in writes:
        content[offset : offset + 65536] = bytes([byte]) * 65536
    return bytes(content)


def test_a_vm_gets_all_of_its_disks_and_needs_nothing_of_backy(backy: Backy, vm: Vm) -> None:
    said = boot(backy, vm)
    disks = f"{vm.overlay()}, {vm.overlay('vdb')}"
    begin = f"vm1: {backy.revisions('vm1')[0]}: its disks are {disks} after "
    assert re.fullmatch(rf"{begin}[0-9.]+ s; the VM runs on\n", said)
    assert not vm.server()
    assert [vm.needs("vda"), vm.needs("vdb")] == ["", ""]
    backy.base.rename(backy.base.with_name("away"))
    vm.write(0, MIB, 7)
    vm.ask("quit")
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert vm.content("vda") == changed(1, (MIB, 7))
    assert vm.content("vdb") == data(2, SIZE)


VICTIMS = ["command", "qemu", "command server", "command server qemu"]


@pytest.mark.parametrize("victims", VICTIMS + (["server", "server qemu"] if ROUNDS else []))
def test_after_a_kill_the_same_command_goes_on_and_no_write_is_lost(
    backy: Backy, vm: Vm, victims: str
) -> None:
    with booting(backy, vm) as running:
        vm.write(0, MIB, 7)
        vm.write(1, 3 * MIB, 8)
        if "command" in victims:
            running.process.kill()
            running.process.wait()
            assert vm.qemu()
            assert vm.server()
        vm.kill(*([vm.server()] if "server" in victims else []))
        vm.kill(*([vm.qemu()] if "qemu" in victims else []))
        if "qemu" in victims and "command" not in victims:
            result = running.end()
            assert result.code == 10
            assert "Run the same command again" in result.err
    said = boot(backy, vm)
    assert "the VM runs on" in said
    assert not vm.server()
    vm.write(0, 2 * MIB, 9)
    vm.ask("quit")
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert vm.content("vda") == changed(1, (MIB, 7), (2 * MIB, 9))
    assert vm.content("vdb") == changed(2, (3 * MIB, 8))


def test_when_the_command_has_ended_the_disks_are_whole_whatever_happens_to_qemu(
    backy: Backy, vm: Vm
) -> None:
    """A guest that flushes nothing had only the memory of QEMU know where its data is."""
    boot(backy, vm)
    vm.kill(vm.qemu())
    assert vm.content("vda") == data(1, SIZE)
    assert vm.content("vdb") == data(2, SIZE)


def test_a_server_that_dies_is_started_again_while_the_command_runs(backy: Backy, vm: Vm) -> None:
    with booting(backy, vm, rate="2MiB") as running:
        before = vm.server()
        vm.kill(before)
        wait_for(lambda: vm.server() not in {0, before}, "there is another server")
        result = running.end()
    assert result.code == 0, result
    assert "vm1: warning: the server has ended; it is started again\n" in result.err


def test_the_revision_cannot_be_removed_until_the_vm_has_its_disks(backy: Backy, vm: Vm) -> None:
    revision = backy.revisions("vm1")[0]
    with booting(backy, vm) as running:
        running.process.kill()
    vm.kill(vm.server(), vm.qemu())
    (tag,) = [tag for tag in backy.said_of("vm1", revision)["tags"] if tag != "daily"]
    empty = image(vm.folder.with_name("empty.yaml"), b"{}")
    whole = ["--config", str(empty), "purge", "--job", "vm1"]
    for command in (["remove", "vm1", "-r", revision], ["purge", "vm1", "-r", revision], whole):
        refused = backy.refuses(7, *command)
        assert refused.message == f"vm1: a VM runs from {revision}, as its tag {tag} says"
        assert f"backy tag vm1 -r {revision} -{tag}" in refused.hint
    backy.ok("tag", "vm1", "-r", revision, "-daily")
    backy.ok("purge", "vm1")
    boot(backy, vm)
    assert backy.said_of("vm1", revision)["tags"] == []
    backy.ok("remove", "vm1", "-r", revision)


def test_a_newer_backup_does_not_change_what_the_same_command_goes_on_with(
    backy: Backy, vm: Vm, tmp_path: Path
) -> None:
    first = backy.revisions("vm1")[0]
    with booting(backy, vm) as running:
        running.process.kill()
    newer = image(tmp_path / "newer.img", data(3, SIZE))
    second = backy.backup("vm1", f"vda={newer}", "--source", f"vdb={newer}")
    refused = backy.refuses(10, "boot", f"vm1@{second}", "--state", vm.folder)
    assert refused.message == f"{vm.folder} has vm1@{first} already"
    assert f"vm1: {first}: " in boot(backy, vm)
    vm.ask("quit")
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert vm.content("vda") == data(1, SIZE)


def test_a_disk_of_the_vm_that_is_missing_is_not_made_again(backy: Backy, vm: Vm) -> None:
    with booting(backy, vm) as running:
        running.process.kill()
    vm.kill(vm.server(), vm.qemu())
    vm.overlay().unlink()
    refused = backy.refuses(10, "boot", "vm1", "--state", vm.folder)
    assert refused.message == f"{vm.overlay()} is missing, which had what the guest wrote"
    assert not vm.overlay().exists()
    assert not vm.qemu()


def test_what_was_killed_before_the_vm_was_started_is_completed(backy: Backy, vm: Vm) -> None:
    with booting(backy, vm) as running:
        running.process.kill()
    vm.kill(vm.server(), vm.qemu())
    state = vm.folder / "boot.json"
    state.write_text(state.read_text().replace('"is_started": true', '"is_started": false'))
    vm.overlay("vdb").rename(vm.folder / ".vdb.qcow2.new")
    boot(backy, vm)
    vm.ask("quit")
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert [vm.content("vda"), vm.content("vdb")] == [data(1, SIZE), data(2, SIZE)]


def test_a_disk_of_something_else_is_left_alone(backy: Backy, vm: Vm) -> None:
    vm.folder.mkdir()
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(vm.overlay("vdb")), str(SIZE)]
    subprocess.run(create, check=True)
    before = vm.overlay("vdb").read_bytes()
    refused = backy.refuses(10, "boot", "vm1", "--state", vm.folder)
    assert refused.message == f"{vm.overlay('vdb')} exists"
    assert vm.overlay("vdb").read_bytes() == before
    assert not vm.qemu()
    assert not is_held(backy)


def test_one_folder_takes_one_boot_at_a_time(backy: Backy, vm: Vm) -> None:
    with booting(backy, vm) as running:
        refused = backy.refuses(7, "boot", "vm1", "--state", vm.folder)
        assert refused.hint == "Wait for the other backy boot."
        running.process.kill()


def test_a_guest_that_shuts_down_meanwhile_gets_its_disks_and_qemu_ends(
    backy: Backy, vm: Vm, tmp_path: Path
) -> None:
    disk = POWERS_OFF + data(4, 2 * MIB - 512)
    backy.backup("vm2", image(tmp_path / "off.img", disk))
    result = backy.ok("boot", "vm2", "--state", vm.folder, "--rate", "1MiB", "--json")
    finished = valid("boot", result)[-1]
    assert (finished["shut_down"], finished["disks"]) == (True, {"vda": str(vm.overlay())})
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert vm.content() == disk
    assert vm.needs() == ""


def test_a_damaged_block_stops_the_copying_but_not_the_vm(
    backy: Backy, vm: Vm, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm2.img", data(5, SIZE))
    revision = backy.backup("vm2", source)
    source.unlink()  # or the block would be healed
    chunk = backy.chunk("vm2", revision, 3)
    good = chunk.read_bytes()
    backy.damage("vm2", revision, 3)
    refused = backy.refuses(10, "boot", "vm2", "--state", vm.folder)
    assert refused.message == f"vm2: copying the rest to {vm.overlay()}: Input/output error"
    assert vm.ask("query-status")["status"] == "running"
    assert f"vm2: {revision} vda" in (vm.folder / "server.log").read_text()
    vm.write(0, MIB, 7)
    chunk.write_bytes(good)
    vm.kill(vm.server())  # it remembers what it could not heal
    backy.ok("boot", "vm2", "--state", vm.folder)
    vm.ask("quit")
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert vm.content() == changed(5, (MIB, 7))


def test_the_commands_that_are_printed_start_the_vm(backy: Backy, vm: Vm) -> None:
    before = backy.said_of("vm1", backy.revisions("vm1")[0])
    printed = backy.ok("boot", "vm1", "--run", "print", "--state", vm.folder).out.splitlines()
    as_json = backy.ok("boot", "vm1", "--run", "print", "--state", vm.folder, "--json")
    assert valid("boot", as_json) == [{"commands": printed}]
    assert not vm.folder.exists()
    assert backy.said_of("vm1", backy.revisions("vm1")[0]) == before
    hold, *lines, drop = [line for line in printed if not line.startswith("#")]
    program = f'backy() {{ {shlex.join(PROGRAM)} --base-dir {backy.base} "$@"; }}'
    wait = f"until [ -S {vm.folder}/backy.sock ]; do sleep 0.1; done"
    script = "\n".join(["set -e", program, hold, *lines[:2], wait, *lines[2:]])
    with (vm.folder.with_name("output")).open("wb") as output:
        command = ["bash", "-c", script]
        subprocess.run(command, env=environment(), stdout=output, stderr=output, check=True)
    wait_for(lambda: bool(vm.qemu()), "QEMU runs")
    jobs = [json.loads(line[2:]) for line in printed if line.startswith("# {")]
    for job in jobs:
        vm.ask(job["execute"], **job["arguments"])
    wait_for(lambda: {job["status"] for job in vm.ask("query-jobs")} == {"concluded"}, "copied")
    vm.ask("quit")
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert [vm.content("vda"), vm.content("vdb")] == [data(1, SIZE), data(2, SIZE)]
    subprocess.run(["bash", "-c", f"{program}\n{drop}"], env=environment(), check=True)
    assert backy.said_of("vm1", backy.revisions("vm1")[0])["tags"] == ["daily"]


def moves(*targets: str) -> list[str]:
    """The options that move vda, then vdb, to the targets."""
    names = ("vda", "vdb")
    return [f"--into={name}={target}" for name, target in zip(names, targets, strict=False)]


def raw(path: Path) -> bytes:
    """The content of an image, whatever its format."""
    out = path.with_name("out.raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, out], check=True)
    return out.read_bytes()


def test_disks_move_to_their_targets_while_the_guest_writes(
    backy: Backy, vm: Vm, tmp_path: Path
) -> None:
    files = tmp_path / "vda.qcow2", tmp_path / "vdb.img"
    into = moves(f"qcow2:{files[0]}", str(files[1]))
    with booting(backy, vm, *into, rate="2MiB") as running:
        vm.write(0, 3 * MIB, 7)
        vm.write(1, MIB, 8)
        result = running.end()
    assert result.code == 0, result
    assert f"its disks are qcow2:{files[0]}, {files[1]} after" in result.out
    assert not vm.server()
    assert not list(vm.folder.glob("*.qcow2"))
    vm.write(0, MIB, 9)
    vm.kill(vm.qemu())
    boot(backy, vm, *into)
    vm.ask("stop")  # as if it had been killed before the guest went on
    vm.overlay().touch()
    boot(backy, vm, *into)
    assert not vm.overlay().exists()
    assert vm.ask("query-status")["status"] == "running"
    vm.write(1, 2 * MIB, 6)
    vm.ask("quit")
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert raw(files[0]) == changed(1, (3 * MIB, 7), (MIB, 9))
    assert raw(files[1]) == changed(2, (MIB, 8), (2 * MIB, 6))


@pytest.mark.parametrize("victim", ["command", "qemu"])
def test_a_move_that_is_killed_goes_on_with_the_same_command(
    backy: Backy, vm: Vm, tmp_path: Path, victim: str
) -> None:
    into = moves(str(tmp_path / "vda.img"))
    with booting(backy, vm, *into) as running:
        vm.write(0, 3 * MIB, 7)
        if victim == "qemu":
            vm.kill(vm.qemu())
            assert running.end().code == 10
        running.process.kill()
    boot(backy, vm, *into)
    assert vm.ask("query-status")["status"] == "running"
    vm.ask("quit")
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert raw(tmp_path / "vda.img") == changed(1, (3 * MIB, 7))
    assert vm.content("vdb") == data(2, SIZE)


def test_a_target_that_exists_is_left_alone(backy: Backy, vm: Vm, tmp_path: Path) -> None:
    existing = image(tmp_path / "existing", b"mine")
    refused = backy.refuses(10, "boot", "vm1", "--state", vm.folder, f"--into=vda={existing}")
    assert refused.message == f"{existing} exists"
    assert existing.read_bytes() == b"mine"
    assert not vm.qemu()
    assert not is_held(backy)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses")
def test_a_folder_that_others_may_write_to_is_refused(backy: Backy, vm: Vm) -> None:
    vm.folder.mkdir()
    vm.folder.chmod(0o777)
    refused = backy.refuses(10, "boot", "vm1", "--state", vm.folder)
    assert f"not safe for the disks of a VM: everybody may write {vm.folder}" in refused.message
    assert not list(vm.folder.glob("*.qcow2"))


def test_a_target_that_is_a_link_to_nothing_is_left_alone(
    backy: Backy, vm: Vm, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    into = f"--into=vda={tmp_path / 'link'}"
    refused = backy.refuses(10, "boot", "vm1", "--state", vm.folder, into)
    assert refused.message == f"{tmp_path / 'link'} exists"
    assert not (tmp_path / "elsewhere").exists()
    assert not is_held(backy)


def test_a_guest_stands_still_until_its_move_knows_all_blocks(backy: Backy, tmp_path: Path) -> None:
    """QEMU does not mirror a write that is under way meanwhile."""
    seen: list[str] = []
    for number in range(5):  # we may look too late
        machine = Vm(tmp_path / f"vm{number}")
        words = ("--state", str(machine.folder), "--rate", "1MiB")
        with backy.started("boot", "vm1", *words, f"--into=vda={tmp_path / str(number)}"):
            wait_for(lambda vm=machine: vm.qemu() > 0, "QEMU listens")  # type: ignore[misc]
            seen = machine.events_until("RESUME", "BLOCK_JOB_READY")
        machine.kill(*filter(None, (machine.server(), machine.qemu())))
        if seen[-1] == "RESUME":
            break
    assert seen[-1] == "RESUME"


def test_a_disk_moves_into_ceph(ceph: Cluster, backy: Backy, vm: Vm) -> None:
    target = f"vda=rbd:rbd/adopted?conf={ceph.conf}"
    with booting(backy, vm, f"--into={target}", rate="2MiB") as running:
        vm.write(0, 3 * MIB, 7)
        result = running.end()
    assert result.code == 0, result
    vm.write(0, MIB, 9)
    vm.ask("quit")
    wait_for(lambda: not vm.qemu(), "QEMU ended")
    assert ceph.export("rbd/adopted") == changed(1, (3 * MIB, 7), (MIB, 9))


DOMAIN = """<domain type='kvm'><name>vm1</name><memory unit='KiB'>65536</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
<devices><emulator>/bin/false</emulator>
<disk><target dev='vda' bus='scsi'/></disk><disk><target dev='vdb' bus='virtio'/></disk>
<interface type='network'><source network='default'/></interface>
</devices></domain>
"""


def test_the_vm_is_as_its_saved_definition_says_and_has_no_network(backy: Backy, vm: Vm) -> None:
    folder = backy.base / "vm1" / "revisions" / backy.revisions("vm1")[0]
    (folder / "domain.xml").write_text(DOMAIN)
    boot(backy, vm)
    assert vm.ask("query-memory-size-summary")["base-memory"] == 64 * MIB
    assert len(vm.ask("query-cpus-fast")) == 2
    assert "i440FX" in vm.ask("human-monitor-command", command_line="info qtree")
    assert vm.ask("human-monitor-command", command_line="info network") == ""
    devices = [drive["qdev"] for drive in vm.ask("query-block") if drive.get("inserted")]
    assert len(devices) == 2
    status = Path(f"/proc/{vm.qemu()}/status").read_text()
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)


def test_uefi_starts_with_the_variables_that_were_saved(backy: Backy, vm: Vm) -> None:
    folder = backy.base / "vm1" / "revisions" / backy.revisions("vm1")[0]
    template = Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes()
    (folder / "nvram.fd").write_bytes(b"saved by libvirt" + template[16:])  # UEFI ignores those
    boot(backy, vm, "--uefi")
    assert (vm.folder / "nvram.fd").read_bytes()[:16] == b"saved by libvirt"
    roms = vm.ask("human-monitor-command", command_line="info mtree")
    assert "system.flash1" in roms
    vm.kill(vm.qemu())
    (vm.folder / "nvram.fd").write_bytes(b"of this VM alone" + template[16:])
    boot(backy, vm, "--uefi")
    assert (vm.folder / "nvram.fd").read_bytes()[:16] == b"of this VM alone"


@pytest.mark.parametrize("missing_program", ["qemu-system-x86_64", "qemu-img"])
def test_without_qemu_nothing_is_done(
    backy: Backy, vm: Vm, tmp_path: Path, missing_program: str
) -> None:
    (tmp_path / "bin").mkdir()
    for name in {"qemu-system-x86_64", "qemu-img"} - {missing_program}:
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    env = {"PATH": str(tmp_path / "bin")}
    result = backy.run("boot", "vm1", "--state", vm.folder, env=env)
    assert refusal(result, 10).message == f"{missing_program} is not installed"
    assert not vm.folder.exists()
    assert backy.said_of("vm1", backy.revisions("vm1")[0])["tags"] == ["daily"]


def test_a_folder_whose_sockets_would_have_too_long_paths_is_refused(
    backy: Backy, tmp_path: Path
) -> None:
    folder = tmp_path / ("x" * 90)
    assert "is too long" in backy.refuses(2, "boot", "vm1", "--state", folder).message
    assert not folder.exists()


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Backy:
    """vm1 has the lab's guest: a disk that it boots from, and one that it writes to."""
    folder = tmp_path_factory.mktemp("guest")
    backy = Backy(folder / "backups")
    disks = boot_disk(folder / "boot.img"), data_disk(folder / "data.img")
    backy.ok("backup", "vm1", "--source", f"vda={disks[0]}", "--source", f"vdb={disks[1]}")
    return backy


def shut_down(vm: Vm) -> None:
    vm.guest("guest-exec", path="/bin/sh", arg=["-c", "touch /run/stop"])  # it may end before more
    wait_for(lambda: not vm.qemu(), "the guest has shut down")


def check_file_system(vm: Vm, *names: str) -> None:
    """The file system of the second disk has no fault, and these files."""
    vm.content("vdb")
    path = vm.folder / "vdb.raw"
    subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
    for name in names:
        command = ["debugfs", "-R", f"cat /{name}", str(path)]
        said = subprocess.run(command, check=True, capture_output=True)
        assert said.stdout.decode() == f"{TEXT}\n", said


def test_a_real_guest_runs_at_once_and_keeps_what_it_writes(guests: Backy, vm: Vm) -> None:
    names = [f"round{number}" for number in range(min(ROUNDS, 4))]
    for name in names:  # in make soak
        with booting(guests, vm) as running:
            vm.shell(f"echo {TEXT} > /mnt/vdb/{name}; sync")
            victims = [running.process.pid, vm.server(), vm.qemu()]
            chosen = random.sample(victims, random.randint(1, 3))
            vm.kill(*filter(None, chosen))  # a server that is not there yet has no process
            running.process.kill()
    with booting(guests, vm, rate="2MiB") as running:
        assert vm.shell(f"echo {TEXT} > /mnt/vdb/early; sync; ls /sys/class/net") == "lo\n"
        result = running.end()
    assert result.code == 0, result
    assert ROUNDS or re.search(r"vm1: the guest agent answers after [0-9.]+ s\n", result.err)
    assert not vm.server()
    assert [vm.needs("vda"), vm.needs("vdb")] == ["", ""]
    vm.shell(f"echo {TEXT} > /mnt/vdb/late; sync")
    shut_down(vm)
    check_file_system(vm, "early", "late", *names)
