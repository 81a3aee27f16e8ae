"""A QEMU source against a real storage daemon, in which there is no guest but all the rest."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backy.clients.qmp import Monitor
from backy.errors import CancelledError, ConfigError, SourceError
from backy.image.image import Image
from backy.model.extent import Kind
from backy.model.revision import Consistency, Disk, Revision, id_for
from backy.sources import Request
from backy.sources.qemu import QemuSource
from backy.system.signals import cancellable
from tests.cli.runner import environment
from tests.conformance.source import SourceSuite
from tests.lab.nested import nested
from tests.lab.storage_daemon import StorageDaemon, needs_storage_daemon, storage_daemon
from tests.memory_source import sample
from tests.snapshots import opened, pulled

pytestmark = needs_storage_daemon
MIB = 1024**2
DISKS = {"q": sample(3 * MIB), "r": sample(2 * MIB + 512, seed=1)}
SERVER = "server1"
EPOCH = datetime(2026, 11, 23, tzinfo=UTC)
ROUNDS = 12 * int(os.environ.get("BACKY_ROUNDS", "1"))


def source(daemon: StorageDaemon, **more: object) -> QemuSource:
    scratch = daemon.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    settings = {"qmp": str(daemon.socket), "scratch": str(scratch), "server": SERVER}
    named = {name: name for name in daemon.disks}
    return QemuSource(**settings | {"disks": named, "timeout": "60s"} | more)


def name(number: int) -> str:
    """The id of a revision."""
    return id_for(EPOCH + timedelta(seconds=number), "test")


def revision(number: int, content: Mapping[str, bytes]) -> Revision:
    disks = {
        disk: Disk(size=len(data), block_size=MIB, index_hash="", read=0, changed=0, stored=0)
        for disk, data in content.items()
    }
    return Revision(name(number), EPOCH, None, 0, Consistency.CRASH, disks)


def changed(image: Image) -> int:
    """The bytes that are not said to be as in the parent."""
    return sum(each.length for each in image.extents() if each.kind is not Kind.SAME)


def backed_up(
    qemu: QemuSource, number: int, before: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """One backup, as backup.py makes it, upon the one before; nothing must be read in whole."""
    parent = revision(number - 1, before) if before else None
    qemu.remove_all_except([parent.id] if parent else [])
    with opened(qemu, Request(name(number), parent)) as snapshot:
        content = pulled(snapshot, before or {})
        assert list(snapshot.warnings()) == []
        assert snapshot.full_read_reasons == {}
        snapshot.keep_checkpoint()
    qemu.remove_all_except([name(number)])
    return content


def content_of(daemon: StorageDaemon) -> dict[str, bytes]:
    return {disk: daemon.content(disk) for disk in daemon.disks}


def scribble(daemon: StorageDaemon, chance: random.Random) -> None:
    """What a guest does: writes and discards here and there."""
    for disk in daemon.disks:
        size = len(DISKS[disk])
        for _ in range(chance.randint(1, 6)):
            start = chance.randrange(size)
            length = min(chance.choice([1, 512, 4096, 70_000]), size - start)
            if chance.random() < 0.25:
                daemon.discard(disk, start, length)
            else:
                daemon.write(disk, start, chance.randbytes(length))


def ours(daemon: StorageDaemon) -> set[str]:
    """All that is left of us: bitmaps, nodes, jobs, exports, files; and a server, if it runs."""
    nodes = daemon.ask("query-named-block-nodes")
    bitmaps = [each.get("name", "") for node in nodes for each in node.get("dirty-bitmaps", [])]
    found = [
        *bitmaps,
        *(node["node-name"] for node in nodes),
        *(each["device"] for each in daemon.ask("query-block-jobs")),
        *(each["id"] for each in daemon.ask("query-block-exports")),
        *(path.name for path in (daemon.folder / "scratch").iterdir()),
    ]
    if is_serving(daemon):
        found.append("backy serves")
    return {each for each in found if each.startswith("backy")}


def is_serving(daemon: StorageDaemon) -> bool:
    """Whether the NBD server runs; it does not afterwards."""
    try:
        daemon.ask("nbd-server-stop")
    except SourceError:
        return False
    return True


def bitmap(number: int) -> str:
    return f"backy-{name(number)}-{SERVER}"


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short name: that of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="backy-") as path:
        yield Path(path)


@pytest.fixture
def daemon(folder: Path) -> Iterator[StorageDaemon]:
    with storage_daemon(folder, **DISKS) as daemon:
        yield daemon


class TestStorageDaemon(SourceSuite):
    consistency = Consistency.CRASH

    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="backy-") as path:
            yield Path(path)

    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[QemuSource]:
        with storage_daemon(folder, **disks) as daemon:
            yield source(daemon)


def test_each_delta_is_the_disk_of_one_moment_and_reads_only_what_changed(
    daemon: StorageDaemon,
) -> None:
    qemu, chance = source(daemon), random.Random(5)
    before = backed_up(qemu, 0)
    assert before == DISKS
    for number in range(1, ROUNDS + 1):
        scribble(daemon, chance)
        expected = content_of(daemon)
        parent = revision(number - 1, before)
        with opened(qemu, Request(name(number), parent)) as snapshot:
            assert snapshot.full_read_reasons == {}
            scribble(daemon, chance)  # while it is being read
            before = pulled(snapshot, before)
            assert list(snapshot.warnings()) == []
            snapshot.keep_checkpoint()
        assert before == expected
        qemu.remove_all_except([name(number)])
        assert ours(daemon) == {bitmap(number)}


def test_what_is_written_before_it_is_opened_is_not_in_the_snapshot(
    daemon: StorageDaemon,
) -> None:
    """A guest that hooks have frozen goes on when the snapshot was taken."""
    qemu, chance = source(daemon), random.Random(6)
    before = backed_up(qemu, 0)
    scribble(daemon, chance)
    expected = content_of(daemon)
    with qemu.snapshot(Request(name(1), revision(0, before))) as taken:
        scribble(daemon, chance)
        with taken.open() as snapshot:
            assert pulled(snapshot, before) == expected


def test_a_delta_of_nothing_reads_nothing(daemon: StorageDaemon) -> None:
    qemu = source(daemon)
    backed_up(qemu, 0)
    with opened(qemu, Request(name(1), revision(0, DISKS))) as snapshot:
        assert [changed(image) for image in snapshot.disks.values()] == [0, 0]


def test_one_byte_costs_one_cluster(daemon: StorageDaemon) -> None:
    qemu = source(daemon)
    backed_up(qemu, 0)
    daemon.write("q", 100_000, b"x")
    daemon.write("r", 100_000, b"x")
    with opened(qemu, Request(name(1), revision(0, DISKS))) as snapshot:
        assert [changed(image) for image in snapshot.disks.values()] == [65536, 65536]


@pytest.mark.parametrize("is_executed", [False, True], ids=["refused", "answer-lost"])
def test_whichever_command_fails_nothing_is_left_and_the_next_delta_is_right(
    daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch, is_executed: bool
) -> None:
    qemu, chance = source(daemon), random.Random(7)
    before = backed_up(qemu, 0)
    ask, number, failing, count = Monitor.ask, 0, 0, 0
    kept = ""

    def fail(self: Monitor, command: str, *more: float, **arguments: object) -> object:
        nonlocal count
        count += 1
        if count != failing:
            return ask(self, command, *more, **arguments)
        if is_executed:
            ask(self, command, *more, **arguments)
        raise SourceError(f"{command} fails")

    while count >= failing:
        number, failing, count = number + 1, failing + 1, 0
        daemon.write(chance.choice("qr"), chance.randrange(MIB), chance.randbytes(1000))
        request = Request(name(number), revision(number - 1, before))
        kept = name(number - 1)
        with monkeypatch.context() as patch:
            patch.setattr(Monitor, "ask", fail)
            with suppress(SourceError), opened(qemu, request) as snapshot:
                pulled(snapshot, before)
                snapshot.warnings()
                snapshot.keep_checkpoint()
                kept = name(number)
        if count < failing:
            break
        # The failure may have been in the removal itself.
        qemu.remove_all_except([name(number - 1)])
        assert ours(daemon) - {bitmap(number)} == {bitmap(number - 1)}, failing
        expected = content_of(daemon)
        before = backed_up(qemu, number, before)
        assert before == expected, failing
        assert ours(daemon) == {bitmap(number)}
    assert failing > 20
    assert kept == name(number)


VICTIM = """
import sys, time
from datetime import UTC, datetime
from backy.model.revision import *
from backy.sources import Request
from backy.sources.qemu import QemuSource
qmp, scratch, server, revision, old, *sizes = sys.argv[1:]
disks = {name: Disk(int(size), 1, "", 0, 0, 0) for name, size in zip("qr", sizes)}
parent = Revision(old, datetime.now(UTC), None, 0, Consistency.CRASH, disks)
source = QemuSource(qmp=qmp, scratch=scratch, server=server, disks={"q": "q", "r": "r"})
with source.snapshot(Request(revision, parent)) as taken, taken.open() as snapshot:
    buffer = bytearray(snapshot.disks["q"].size)
    snapshot.disks["q"].readinto(0, memoryview(buffer))
    print("taken", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_backup_leaves_the_next_one_finds_and_removes(daemon: StorageDaemon) -> None:
    qemu, chance = source(daemon), random.Random(9)
    before = backed_up(qemu, 0)
    sizes = [str(len(content)) for content in DISKS.values()]
    arguments = [str(daemon.socket), str(daemon.folder / "scratch"), SERVER, name(9), name(0)]
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, *arguments, *sizes],
        env=environment(),
        stdout=subprocess.PIPE,
    ) as victim:
        try:
            assert victim.stdout
            assert victim.stdout.readline() == b"taken\n"
        finally:
            victim.kill()
    nodes = daemon.ask("query-named-block-nodes")
    assert len([each for each in nodes if each["node-name"].startswith("backy-")]) == 2
    scribble(daemon, chance)
    expected = content_of(daemon)
    assert backed_up(qemu, 1, before) == expected
    assert ours(daemon) == {bitmap(1)}


