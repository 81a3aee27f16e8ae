"""A QEMU source against a real VM: a guest with an agent that writes to its disks all the time."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backy.clients.guest_agent import Agent
from backy.errors import SourceError
from backy.model.revision import Consistency, Disk, Revision, id_for
from backy.sources import Request
from backy.sources.qemu import QemuSource
from tests.cli.runner import PROGRAM, Backy, environment, wait_for
from tests.lab.guest import Guest, guest, needs_guest
from tests.snapshots import opened, pulled

pytestmark = needs_guest
MIB = 1024**2
ROUNDS = 10 * int(os.environ.get("BACKY_ROUNDS", "1"))


def name(number: int) -> str:
    return id_for(datetime(2026, 11, 23, 0, number // 60, number % 60, tzinfo=UTC), "test")


def source(vm: Guest, **more: object) -> QemuSource:
    scratch = vm.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    settings = {"qmp": str(vm.socket), "agent": str(vm.agent), "scratch": str(scratch)}
    return QemuSource(**settings | {"server": "server1", "timeout": "60s"} | more)


def parent(number: int, content: Mapping[str, bytes]) -> Revision:
    disks = {disk: Disk(len(data), MIB, "", 0, 0, 0) for disk, data in content.items()}
    return Revision(name(number), datetime.now(UTC), None, 0, Consistency.CRASH, disks)


def counters(content: Mapping[str, bytes], folder: Path) -> list[int]:
    """How far the guest had counted on each disk, whose file system must be without any fault."""
    found = []
    for disk in ("vda", "vdb"):
        path = folder / f"pulled-{disk}"
        path.write_bytes(content[disk])
        subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
        said = subprocess.run(
            ["debugfs", "-R", "cat /counter", path], check=True, capture_output=True
        )
        found.append(int(said.stdout or 0))  # it may not have begun to count
    return found


class Relay:
    """Stands between backy and the agent, and hears what they say; `heard` may do something.

    `heard` is called with each line of either, before it is passed on.
    """

    def __init__(self, path: Path, agent: Path, heard: Callable[[str], object]) -> None:
        self._agent, self._heard = agent, heard
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.socket(socket.AF_UNIX)
                theirs.connect(str(self._agent))
                back = threading.Thread(target=self._pass, args=(theirs, ours), daemon=True)
                back.start()
                self._pass(ours, theirs)  # the agent talks to one at a time
                back.join(20)
                ours.close()
                theirs.close()

    def _pass(self, origin: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            for line in origin.makefile("rb"):
                self._heard(line.decode("latin-1"))
                target.sendall(line)
        for each in (origin, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(vm: Guest, heard: Callable[[str], object]) -> Iterator[str]:
    """The path of a socket that leads to the agent."""
    path = vm.folder / "relay"
    try:
        with closing(Relay(path, vm.agent, heard)):
            yield str(path)
    finally:
        path.unlink()


class Frozen:
    """Measures how long the guest was frozen each time, as one hears it at the agent's socket."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began: float | None = None
        self._is_thawing = False

    def __call__(self, line: str) -> None:
        if "fsfreeze-freeze" in line:
            self._began = time.monotonic()
        elif "fsfreeze-thaw" in line:
            self._is_thawing = True
        elif self._is_thawing and self._began and re.search(r'"return": \d\}', line):
            self.seconds.append(time.monotonic() - self._began)
            self._is_thawing, self._began = False, None


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short name: that of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="backy-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def running() -> Iterator[Guest]:
    """A guest that runs, for all tests that leave it running."""
    with tempfile.TemporaryDirectory(prefix="backy-") as path, guest(Path(path)) as vm:
        vm.boot()
        yield vm


@pytest.fixture
def vm(running: Guest) -> Iterator[Guest]:
    yield running
    source(running).remove_all_except([])
    assert not any((running.folder / "scratch").iterdir())


def is_thawed(vm: Guest) -> bool:
    with suppress(SourceError), closing(Agent(vm.agent, 5)) as agent:
        return agent.ask("guest-fsfreeze-status", 5) == "thawed"
    return False


