"""Exports of qemu-nbd, qemu-storage-daemon and nbdkit are read as nbdcopy, nbdinfo and QEMU do."""

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import pytest

from backy.errors import SourceError
from backy.image.image import Image
from backy.model.extent import Extent, Kind, merge
from backy.nbd.remote_image import NbdImage, open_image
from backy.nbd.uri import parse_uri
from tests.conformance.image import STEP, ImageSuite, read
from tests.lab.handmade import write_sparse
from tests.lab.watchdog import ends
from tests.memory_source import sample
from tests.nbd.servers import (
    Argument,
    certificates,
    content_of,
    map_of,
    nbdkit,
    qemu_nbd,
    running,
    short_folder,
    storage_daemon,
    tcp_server,
    unix_server,
    write,
)

MIB = 1024**2
CONTENT = sample(3 * MIB)


@contextmanager
def image_of(*command: Argument, query: str = "") -> Iterator[NbdImage]:
    with (
        unix_server(*command, query=query) as uri,
        open_image(parse_uri(uri), timeout_seconds=60) as image,
    ):
        yield image


class TestNbdkitFile(ImageSuite):
    options: ClassVar[tuple[Argument, ...]] = ()

    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        path = folder / "disk.img"
        write_sparse(path, content)
        with image_of(*nbdkit(*self.options, "file", path)) as image:
            yield image


class TestNbdkitSimpleReplies(TestNbdkitFile):
    options: ClassVar[tuple[Argument, ...]] = ("--no-sr",)


class TestNbdkitWithoutExtents(TestNbdkitFile):
    options: ClassVar[tuple[Argument, ...]] = ("--filter=noextents",)


class TestNbdkitBlocks(ImageSuite):
    """A server that takes nothing but 4 KiB to 64 KiB, and these at multiples of 4 KiB."""

    sizes: ClassVar = [
        pytest.param(5 * STEP, id="whole-blocks"),
        pytest.param(4 * STEP + 4096 * 3, id="whole-pages"),
        pytest.param(4096, id="one-page"),
    ]

    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        path = folder / "disk.img"
        write_sparse(path, content)
        limits = ("blocksize-minimum=4096", "blocksize-maximum=65536")
        policy = (*limits, "blocksize-error-policy=error")
        with image_of(*nbdkit("--filter=blocksize-policy", "file", path, *policy)) as image:
            yield image


class TestQemuNbd(ImageSuite):
    shared = 8
    sizes: ClassVar = [
        pytest.param(5 * STEP, id="whole-blocks"),
        pytest.param(4 * STEP + 512 * 7, id="whole-sectors"),
    ]

    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        path = folder / "disk.img"
        write_sparse(path, content)
        with image_of(*qemu_nbd("--format=raw", path, shared=self.shared)) as image:
            yield image


class TestQemuNbdForOne(TestQemuNbd):
    """The server would not answer a second connection before the first has ended."""

    shared = 1


class TestQcow2(TestQemuNbd):
    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        path = folder / "disk.img"
        path.write_bytes(content)
        qcow2 = folder / "disk.qcow2"
        convert: list[Argument] = [
            "qemu-img",
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            path,
            qcow2,
        ]
        subprocess.run(convert, check=True)
        with image_of(*qemu_nbd("--format=qcow2", qcow2)) as image:
            yield image


class TestTls(TestQemuNbd):
    """Over TCP, and both sides show a certificate."""

    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        path = folder / "disk.img"
        write_sparse(path, content)
        with (
            tls_server(folder, path) as uri,
            open_image(parse_uri(uri), timeout_seconds=60) as image,
        ):
            yield image


@contextmanager
def tls_server(folder: Path, path: Path) -> Iterator[str]:
    keys = certificates(folder / "keys")
    secrets = f"tls-creds-x509,id=keys,endpoint=server,verify-peer=yes,dir={keys}"
    with tcp_server(
        *qemu_nbd("--object", secrets, "--tls-creds=keys", "--format=raw", path)
    ) as port:
        yield f"nbds://localhost:{port}/?tls-certificates={keys}"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    write_sparse(path, CONTENT)
    return path


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(
            (r"\?tls-certificates=.*", ""), "certificate verify failed", id="unknown-server"
        ),
        pytest.param(
            ("keys$", "keys&tls-hostname=127.0.0.2"), "IP address mismatch", id="another-host"
        ),
        pytest.param(("keys$", "keys&tls-hostname=other"), "Hostname mismatch", id="another-name"),
        pytest.param(("nbds:", "nbd:"), "not permitted before TLS", id="without-tls"),
        pytest.param(("keys$", "nothing"), "No such file", id="no-certificates"),
    ],
)
def test_tls_that_does_not_fit_is_refused(
    disk: Path, tmp_path: Path, change: tuple[str, str], why: str
) -> None:
    with tls_server(tmp_path, disk) as uri:
        changed = re.sub(*change, uri)
        with pytest.raises(SourceError, match=why), open_image(parse_uri(changed)):
            pytest.fail("it was opened")