def test_sigterm_ends_it_and_leaves_nothing(daemon: StorageDaemon) -> None:
    qemu = source(daemon)
    backed_up(qemu, 0)
    request = Request(name(1), revision(0, DISKS))
    with pytest.raises(CancelledError), cancellable(), opened(qemu, request):
        signal.raise_signal(signal.SIGTERM)
    assert ours(daemon) == {bitmap(0)}


def test_what_others_made_is_left_alone(daemon: StorageDaemon) -> None:
    theirs = [f"backy-{name(0)}-server2", "backy-0", f"{bitmap(0)}-mine", "checkpoint"]
    for each in theirs:
        daemon.ask("block-dirty-bitmap-add", node="q", name=each)
    qemu = source(daemon)
    before = backed_up(qemu, 0)
    backed_up(qemu, 1, before)
    qemu.remove_all_except([])
    [node] = [n for n in daemon.ask("query-named-block-nodes") if n["node-name"] == "q"]
    assert {each["name"] for each in node["dirty-bitmaps"]} == set(theirs)
    exports = {each["id"] for each in daemon.ask("query-block-exports")}
    assert exports == {"guest-q", "guest-r"}


def test_an_nbd_server_that_somebody_else_uses_is_left_alone(
    daemon: StorageDaemon, folder: Path
) -> None:
    address = {"type": "unix", "data": {"path": str(folder / "theirs")}}
    daemon.ask("nbd-server-start", addr=address)
    daemon.ask("blockdev-add", driver="null-co", node_name="theirs")
    daemon.ask("block-export-add", type="nbd", id="theirs", node_name="theirs", name="theirs")
    qemu = source(daemon)
    (folder / "scratch" / qemu._objects.prefix).mkdir()  # as a killed backup leaves it
    for _ in range(2):
        qemu.remove_all_except([])
        with (
            pytest.raises(SourceError, match=r"nbd-server-start.*already running"),
            opened(qemu, Request(name(0))),
        ):
            pytest.fail("there is only one")
    uri = f"nbd+unix:///theirs?socket={folder}/theirs"
    subprocess.run(["nbdinfo", uri], check=True, stdout=subprocess.DEVNULL)


