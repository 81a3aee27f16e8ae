"""A qemu-nbd child serves what it was told to, in private, and never outlives us."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest

from backy.clients.qemu_nbd import serve
from backy.errors import SourceError
from backy.model.extent import Kind
from tests.cli.runner import wait_for
from tests.conformance.image import read
from tests.memory_source import sample
from tests.nbd.servers import nbdkit, unix_server
from tests.programs import MARK, alive, marked, wait_for_none

MIB = 1024**2
CONTENT = sample(3 * MIB)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the private folders are made, and nothing else is."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What our children have in their environment."""
    with marked(str(tmp_path)) as text:
        monkeypatch.setenv(MARK, text)
        yield text


def qcow2(path: Path, content: bytes = CONTENT) -> Path:
    """An image that has `content`."""
    raw = path.with_suffix(".input")
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    raw.unlink()
    return path


def others(mark: str) -> list[int]:
    """The children that run qemu-nbd."""
    found = []
    for pid in alive(mark):
        with suppress(OSError):  # it has ended meanwhile
            if "qemu-nbd" in Path(f"/proc/{pid}/comm").read_text():
                found.append(pid)
    return found


def test_what_qemu_opens_is_an_image(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "vm1.qcow2")
    with serve(["--format=qcow2", str(path)], "vm1") as image:
        assert image.size == len(CONTENT)
        assert read(image, 0, image.size) == CONTENT
        assert Kind.ZERO in {extent.kind for extent in image.extents()}


def test_several_threads_read_at_once(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "vm1.qcow2")
    found: list[bytes] = []
    with serve(["--format=qcow2", str(path)], "vm1") as image:
        threads = [
            Thread(target=lambda: found.append(read(image, 0, image.size))) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [CONTENT] * 16


def test_nobody_else_can_come_near_the_socket(tmp_path: Path, folder: Path) -> None:
    path = qcow2(tmp_path / "vm1.qcow2")
    before = os.umask(0)
    try:
        with serve(["--format=qcow2", str(path)], "vm1"):
            [private] = folder.iterdir()
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
            assert private.stat().st_uid == os.geteuid()
    finally:
        os.umask(before)


def test_nothing_can_be_written_to_it(tmp_path: Path, folder: Path) -> None:
    path = qcow2(tmp_path / "vm1.qcow2")
    with serve(["--format=qcow2", str(path)], "vm1"):
        [private] = folder.iterdir()
        uri = f"nbd+unix:///?socket={private}/socket"
        said = subprocess.run(
            ["nbdinfo", "--json", uri], check=True, capture_output=True, text=True
        ).stdout
    assert json.loads(said)["exports"][0]["is_read_only"] is True


def test_nothing_is_left_afterwards(tmp_path: Path, folder: Path, mark: str) -> None:
    path = qcow2(tmp_path / "vm1.qcow2")
    with serve(["--format=qcow2", str(path)], "vm1"):
        assert others(mark)
    assert others(mark) == []
    assert list(folder.iterdir()) == []


def test_nothing_is_left_after_an_exception(tmp_path: Path, folder: Path, mark: str) -> None:
    path = qcow2(tmp_path / "vm1.qcow2")
    with pytest.raises(KeyboardInterrupt), serve(["--format=qcow2", str(path)], "vm1"):
        raise KeyboardInterrupt
    assert others(mark) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_qemu_nbd_dies_with_us(tmp_path: Path, mark: str, number: signal.Signals) -> None:
    path = qcow2(tmp_path / "vm1.qcow2")
    code = (
        "import sys, time\n"
        "from backy.clients.qemu_nbd import serve\n"
        "with serve(['--format=qcow2', sys.argv[1]], 'vm1'):\n"
        "    print('open', flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = os.environ | {MARK: mark, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"open\n"
        assert others(mark)
        parent.send_signal(number)
        parent.wait()
        wait_for_none(mark)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--format=qcow2", "/nonexistent/vm1"], "vm1: qemu-nbd: No such file or directory"),
        (["--format=qcow2", "/etc/hostname"], "vm1: qemu-nbd: Image is not in qcow2 format"),
        (["--format=tape", "/etc/hostname"], "vm1: qemu-nbd: Unknown driver 'tape'"),
        (["--nonsense"], "vm1: qemu-nbd: .*--nonsense.*"),
    ],
    ids=["missing", "another-format", "unknown-format", "unknown-option"],
)
def test_what_it_cannot_open_is_said_in_its_words(
    arguments: list[str], expected: str, folder: Path, mark: str
) -> None:
    with pytest.raises(SourceError, match=expected), serve(arguments, "vm1"):
        pytest.fail("it was opened")
    assert others(mark) == []
    assert list(folder.iterdir()) == []