def test_a_server_that_wants_a_certificate_refuses_who_has_none(disk: Path, tmp_path: Path) -> None:
    with tls_server(tmp_path, disk) as uri:
        (tmp_path / "keys" / "client-cert.pem").unlink()
        with pytest.raises(SourceError, match="nbds://localhost"), open_image(parse_uri(uri)):
            pytest.fail("it was opened")


def test_tls_is_not_given_up_where_the_server_has_none(disk: Path) -> None:
    with unix_server(*qemu_nbd("--format=raw", disk)) as uri:
        address = parse_uri(uri.replace("nbd+", "nbds+"))
        with pytest.raises(SourceError, match="TLS not configured"), open_image(address):
            pytest.fail("it was opened")


def test_tls_works_on_a_unix_socket(disk: Path, tmp_path: Path) -> None:
    keys = certificates(tmp_path / "keys")
    secrets = ("--tls=require", f"--tls-certificates={keys}", "--tls-verify-peer")
    query = f"&tls-certificates={keys}"
    with (
        unix_server(*nbdkit(*secrets, "file", disk), query=query) as uri,
        open_image(parse_uri(uri.replace("nbd+", "nbds+"))) as image,
    ):
        assert read(image, 0, image.size) == CONTENT


@pytest.mark.parametrize("export", ["disk-1", "a b/ä?&#%", "/x"], ids=str)
def test_an_export_is_found_by_its_name(disk: Path, export: str) -> None:
    command = qemu_nbd("--format=raw", f"--export-name={export}", disk)
    with (
        unix_server(*command, export=export) as uri,
        open_image(parse_uri(uri), timeout_seconds=60) as image,
    ):
        assert read(image, 0, image.size) == CONTENT


def test_an_export_that_is_not_there_is_refused_by_name(disk: Path) -> None:
    command = qemu_nbd("--format=raw", "--export-name=disk", disk)
    with (
        unix_server(*command, export="other") as uri,
        pytest.raises(SourceError, match=r"nbd.unix:///other.* export 'other' not present"),
        open_image(parse_uri(uri)),
    ):
        pytest.fail("it was opened")


@pytest.mark.parametrize("uri", ["nbd+unix:///?socket=/nowhere", "nbd://127.0.0.1:1/x"], ids=str)
def test_a_server_that_is_not_there_is_named(uri: str) -> None:
    with pytest.raises(SourceError) as caught, open_image(parse_uri(uri)):
        pytest.fail("it was opened")
    assert caught.value.message.startswith(f"{uri}: opening it: ")
    assert "Is the server still running" in caught.value.hint


def test_a_socket_with_a_long_path_is_refused_by_name(tmp_path: Path) -> None:
    uri = f"nbd+unix:///?socket={tmp_path}/{'x' * 200}"
    with pytest.raises(SourceError, match="AF_UNIX path too long"), open_image(parse_uri(uri)):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    "plugin",
    [
        pytest.param(("sparse-random", "64M", "seed=7", "percent=20"), id="sparse-random"),
        pytest.param(
            ("data", "0x55*3000 @0x100000 1*2097152 @0x2800000 2*100", "size=64M"), id="data"
        ),
        pytest.param(("memory", "64M"), id="empty"),
        pytest.param(("pattern", "9M"), id="no-holes"),
        pytest.param(("memory", str(1 << 62)), id="sparse-4-EiB"),
    ],
)
def test_extents_are_those_that_nbdinfo_finds(plugin: tuple[str, ...]) -> None:
    with (
        unix_server(*nbdkit(*plugin)) as uri,
        open_image(parse_uri(uri), timeout_seconds=60) as image,
    ):
        kinds = [Kind.DATA, Kind.DATA, Kind.ZERO, Kind.ZERO]
        if image.size < 1 << 62:  # of which nbdinfo makes more steps than we have time for
            oracle = (Extent(start, length, kinds[flag]) for start, length, flag in map_of(uri))
            assert list(merge(image.extents())) == list(merge(oracle))
            assert read(image, 0, image.size) == content_of(uri)
        else:
            assert next(image.extents()).kind is Kind.ZERO


def test_extents_of_a_qcow2_are_those_of_qemu(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "3G"], check=True)
    with unix_server("qemu-nbd", "--format=qcow2", path) as uri:
        write(uri, "write -P 1 0 64k", "write -P 2 1023M 3M", "write -z 5M 2M", "write -P 3 2G 9k")
    with (
        unix_server(*qemu_nbd("--format=qcow2", path)) as uri,
        open_image(parse_uri(uri), timeout_seconds=60) as image,
    ):
        oracle = [
            Extent(start, length, Kind.ZERO if flags & 2 else Kind.DATA)
            for start, length, flags in map_of(uri)
        ]
        assert list(merge(image.extents())) == list(merge(oracle))
        assert [each.kind for each in merge(oracle)].count(Kind.DATA) == 3
        assert read(image, 1023 * MIB, 3 * MIB) == b"\2" * (3 * MIB)