def test_a_bitmap_in_qcow2_outlives_a_power_cycle_and_one_of_a_raw_disk_does_not(
    daemon: StorageDaemon,
) -> None:
    qemu = source(daemon)
    before = backed_up(qemu, 0)
    daemon.stop()
    daemon.start()
    daemon.write("q", MIB, b"x")
    with opened(qemu, Request(name(1), revision(0, before))) as snapshot:
        assert snapshot.full_read_reasons == {"r": f"its bitmap {bitmap(0)} is gone"}
        assert changed(snapshot.disks["q"]) == 65536
        assert changed(snapshot.disks["r"]) == len(DISKS["r"])
        assert pulled(snapshot, before) == content_of(daemon)


@pytest.mark.parametrize("was_stored", [False, True], ids=["never-stored", "stored-once"])
def test_after_a_crash_of_qemu_no_bitmap_is_believed(
    daemon: StorageDaemon, was_stored: bool
) -> None:
    qemu = source(daemon)
    before = backed_up(qemu, 0)
    if was_stored:
        daemon.stop()
        daemon.start()
    daemon.stop(kill=True)
    daemon.start()
    daemon.write("q", MIB, b"x")
    with opened(qemu, Request(name(1), revision(0, before))) as snapshot:
        assert ("inconsistent" if was_stored else "gone") in snapshot.full_read_reasons["q"]
        assert changed(snapshot.disks["q"]) == len(DISKS["q"])
        before = pulled(snapshot)
        snapshot.keep_checkpoint()
    assert before == content_of(daemon)
    daemon.write("r", MIB, b"x")
    expected = content_of(daemon)
    assert backed_up(qemu, 2, before) == expected
    assert ours(daemon) == {bitmap(2)}


