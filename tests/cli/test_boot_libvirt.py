"""A revision becomes a libvirt domain at once, and nothing that its guest writes is lost."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pytest

from tests.cli.runner import MIB, Backy, Result, Running, data, image, refusal, wait_for
from tests.lab import bootable
from tests.lab.libvirt import Libvirt

pytestmark = pytest.mark.skipif(bool(bootable.missing), reason=str(bootable.missing))
SIZE = 4 * MIB
NAME = "vm1-boot"
NETWORK = """<interface type='network'><mac address='52:54:00:11:22:33'/>
<source network='default'/><model type='virtio'/></interface>"""
DANGEROUS = """<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/>
</source></hostdev>"""


class Lab:
    """A libvirtd, a repository of vm1, and the folder of its boot."""

    def __init__(self, libvirt: Libvirt, folder: Path) -> None:
        self.libvirt, self.state = libvirt, libvirt.folder / "booted"
        self.backy = Backy(folder / "backups")

    def back_up(self, *disks: Path) -> None:
        """Back up the disks, and the definition of a domain that has them."""
        names = ("vda", "vdb")
        words = [f"--source={name}={disk}" for name, disk in zip(names, disks, strict=False)]
        self.backy.ok("backup", "vm1", *words)
        with self.libvirt.domain("vm1") as machine:
            files = [machine.folder / f"{name}.raw" for name, _ in zip(names, disks, strict=False)]
            for file in files:
                file.touch()
            agent = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/>"
            machine.define(*files, more=f"{NETWORK}{DANGEROUS}{agent}</channel>")
            text = machine.virsh("dumpxml")
        revision = self.backy.base / "vm1" / "revisions" / self.backy.revisions("vm1")[0]
        (revision / "domain.xml").write_text(text)

    @property
    def words(self) -> list[str]:
        return ["boot", "vm1", "--run", "libvirt", "--state", str(self.state)]

    @property
    def env(self) -> dict[str, str]:
        return {"LIBVIRT_DEFAULT_URI": self.libvirt.uri}

    def boot(self) -> Result:
        result = self.backy.run(*self.words, env=self.env)
        assert result.code == 0, result
        return result

    @contextmanager
    def booting(self, rate: str = "1MiB") -> Iterator[Running]:
        """A boot that copies slowly, once its domain runs."""
        with self.backy.started(*self.words, "--rate", rate, env=self.env) as running:
            wait_for(lambda: running.process.poll() is not None or self.copies(), "it copies")
            assert running.process.poll() is None, running.end()
            yield running

    def copies(self) -> bool:
        with suppress(subprocess.CalledProcessError):
            return "Block Pull" in self.virsh("blockjob", "vda", "--raw")
        return False

    def virsh(self, command: str, *arguments: str) -> str:
        return self.libvirt.virsh(command, NAME, *arguments)

    def domain(self, *options: str) -> Element:
        return fromstring(self.virsh("dumpxml", *options))

    def server(self) -> int:
        """The process id of the server; 0 if nobody listens."""
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(self.state / "backy.sock")):
                return 0
            peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("=iII", peer)[0])

    def kill(self) -> None:
        """Kill QEMU, which can flush nothing then."""
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # a process that has ended meanwhile
                if f"{self.state}/vda.qcow2" in command.read_text(errors="replace"):
                    os.kill(int(command.parent.name), signal.SIGKILL)
        wait_for(lambda: "shut off" in self.virsh("domstate"), "it is off")

    def write(self, offset: int, byte: int) -> None:
        """Write 64 KiB to vda as the guest would do it, and wait until they are durable."""
        for words in (f"write -P {byte} {offset} 65536", "flush"):
            device = "-d /machine/peripheral/virtio-disk0/virtio-backend"
            said = self.virsh("qemu-monitor-command", "--hmp", f'qemu-io {device} "{words}"')
            assert "error" not in said.lower(), said

    def content(self, disk: str = "vda") -> bytes:
        """A disk of the domain, which is off, and needs nothing else."""
        raw = self.state / f"{disk}.raw"
        convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw"]
        subprocess.run([*convert, self.state / f"{disk}.qcow2", raw], check=True)
        return raw.read_bytes()

    def has_agent(self) -> bool:
        with suppress(subprocess.CalledProcessError):
            return self._ask("guest-ping", {}) == {}
        return False

    def shell(self, script: str) -> str:
        """What a script prints that the guest runs, through libvirt."""
        run = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        pid = self._ask("guest-exec", run)["pid"]
        while not (status := self._ask("guest-exec-status", {"pid": pid}))["exited"]:
            pass
        assert status["exitcode"] == 0, status
        return base64.b64decode(str(status.get("out-data", ""))).decode()

    def _ask(self, command: str, arguments: dict[str, object]) -> dict[str, object]:
        text = json.dumps({"execute": command, "arguments": arguments})
        answer = json.loads(self.virsh("qemu-agent-command", text))
        return dict(answer["return"])


@pytest.fixture
def lab(libvirtd: Libvirt, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(libvirtd, tmp_path)
    yield made
    for command in (["destroy"], ["undefine", "--nvram"]):
        with suppress(subprocess.CalledProcessError):
            made.virsh(*command)
    if pid := made.server():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(made.state, ignore_errors=True)


def changed(seed: int, *writes: tuple[int, int]) -> bytes:
    content = bytearray(data(seed, SIZE))
    for offset, byte in writes:
        content[offset : offset + 65536] = bytes([byte]) * 65536
    return bytes(content)


def test_a_real_guest_runs_as_a_domain_and_keeps_what_it_writes(lab: Lab, tmp_path: Path) -> None:
    lab.back_up(bootable.boot_disk(tmp_path / "a.img"), bootable.data_disk(tmp_path / "b.img"))
    with lab.booting("2MiB") as running:
        wait_for(lab.has_agent, "the agent answers")
        lab.shell("echo early > /mnt/vdb/early; sync")
        result = running.end()
    assert result.code == 0, result
    assert "the VM runs on" in result.out
    assert re.search(r"vm1: the guest agent answers after [0-9.]+ s\n", result.err)
    assert not lab.server()
    assert lab.shell("ls /sys/class/net; echo late > /mnt/vdb/late; sync") == "lo\n"
    lab.virsh("destroy")
    lab.content("vdb")
    raw = lab.state / "vdb.raw"
    subprocess.run(["e2fsck", "-fn", raw], check=True, capture_output=True)
    for name in ("early", "late"):
        cat = subprocess.run(
            ["debugfs", "-R", f"cat /{name}", raw], check=True, capture_output=True
        )
        assert cat.stdout.decode() == f"{name}\n"


def test_the_domain_is_a_new_one_that_touches_nothing_of_the_host(lab: Lab, tmp_path: Path) -> None:
    lab.back_up(image(tmp_path / "a.img", data(1, SIZE)))
    result = lab.boot()
    assert "hostdev usb: left out" in result.err
    for options in ([], ["--inactive"]):
        domain = lab.domain(*options)
        (disk,) = domain.findall("devices/disk/source")
        assert disk.get("file") == str(lab.state / "vda.qcow2")
        assert domain.findall("devices/interface") == domain.findall("devices/hostdev") == []
        assert all(not len(backing) for backing in domain.iter("backingStore"))
    lab.kill()  # from now on nobody needs to be asked to flush
    assert lab.content() == data(1, SIZE)
    assert lab.backy.said_of("vm1", lab.backy.revisions("vm1")[0])["tags"] == []


def test_its_cards_are_in_the_network_that_was_asked_for_with_new_macs(
    lab: Lab, tmp_path: Path
) -> None:
    lab.back_up(image(tmp_path / "a.img", data(1, SIZE)))
    result = lab.backy.run(*lab.words, "--network", "apart", env=lab.env)
    refused = refusal(result, 10)  # this libvirtd has no network
    assert "'apart'" in refused.message
    (card,) = lab.domain("--inactive").findall("devices/interface")
    source, model, mac = (card.find(name) for name in ("source", "model", "mac"))
    assert source is not None
    assert model is not None
    assert mac is not None
    assert (source.get("network"), model.get("type")) == ("apart", "virtio")
    assert mac.get("address") != "52:54:00:11:22:33"


def test_a_guest_whose_server_dies_waits_and_the_same_command_goes_on(
    lab: Lab, tmp_path: Path
) -> None:
    lab.back_up(image(tmp_path / "a.img", data(1, SIZE)))
    with lab.booting() as running:
        lab.write(MIB, 7)
        running.process.kill()
        running.process.wait()
        os.kill(lab.server(), signal.SIGKILL)
        wait_for(lambda: not lab.copies() or not lab.server(), "the server is gone")
    result = lab.backy.run(*lab.words, env=lab.env)
    if result.code:  # this libvirt does not wait for a new server
        assert "virsh destroy vm1-boot\n" in result.err
        assert "running" in lab.virsh("domstate")
        lab.virsh("destroy")
        lab.boot()
    lab.virsh("destroy")
    assert lab.content() == changed(1, (MIB, 7))


def test_without_a_saved_definition_nothing_is_done(lab: Lab, tmp_path: Path) -> None:
    lab.backy.backup("vm1", image(tmp_path / "a.img", data(1, SIZE)))
    refused = lab.backy.refuses(10, *lab.words)
    assert "has no saved definition" in refused.message
    assert not lab.state.exists()