def test_deltas_under_constant_writes_are_clean_and_the_guest_is_hardly_held_up(
    vm: Guest, folder: Path
) -> None:
    frozen, content, last = Frozen(), dict[str, bytes](), [0, 0]
    with relay(vm, frozen) as agent:
        qemu = source(vm, agent=agent)
        for number in range(ROUNDS + 1):
            before = parent(number - 1, content) if number else None
            qemu.remove_all_except([before.id] if before else [])
            with opened(qemu, Request(name(number), before)) as snapshot:
                assert snapshot.full_read_reasons == {}
                assert snapshot.consistency is Consistency.FILESYSTEM
                content = pulled(snapshot, content)
                assert list(snapshot.warnings()) == []
                snapshot.keep_checkpoint()
            first, second = now = counters(content, folder)
            assert second <= first <= second + 1
            assert now > last or not number
            last = now
            wait_for(lambda: is_thawed(vm), "it goes on")
    assert len(frozen.seconds) == ROUNDS + 1
    worst, median = max(frozen.seconds), statistics.median(frozen.seconds)
    print(f"frozen for {median * 1000:.0f} ms, at most {worst * 1000:.0f} ms")  # noqa: T201
    assert median < 0.5


def configuration(vm: Guest, agent: str, folder: Path) -> Path:
    """Of one job, "vm1"."""
    source = {"type": "qemu", "qmp": str(vm.socket), "agent": agent, "server": "server1"}
    source["scratch"] = str(vm.folder / "scratch")
    job = {"schedule": "daily", "source": source, "store": "chunks"}
    schedules = {"daily": {"daily": {"interval": "1d", "keep": 3}}}
    settings = {"global": {"base-dir": str(folder / "base")}, "schedules": schedules}
    path = folder / "backy.yaml"
    path.write_text(json.dumps(settings | {"jobs": {"vm1": job}}))
    return path


def test_a_guest_whose_backup_is_killed_while_it_is_frozen_is_thawed_and_backed_up_next_time(
    vm: Guest, folder: Path
) -> None:
    killed, was_asked = threading.Event(), threading.Event()

    def kill(line: str) -> None:
        """When the agent says that it froze; backy never hears it."""
        if was_asked.is_set() and re.search(r'"return": [1-9]\}', line) and not killed.is_set():
            victim.kill()
            killed.set()
        if "fsfreeze-freeze" in line:
            was_asked.set()

    (vm.folder / "scratch").mkdir(exist_ok=True)
    with relay(vm, kill) as agent:
        config = configuration(vm, agent, folder)
        command = [*PROGRAM, "--config", str(config), "backup", "vm1"]
        with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as victim:
            assert victim.wait() == -signal.SIGKILL
        wait_for(lambda: is_thawed(vm), "it is thawed")
        backy, last = Backy(folder / "base"), [0, 0]
        for _ in range(2):
            done = subprocess.run(command, env=environment(), capture_output=True, check=True)
            assert done.stderr == b""
            content = {disk: backy.content("vm1", disk=disk) for disk in vm.disks}
            now = counters(content, folder)
            assert now > last
            last = now
    newest = folder / "base" / "vm1" / "revisions" / backy.revisions("vm1")[-1]
    record = json.loads((newest / "revision.json").read_text())
    assert record["consistency"] == "filesystem"
    assert record["warnings"] == []


def test_a_qemu_that_hangs_while_the_guest_is_frozen_fails_the_backup_in_time(vm: Guest) -> None:
    """What was said to the agent meanwhile it hears when QEMU goes on."""
    assert vm.process
    stopped = vm.process

    def stop(line: str) -> None:
        if was_asked and re.search(r'"return": [1-9]\}', line) and len(was_asked) == 1:
            was_asked.append(line)
            stopped.send_signal(signal.SIGSTOP)
        if "fsfreeze-freeze" in line:
            was_asked.append(line)

    was_asked: list[str] = []
    try:
        with relay(vm, stop) as agent:
            qemu = source(vm, agent=agent, freeze_timeout="10s", timeout="10s")
            with (
                pytest.raises(SourceError, match=r"transaction: no answer within 5\.0 s"),
                opened(qemu, Request(name(0))),
            ):
                pytest.fail("it hangs")
    finally:
        stopped.send_signal(signal.SIGCONT)
    wait_for(lambda: is_thawed(vm), "it is thawed")