def test_a_bitmap_that_was_switched_off_is_not_believed(daemon: StorageDaemon) -> None:
    qemu = source(daemon)
    before = backed_up(qemu, 0)
    daemon.ask("block-dirty-bitmap-disable", node="q", name=bitmap(0))
    daemon.ask("block-dirty-bitmap-remove", node="r", name=bitmap(0))
    with opened(qemu, Request(name(1), revision(0, before))) as snapshot:
        assert "switched off" in snapshot.full_read_reasons["q"]
        assert "is gone" in snapshot.full_read_reasons["r"]
        assert pulled(snapshot) == DISKS


def test_a_disk_of_another_size_than_the_parents_is_read_in_whole(daemon: StorageDaemon) -> None:
    qemu = source(daemon)
    before = backed_up(qemu, 0)
    before["q"] = before["q"][:-512]
    with opened(qemu, Request(name(1), revision(0, before))) as snapshot:
        assert "size" in snapshot.full_read_reasons["q"]
        assert changed(snapshot.disks["q"]) == len(DISKS["q"])


def test_a_disk_that_the_parent_has_not_is_read_in_whole_without_a_word(
    daemon: StorageDaemon,
) -> None:
    qemu = source(daemon)
    backed_up(qemu, 0)
    with opened(qemu, Request(name(1), revision(0, {"q": DISKS["q"]}))) as snapshot:
        assert snapshot.full_read_reasons == {}
        assert [changed(image) for image in snapshot.disks.values()] == [0, len(DISKS["r"])]


def write_and_fail(daemon: StorageDaemon) -> None:
    daemon.write("q", MIB, b"two")
    raise KeyboardInterrupt


def test_a_failed_backup_leaves_the_parents_bitmap_as_it_was(daemon: StorageDaemon) -> None:
    qemu = source(daemon)
    before = backed_up(qemu, 0)
    daemon.write("q", 0, b"one")
    request = Request(name(1), revision(0, before))
    with pytest.raises(KeyboardInterrupt), opened(qemu, request):
        write_and_fail(daemon)
    with opened(qemu, Request(name(2), revision(0, before))) as snapshot:
        assert changed(snapshot.disks["q"]) == 2 * 65536
        assert pulled(snapshot, before) == content_of(daemon)