def test_a_message_names_what_is_read_and_not_our_socket(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "vm1.qcow2")
    opened = serve(["--format=qcow2", str(path)], "vm1, disk vda")
    with opened as image, pytest.raises(SourceError, match="vm1, disk vda") as caught:
        image.readinto(image.size, memoryview(bytearray(512)))
    assert "socket" not in caught.value.message


def test_a_child_that_was_killed_is_an_error_at_the_next_read(tmp_path: Path, mark: str) -> None:
    path = qcow2(tmp_path / "vm1.qcow2")
    with serve(["--format=qcow2", str(path)], "vm1") as image:
        for pid in others(mark):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not others(mark), "it has ended")
        with pytest.raises(SourceError, match="vm1"):
            read(image, 0, MIB)


@contextmanager
def ramfs(folder: Path) -> Iterator[Path]:
    """A file system without O_DIRECT."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_file_system_without_direct_reads_can_be_read(tmp_path: Path, folder: Path) -> None:
    with ramfs(tmp_path / "ram") as place:
        path = qcow2(place / "vm1.qcow2")
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(path, os.O_RDONLY | os.O_DIRECT)
        with serve(["--format=qcow2", str(path)], "vm1") as image:
            assert read(image, 0, image.size) == CONTENT
    assert list(folder.iterdir()) == []


def cached(path: Path) -> int:
    """How many bytes of a file the page cache has."""
    said = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", path],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(said.stdout)


def test_the_page_cache_keeps_nothing_of_it(reflink_folder: Path) -> None:
    path = qcow2(reflink_folder / "vm1.qcow2")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached(path) == 0
    with serve(["--format=qcow2", str(path)], "vm1") as image:
        assert read(image, 0, image.size) == CONTENT
    assert cached(path) < 64 * 1024


def test_an_export_that_takes_too_long_to_open_is_an_error(
    tmp_path: Path, folder: Path, mark: str
) -> None:
    """A server that accepts and says nothing holds qemu-nbd up for ever."""
    listener = subprocess.Popen(
        [sys.executable, "-c", SILENT, tmp_path / "silent"], stdout=subprocess.PIPE
    )
    with listener:
        try:
            assert listener.stdout
            listener.stdout.readline()
            uri = f"nbd+unix:///?socket={tmp_path}/silent"
            hangs = serve(["--format=raw", uri], "vm1", timeout_seconds=1)
            with pytest.raises(SourceError, match="vm1: qemu-nbd: it took longer than 1 s"), hangs:
                pytest.fail("it was opened")
        finally:
            listener.kill()
    assert others(mark) == []
    assert list(folder.iterdir()) == []


SILENT = (
    "import socket, sys, time\n"
    "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
    "print(flush=True); c = s.accept(); time.sleep(600)\n"
)


def test_a_persistent_bitmap_tells_what_is_the_same(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "vm1.qcow2", bytes(range(256)) * (4 * MIB // 256))
    subprocess.run(["qemu-img", "bitmap", "--add", path, "backy-1"], check=True)
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", str(path)]
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
    arguments = ["--format=qcow2", str(path)]
    with serve(arguments, "vm1", bitmap="backy-1") as image:
        assert image.tracks_changes
        kinds = [(extent.start, extent.length, extent.kind) for extent in image.extents()]
    assert (MIB, 64 * 1024, Kind.DATA) in kinds
    assert sum(length for _, length, kind in kinds if kind is Kind.SAME) == 4 * MIB - 64 * 1024
    with pytest.raises(SourceError, match="gone"), serve(arguments, "vm1", bitmap="gone"):
        pytest.fail("it was opened")


def test_one_that_is_still_opening_an_image_does_not_outlive_us(tmp_path: Path, mark: str) -> None:
    """It forgets a SIGTERM that comes then, and would keep the image locked for ever."""
    opening = tmp_path / "opening"
    slow = nbdkit("eval", "get_size=echo 1M", f"open=touch {opening}; sleep 2")
    code = """if True:
        import sys
        from backy.clients.qemu_nbd import run_server
        with run_server(["-f", "raw", sys.argv[1]], "disk", timeout_seconds=60):
            raise SystemExit("it has been opened already")
    """
    with unix_server(*slow) as uri, ExitStack() as stack:
        variables = os.environ | {"TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", code, uri]
        child = stack.enter_context(subprocess.Popen(command, env=variables))
        wait_for(opening.exists, "it is opening the image")
        assert others(mark)
        child.kill()
        child.wait()
        wait_for(lambda: not others(mark), "it has ended")
