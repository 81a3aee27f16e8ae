"""A libvirtd of its own with domains, started by libvirt.sh: one a test session."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import SubElement, fromstring, parse, tostring

import pytest

from tests.cli.runner import wait_for
from tests.lab import guest
from tests.lab.needs import absent, need

SCRIPT = Path(__file__).with_suffix(".sh")
TEMPLATE = Path(__file__).with_name("libvirt_domain.xml")
PROGRAMS = ("libvirtd", "virsh", "unshare", "qemu-system-x86_64", "qemu-img", "qemu-nbd")
MIB = 1024**2
AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
_LIMIT = 120  # seconds that anything here may take before the test fails


def missing() -> str | None:
    """What this machine lacks for libvirt, or None."""
    if os.geteuid() != 0:
        return "only root can start a libvirtd of its own"
    return absent(*PROGRAMS)


@dataclass(frozen=True, slots=True)
class Libvirt:
    """A running libvirtd; `folder` is for it and for the disks, and QEMU's user may enter it."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.folder}/libvirt-sock"

    def virsh(self, *arguments: str | Path, stdin: str = "") -> str:
        """What virsh says. Raises CalledProcessError where it fails."""
        command = ["virsh", "--quiet", "--connect", self.uri, *arguments]
        environment = os.environ | {"LC_ALL": "C"}
        try:
            done = subprocess.run(
                command, input=stdin, env=environment, check=True, capture_output=True, text=True,
                timeout=_LIMIT,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            error.add_note(error.stderr)
            raise
        return done.stdout

    def agent_and_kernel(self) -> Path:
        """A folder with the guest of guest-build.sh, where QEMU's user may read it."""
        folder = self.folder / "guest"
        if not folder.exists():
            shutil.copytree(guest.built(), folder, ignore=shutil.ignore_patterns("lock", "done"))
            folder.chmod(0o755)
        return folder

    @contextmanager
    def domain(self, name: str, *files: str) -> Iterator["Machine"]:
        """A domain that is off, with a disk of 4 MiB for each of `files`, such as "vda.qcow2"."""
        folder = self.folder / "machines" / name
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        machine = Machine(self, name, folder)
        try:
            machine.define(*(machine.make(file) for file in files))
            yield machine
        finally:
            for command in (["destroy"], ["undefine", "--checkpoints-metadata", "--nvram"]):
                with suppress(subprocess.CalledProcessError):
                    self.virsh(command[0], name, *command[1:])
            shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class Machine:
    """A domain called `name`, whose disks are in `folder`."""

    libvirt: Libvirt
    name: str
    folder: Path

    def virsh(self, command: str, *arguments: str | Path, stdin: str = "") -> str:
        return self.libvirt.virsh(command, self.name, *arguments, stdin=stdin)

    def make(self, file: str, size: int = 4 * MIB) -> Path:
        """A new image, whose suffix is its format."""
        path = self.folder / file
        kind = path.suffix.removeprefix(".")
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(size)], check=True)
        return path

    def define(self, *images: Path, has_guest: bool = False, more: str = "") -> None:
        """Define it, perhaps anew, with these disks, each named as its file.

        With a guest it boots the one of guest-build.sh; `more` is XML of devices.
        """
        root = parse(TEMPLATE).getroot()
        found, os_, devices = root.find("name"), root.find("os"), root.find("devices")
        assert found is not None
        assert os_ is not None
        assert devices is not None
        found.text = self.name
        if has_guest:
            folder = self.libvirt.agent_and_kernel()
            for key, value in {"kernel": "vmlinuz", "initrd": "initrd.img"}.items():
                SubElement(os_, key).text = str(folder / value)
            SubElement(os_, "cmdline").text = "console=ttyS0 quiet panic=-1"
            more += AGENT
        pieces = [disk_xml(image) for image in images]
        devices.extend(fromstring(f"<all>{''.join(pieces)}{more}</all>"))
        text = tostring(root, encoding="unicode")
        with suppress(subprocess.CalledProcessError):
            text = text.replace("<memory", f"<uuid>{self.uuid}</uuid><memory", 1)
        self.libvirt.virsh("define", "/dev/stdin", stdin=text)

    @property
    def uuid(self) -> str:
        return self.virsh("domuuid").strip()

    def start(self) -> None:
        self.virsh("start")

    def stop(self) -> None:
        """Off, as by a power cut of the guest, but not of QEMU: bitmaps are saved."""
        self.virsh("destroy")

    def write(self, disk: str, offset: int, length: int, byte: int) -> None:
        """Have the running QEMU write to a disk what a guest could write."""
        words = f"write -P {byte} {offset} {length}"
        command = f'qemu-io -d {self._device(disk)} "{words}"'
        assert "error" not in self.virsh("qemu-monitor-command", "--hmp", command).lower()

    def _device(self, disk: str) -> str:
        root = fromstring(self.virsh("dumpxml"))
        alias = root.find(f"devices/disk/target[@dev='{disk}']/../alias")
        assert alias is not None
        return f"/machine/peripheral/{alias.get('name')}/virtio-backend"

    def checkpoints(self) -> list[str]:
        return self.virsh("checkpoint-list", "--name").split()

    def has_job(self) -> bool:
        try:
            self.virsh("backup-dumpxml")
        except subprocess.CalledProcessError:
            return False
        return True


def disk_xml(image: Path, more: str = "") -> str:
    """A virtio disk whose name is that of its file, and whose format its suffix."""
    kind = image.suffix.removeprefix(".")
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='{kind}' discard='unmap'/>"
        f"<source file='{image}'/><target dev='{image.stem}' bus='virtio'/>{more}</disk>"
    )


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[Libvirt]:
    """The libvirtd of this test session; with xdist each worker has its own."""
    need(missing())
    with libvirt() as made:
        yield made


@contextmanager
def libvirt() -> Iterator[Libvirt]:
    """A new libvirtd, which ends with the body, and with us, and takes its guests with it."""
    folder = Path(tempfile.mkdtemp(prefix="backy-libvirt-"))
    folder.chmod(0o755)
    try:
        with (
            (folder / "libvirtd.log").open("wb") as log,
            subprocess.Popen(
                [SCRIPT, folder], stdin=subprocess.PIPE, stdout=log, stderr=log
            ) as daemon,
        ):
            made = Libvirt(folder)
            wait_for(lambda: answers(made, daemon), "libvirtd answers")
            yield made
    finally:
        shutil.rmtree(folder)


def answers(made: Libvirt, daemon: subprocess.Popen[bytes]) -> bool:
    """Whether one can ask it; fails where it ended."""
    assert daemon.poll() is None, (made.folder / "libvirtd.log").read_text()
    with suppress(subprocess.CalledProcessError):
        return bool(made.virsh("version"))
    return False