def test_a_snapshot_to_heal_from_leaves_the_newest_revisions_bitmap(
    daemon: StorageDaemon,
) -> None:
    qemu = source(daemon)
    before = backed_up(qemu, 1)
    with opened(qemu, Request(name(7))) as snapshot:
        assert pulled(snapshot) == before
    scribble(daemon, random.Random(3))
    assert backed_up(qemu, 2, before) == content_of(daemon)


def test_a_job_that_somebody_cancels_fails_the_backup(daemon: StorageDaemon) -> None:
    """What is read afterwards is the disk as it is now, and nothing else would tell."""
    qemu = source(daemon)
    with opened(qemu, Request(name(0))) as snapshot:
        [job, _] = daemon.ask("query-block-jobs")
        daemon.ask("block-job-cancel", device=job["device"], force=True)
        with pytest.raises(SourceError, match="not of one point in time"):
            snapshot.warnings()
    assert ours(daemon) == set()


def test_too_little_room_for_scratch_images_is_told_before_anything_is_done(
    daemon: StorageDaemon, folder: Path
) -> None:
    with tmpfs(folder / "small", "256k") as small:
        qemu = source(daemon, scratch=str(small))
        with (
            pytest.raises(SourceError, match=rf"{small}: .* are free, .* may be needed") as caught,
            opened(qemu, Request(name(0))),
        ):
            pytest.fail("there is no room")
        assert "scratch" in caught.value.hint
        assert not any(small.iterdir())
    assert ours(daemon) == set()


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_scratch_folder_that_is_none_is_told(daemon: StorageDaemon, kind: str) -> None:
    place = daemon.folder / "none"
    if kind == "file":
        place.touch()
    with (
        pytest.raises(SourceError, match=str(place)),
        opened(source(daemon, scratch=str(place)), Request(name(0))),
    ):
        pytest.fail("there is nowhere to save anything")
    assert ours(daemon) == set()


def test_what_somebody_else_put_into_the_scratch_folder_is_left_alone_however_deep(
    daemon: StorageDaemon, folder: Path
) -> None:
    """Its name is no secret before the backup; the rest of the name of a real one is random."""
    qemu = source(daemon)
    theirs = folder / "scratch" / f"{qemu._objects.prefix}theirs"
    theirs.mkdir()
    nested(theirs, 3000)
    os.chown(theirs, 65534, 65534)
    try:
        (folder / "scratch").chmod(0o1777)
        assert backed_up(qemu, 0) == content_of(daemon)
        assert theirs.exists()
        os.chown(theirs, 0, 0)
        qemu.remove_all_except([])
        assert not theirs.exists()
    finally:
        subprocess.run(["rm", "-rf", theirs], check=True)


def test_the_folder_of_a_backup_can_be_passed_but_not_read_or_changed_by_others(
    daemon: StorageDaemon, folder: Path
) -> None:
    before = os.umask(0)
    try:
        with opened(source(daemon), Request(name(0))):
            [ours_alone] = (folder / "scratch").iterdir()
            assert ours_alone.stat().st_mode & 0o777 == 0o711
            assert [path.stat().st_mode & 0o777 for path in ours_alone.iterdir()] == [0o700]
    finally:
        os.umask(before)