@pytest.mark.parametrize("driver", ["qcow2", "raw"])
def test_a_bitmap_tells_what_changed_on_a_disk_in_use(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", driver, path, "64M"], check=True)
    with storage_daemon(path, driver) as daemon:
        write(daemon.uri("guest"), "write -P 1 0 8M", "write -P 2 20M 1M")
        daemon.ask("block-dirty-bitmap-add", node="disk", name="backy-1")
        write(daemon.uri("guest"), "write -P 3 1M 64k", "discard 20M 512k", "write -P 4 63M 1M")
        uri = daemon.export("backup", "backy-1")
        with open_image(parse_uri(uri), bitmap="backy-1") as image:
            assert image.tracks_changes
            changed = [each for each in merge(image.extents()) if each.kind is not Kind.SAME]
            assert changed == [
                Extent(MIB, 65536, Kind.DATA),
                Extent(20 * MIB, MIB // 2, Kind.ZERO),
                Extent(63 * MIB, MIB, Kind.DATA),
            ]
            assert read(image, 0, image.size) == content_of(uri)
        with open_image(parse_uri(uri), bitmap="backy-2") as image:
            assert not image.tracks_changes
            assert Kind.SAME not in {each.kind for each in image.extents()}


def test_a_bitmap_that_qemu_img_made_is_found(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", path, "backy-1"], check=True)
    subprocess.run(["qemu-io", "-c", "write 5M 64k", path], check=True, stdout=subprocess.DEVNULL)
    with (
        unix_server(*qemu_nbd("--format=qcow2", "--bitmap=backy-1", path)) as uri,
        open_image(parse_uri(uri), bitmap="backy-1") as image,
    ):
        changed = [each for each in merge(image.extents()) if each.kind is not Kind.SAME]
        assert changed == [Extent(5 * MIB, 65536, Kind.DATA)]


def test_a_block_that_the_server_cannot_read_is_named_and_the_others_are_read(
    disk: Path, tmp_path: Path
) -> None:
    trigger = tmp_path / "broken"
    options = ("error-pread=EIO", "error-pread-rate=100%", f"error-pread-file={trigger}")
    with image_of(*nbdkit("--filter=error", "file", disk, *options)) as image:
        trigger.touch()
        with pytest.raises(SourceError, match=rf"reading 512 bytes at byte {MIB}: .* error"):
            read(image, MIB, 512)
        trigger.unlink()
        assert read(image, 0, image.size) == CONTENT


def test_extents_that_the_server_cannot_tell_are_an_error(disk: Path) -> None:
    options = ("error-extents=EIO", "error-extents-rate=100%")
    with (
        image_of(*nbdkit("--filter=error", "file", disk, *options)) as image,
        pytest.raises(SourceError, match="asking for the extents at byte 0"),
    ):
        list(image.extents())


def test_a_server_that_hangs_is_given_up_and_not_asked_again(disk: Path) -> None:
    command = nbdkit("--filter=delay", "file", disk, "delay-read=60")
    with unix_server(*command) as uri, open_image(parse_uri(uri), timeout_seconds=1) as image:
        with ends(60), pytest.raises(SourceError, match="timed out"):
            read(image, 0, 512)
        with pytest.raises(SourceError, match="a connection was lost earlier"):
            list(image.extents())


def test_a_server_that_was_started_again_is_not_taken_for_the_first(disk: Path) -> None:
    """It may serve another snapshot: half a disk of one and half of the other is no backup."""
    command = nbdkit("file", disk)
    with short_folder() as folder, closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        with ExitStack() as stack:
            with running(listener, *command):
                address = parse_uri(f"nbd+unix:///?socket={folder}/socket")
                image = stack.enter_context(open_image(address))
                assert read(image, 0, 512) == CONTENT[:512]
            with running(listener, *command):
                for _ in range(3):
                    with pytest.raises(SourceError, match=r"closed|lost|reset|pipe"):
                        read(image, 0, 512)


def test_connections_are_made_on_demand_used_again_and_ended(disk: Path) -> None:
    """As many as threads read at once, and 8 at most."""
    with unix_server(*nbdkit("file", disk, "--filter=delay", "delay-read=200ms")) as uri:
        before = sockets()
        with open_image(parse_uri(uri), timeout_seconds=60) as image:
            assert sockets() == before + 1
            read(image, 0, 512)
            assert sockets() == before + 1
            for count, most in ((3, 3), (20, 8), (2, 8)):
                threads = [
                    threading.Thread(target=read, args=(image, 0, 512)) for _ in range(count)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert sockets() == before + most
        assert sockets() == before


def sockets() -> int:
    """How many this process has open."""
    count = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            count += str(file.readlink()).startswith("socket:")
    return count