def test_an_agent_that_does_not_answer_costs_a_warning_and_the_clean_file_system(
    folder: Path,
) -> None:
    with guest(folder) as vm:
        vm.start()
        vm.ask("cont")
        qemu = source(vm, freeze_timeout="1s")
        with opened(qemu, Request(name(0))) as snapshot:
            assert snapshot.consistency is Consistency.CRASH
            [warning] = snapshot.warnings()
            assert str(vm.agent) in warning


@pytest.mark.parametrize(
    "more", [{"freeze": False}, {"agent": None}], ids=["switched-off", "no-agent"]
)
def test_a_guest_that_is_not_to_be_frozen_is_not(vm: Guest, more: dict[str, object]) -> None:
    frozen = Frozen()
    with relay(vm, frozen) as agent:
        qemu = source(vm, **{"agent": agent} | more)
        with opened(qemu, Request(name(0))) as snapshot:
            assert snapshot.consistency is Consistency.CRASH
            assert list(snapshot.warnings()) == []
    assert frozen.seconds == []


def test_a_guest_that_hooks_froze_is_left_frozen(vm: Guest) -> None:
    with closing(Agent(vm.agent, 60)) as agent:
        assert agent.ask("guest-fsfreeze-freeze", 60) == 2
    try:
        with opened(source(vm), Request(name(0), is_frozen=True)) as snapshot:
            assert snapshot.consistency is Consistency.CRASH
            assert list(snapshot.warnings()) == []
            assert not is_thawed(vm)
    finally:
        with closing(Agent(vm.agent, 60)) as agent:
            assert agent.ask("guest-fsfreeze-thaw", 60) == 2


def test_a_guest_that_somebody_froze_and_forgot_is_thawed(vm: Guest) -> None:
    with closing(Agent(vm.agent, 60)) as agent:
        agent.ask("guest-fsfreeze-freeze", 60)
    with opened(source(vm), Request(name(0))) as snapshot:
        assert is_thawed(vm)
        assert snapshot.consistency is Consistency.CRASH
        [warning] = snapshot.warnings()
        assert "guest-fsfreeze-freeze" in warning


def test_half_a_command_that_somebody_left_at_the_agent_does_no_harm(vm: Guest) -> None:
    with socket.socket(socket.AF_UNIX) as somebody:
        somebody.connect(str(vm.agent))
        somebody.sendall(b'{"execute": "guest-pi')
    with opened(source(vm), Request(name(0))) as snapshot:
        assert snapshot.consistency is Consistency.FILESYSTEM
        assert list(snapshot.warnings()) == []


def test_a_paused_vm_is_backed_up_and_stays_paused(vm: Guest) -> None:
    vm.ask("stop")
    try:
        with opened(source(vm), Request(name(0))) as snapshot:
            assert snapshot.consistency is Consistency.CRASH
            assert list(snapshot.warnings()) == []
            content = pulled(snapshot)
        assert vm.ask("query-status")["status"] == "paused"
    finally:
        vm.ask("cont")
    assert set(content) == {"vda", "vdb"}