def test_room_that_runs_out_fails_writes_but_never_the_snapshot(
    daemon: StorageDaemon, folder: Path
) -> None:
    with tmpfs(folder / "small", "1200k") as small:
        qemu = source(daemon, scratch=str(small))
        with opened(qemu, Request(name(0))) as snapshot:
            with pytest.raises(OSError, match=r"No space left|Input/output error"):
                daemon.write("r", 0, b"x" * 2 * MIB)
            assert pulled(snapshot) == DISKS
        daemon.write("r", 0, b"x" * 2 * MIB)
        assert not any(small.iterdir())


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_vm_that_is_off_is_read_from_its_images(daemon: StorageDaemon) -> None:
    images = {
        "q": str(daemon.image("q")),
        "r": {"path": str(daemon.image("r")), "format": "raw"},
    }
    qemu = source(daemon, images=images)
    before = backed_up(qemu, 0)
    daemon.stop()
    for _ in ("no socket", "nobody listens"):
        with opened(qemu, Request(name(1), revision(0, before))) as snapshot:
            assert set(snapshot.full_read_reasons) == {"q", "r"}
            assert pulled(snapshot) == DISKS
            snapshot.keep_checkpoint()
        qemu.remove_all_except([name(1)])
        daemon.start()
        daemon.stop(kill=True)
        # The door of a VM that lost its power stays, with nobody behind it.
        subprocess.run([sys.executable, "-c", BIND, daemon.socket], check=True)


BIND = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"


def test_a_vm_that_is_off_and_has_no_images_is_told_by_its_socket(tmp_path: Path) -> None:
    qemu = QemuSource(qmp=str(tmp_path / "qmp"), scratch=str(tmp_path))
    with (
        pytest.raises(SourceError, match=f"{tmp_path}/qmp: the VM is off") as caught,
        opened(qemu, Request(name(0))),
    ):
        pytest.fail("there is nothing")
    assert "images" in caught.value.hint
    qemu.remove_all_except([])


def test_an_error_of_qemus_names_its_socket_the_object_and_what_it_said(
    daemon: StorageDaemon,
) -> None:
    daemon.ask("block-dirty-bitmap-add", node="q", name=bitmap(0))
    with (
        pytest.raises(SourceError) as caught,
        opened(source(daemon), Request(name(0))),
    ):
        pytest.fail("it is there already")
    assert str(daemon.socket) in caught.value.message
    assert f"Bitmap already exists: {bitmap(0)}" in caught.value.message


@pytest.mark.parametrize(
    ("disks", "exclude", "expected"),
    [
        pytest.param({"vda": "q", "vdb": "r"}, [], {"vda", "vdb"}, id="all"),
        pytest.param({"vda": "q"}, [], {"vda"}, id="one"),
        pytest.param({"vda": "q", "vdb": "r"}, ["vdb"], {"vda"}, id="but-one"),
        pytest.param(["r"], [], {"r"}, id="by-its-node"),
        pytest.param(["q", "r"], ["q"], {"r"}, id="by-its-node-but-one"),
    ],
)
def test_disks_are_taken_and_left_by_name(
    daemon: StorageDaemon, disks: object, exclude: list[str], expected: set[str]
) -> None:
    with opened(source(daemon, disks=disks, exclude=exclude), Request(name(0))) as snapshot:
        assert set(snapshot.disks) == expected


@pytest.mark.parametrize(
    ("disks", "exclude", "message"),
    [
        pytest.param({"vda": "sda"}, [], "no disk 'sda'", id="unknown"),
        pytest.param({"vda": "q"}, ["vda"], "no disk to back up", id="none-left"),
        pytest.param({}, [], "no disk to back up", id="no-guest"),
    ],
)
def test_a_disk_that_is_not_there_is_told(
    daemon: StorageDaemon, disks: object, exclude: list[str], message: str
) -> None:
    with (
        pytest.raises(SourceError, match=message),
        opened(source(daemon, disks=disks, exclude=exclude), Request(name(0))),
    ):
        pytest.fail("there is none")
    assert ours(daemon) == set()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="no-socket"),
        pytest.param({"qmp": "relative"}, id="relative"),
        pytest.param({"qmp": "/q", "disks": {"../x": "q"}}, id="bad-name"),
        pytest.param({"qmp": "/q", "timeout": "soon"}, id="bad-time"),
        pytest.param({"qmp": "/q", "images": {"vda": "relative.qcow2"}}, id="bad-image"),
        pytest.param({"qmp": "/q", "monitor": "/m"}, id="unknown"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        QemuSource(**settings)