def test_a_vm_that_stood_still_for_lack_of_scratch_room_goes_on_and_its_backup_is_right(
    vm: Guest, folder: Path
) -> None:
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", small], check=True)
    # Only what is overwritten goes there: wait until there is enough of that.
    wait_for(lambda: vm.disks["vda"].stat().st_blocks * 512 > 6 * MIB, "the guest wrote enough")
    try:
        with opened(source(vm, scratch=str(small)), Request(name(0))) as snapshot:
            wait_for(lambda: vm.ask("query-status")["status"] == "io-error", "it stands still")
            first, second = counters(pulled(snapshot), folder)
            assert second <= first <= second + 1
            [warning] = snapshot.warnings()
            assert "the VM is stopped" in warning
        assert vm.ask("query-status")["status"] == "running"
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_vm_with_iothreads_is_refused_where_qemu_could_end_from_it(folder: Path) -> None:
    """QEMU 7.2 aborts when a client hangs up on a disk in an iothread."""
    with guest(folder, "-object", "iothread,id=io0", device=",iothread=io0") as vm:
        vm.start()
        major = vm.ask("query-version")["qemu"]["major"]
        assert major < 8, "the versions of the next Debian are not to be refused"
        with (
            pytest.raises(SourceError, match="iothread"),
            opened(source(vm), Request(name(0))),
        ):
            pytest.fail("it may end the VM")
        assert vm.ask("query-status")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_qemu_of_another_user_is_given_what_it_needs_and_no_more(folder: Path) -> None:
    nobody = 65534
    with guest(folder) as vm:
        for each in (folder, *vm.disks.values()):
            os.chown(each, nobody, nobody)
        vm.under = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
        vm.start()
        qemu = source(vm)
        with opened(qemu, Request(name(0))) as snapshot:
            content = pulled(snapshot)
            [ours] = (folder / "scratch").iterdir()
            assert ours.stat().st_mode & 0o66 == 0  # to pass through, and no more
            assert [each.stat().st_mode & 0o77 for each in ours.iterdir()] == [0]
        assert content["vdb"] == vm.disks["vdb"].read_bytes()
        assert not any((folder / "scratch").iterdir())


def test_disks_are_those_that_the_guest_can_write_to_by_the_ids_they_were_given(
    folder: Path,
) -> None:
    for each in ("iso", "read-only", "drive", "scsi", "floppy"):
        (folder / each).write_bytes(bytes(MIB))
    options = [
        "-drive", f"if=none,id=cd,format=raw,media=cdrom,file={folder}/iso",
        "-device", "ide-cd,drive=cd",
        "-drive", f"if=none,id=fd,format=raw,file={folder}/floppy",
        "-device", "isa-fdc,id=fdc",
        "-device", "floppy,drive=fd",
        "-drive", f"if=none,id=ro,format=raw,read-only=on,file={folder}/read-only",
        "-device", "virtio-blk-pci,drive=ro",
        "-drive", f"if=none,id=drive-1,format=raw,file={folder}/drive",
        "-device", "virtio-blk-pci,drive=drive-1",
        "-device", "virtio-scsi-pci,id=bus",
        "-drive", f"if=none,id=drive-2,format=raw,file={folder}/scsi",
        "-device", "scsi-hd,drive=drive-2,id=sda",
    ]  # fmt: skip
    with guest(folder, *options) as vm:
        vm.start()
        with opened(source(vm), Request(name(0))) as snapshot:
            assert list(snapshot.disks) == ["drive-1", "sda", "vda", "vdb"]
        with opened(source(vm, disks=["vdb", "sda"]), Request(name(0))) as snapshot:
            assert list(snapshot.disks) == ["sda", "vdb"]
        with opened(source(vm, exclude=["drive-1"]), Request(name(0))) as snapshot:
            assert list(snapshot.disks) == ["sda", "vda", "vdb"]
        with opened(source(vm, disks={"root": "sda"}), Request(name(0))) as snapshot:
            assert list(snapshot.disks) == ["root"]


def test_two_disks_that_would_have_one_name_must_be_named(folder: Path) -> None:
    for each in ("one", "two"):
        (folder / each).write_bytes(bytes(MIB))
    options = [
        "-drive", f"if=none,id=root,format=raw,file={folder}/one",
        "-device", "virtio-blk-pci,drive=root",
        "-drive", f"if=none,id=data,format=raw,file={folder}/two",
        "-device", "virtio-blk-pci,drive=data,id=root",
    ]  # fmt: skip
    with guest(folder, *options) as vm:
        vm.start()
        with (
            pytest.raises(SourceError, match="two disks would be called 'root'"),
            opened(source(vm), Request(name(0))),
        ):
            pytest.fail("one would be lost")
