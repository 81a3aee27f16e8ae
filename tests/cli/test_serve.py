"""backy serve: what the tools of others read over NBD is what was backed up."""

import grp
import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.runner import MIB, SMALL, Argument, Backy, Running, image, wait_for
from tests.lab.needs import absent, need
from tests.lab.ports import free_port
from tests.nbd.servers import certificates, content_of, map_of, nbdkit, short_folder, unix_server

KIB64 = 64 * 1024
LIMIT_KIB = 200 * 1024


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs, and the URIs that it printed."""

    running: Running
    uris: Sequence[str]

    @property
    def uri(self) -> str:
        (uri,) = self.uris
        return uri

    def end(self) -> str:
        """Stop it; it has to end well. Gives what it said on stderr."""
        self.running.signal(signal.SIGTERM)
        result = self.running.end()
        assert result.code == 0, result
        return result.err


@contextmanager
def serving(backy: Backy, *arguments: Argument) -> Iterator[Served]:
    """Run `backy serve`, and wait until it listens."""
    with backy.started("serve", *arguments, "--json") as running:
        assert running.process.stdout
        line = running.process.stdout.readline()
        yield Served(running, json.loads(line)["uris"] if line else [])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a short name, for sockets."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def path(folder: Path) -> Path:
    """A path for a socket that does not exist."""
    path = folder / "socket"
    path.unlink(missing_ok=True)
    return path


DISK = random.Random(1).randbytes(5 * MIB) + bytes(20 * MIB) + random.Random(2).randbytes(MIB + 512)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that serves DISK from a chunks repository."""
    need(absent("nbdinfo", "nbdcopy", "qemu-io", "qemu-img", "nbdkit", "fio"))
    place = tmp_path_factory.mktemp("served")
    backy = Backy(place / "b")
    backy.backup("vm1", image(place / "disk.img", DISK))
    with short_folder() as short, serving(backy, "vm1", "--socket", short / "s") as served:
        yield served


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image(tmp_path_factory.mktemp("truth") / "disk.img", DISK)


def ran(*command: Argument) -> str:
    """What a program prints that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def test_nbdcopy_nbddump_and_nbdinfo_read_it(server: Served) -> None:
    assert content_of(server.uri) == DISK
    assert ran("nbddump", "--length=16", server.uri).startswith(f"0000000000: {DISK[:8].hex(' ')}")
    assert map_of(server.uri) == [
        (0, 5 * MIB, 0),
        (5 * MIB, 20 * MIB, 3),
        (25 * MIB, MIB + 512, 0),
    ]
    everything = ran("nbdinfo", "--list", server.uri)
    assert "is_read_only: true" in everything
    assert "can_multi_conn: true" in everything


def test_qemu_img_and_qemu_io_read_it(server: Served, truth: Path, tmp_path: Path) -> None:
    assert "identical" in ran("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri, truth)
    ran("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, tmp_path / "a.qcow2")
    ran("qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "a.qcow2", truth)
    extents = json.loads(ran("qemu-img", "map", "--output=json", "-f", "raw", server.uri))
    assert [(each["length"], each["zero"]) for each in extents] == [
        (5 * MIB, False),
        (20 * MIB, True),
        (MIB + 512, False),
    ]
    words = ["-c", "read -P 0 5M 20M", "-c", "read 512 1000", "-c", f"read {25 * MIB} {MIB + 512}"]
    assert "verification failed" not in ran("qemu-io", "-r", "-f", "raw", *words, server.uri)


def test_nbdkit_passes_it_on(server: Served) -> None:
    with unix_server(*nbdkit("nbd", f"uri={server.uri}")) as uri:
        assert content_of(uri) == DISK


def test_fio_reads_it_here_and_there(server: Served) -> None:
    words = "--name=it --ioengine=nbd --rw=randread --bs=4k --iodepth=16 --size=26m --io_size=8m"
    printed = ran("fio", *words.split(), f"--uri={server.uri}", "--output-format=json")
    said = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert said["jobs"][0]["error"] == 0
    assert said["jobs"][0]["read"]["io_bytes"] == 8 * MIB


def test_nobody_writes_to_it(server: Served, truth: Path) -> None:
    assert (
        subprocess.run(["nbdcopy", truth, server.uri], capture_output=True, check=False).returncode
        != 0
    )


@pytest.fixture(params=["chunks", "images"])
def aged_either(request: pytest.FixtureRequest, aged: Backy, plain: Backy) -> Backy:
    """vm1 has three revisions of SMALL, in blocks of 64 KiB."""
    if request.param == "images":
        source = aged.base.parent / "vm1.img"
        for seed in (1, 2, 3):
            plain.backup("vm1", image(source, SMALL[seed]), "--block-size", "64KiB")
        return plain
    return aged


def test_every_revision_has_a_name_and_latest_is_the_newest(aged_either: Backy, path: Path) -> None:
    with serving(aged_either, "vm1", "--socket", path) as served:
        ids = aged_either.revisions("vm1")
        assert served.uris == [f"nbd+unix:///vm1/{ids[-1]}/vda?socket={path}"]
        for seed, name in [(1, ids[0]), (2, ids[1]), (3, ids[2]), (3, "latest")]:
            uri = f"nbd+unix:///vm1/{name}/vda?socket={path}"
            assert content_of(uri) == SMALL[seed]
        listed = ran("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={path}")
        names = [each["export-name"] for each in json.loads(listed)["exports"]]
        assert sorted(names) == [f"vm1/{each}/vda" for each in ids]
        (old,) = (each for each in ids if content_of(served.uri.replace(ids[2], each)) == SMALL[1])
        aged_either.backup("vm1", image(aged_either.base.parent / "vm1.img", SMALL[1]))
        assert content_of(f"nbd+unix:///vm1/latest/vda?socket={path}") == SMALL[1]
        assert served.end() == ""
    assert not path.exists()
    assert old == ids[0]


def test_a_revision_may_be_named_in_every_way(two_disks: Backy, path: Path) -> None:
    [first, *_] = two_disks.revisions("vm1")
    two_disks.ok("tag", "vm1", "+manual:good", "-r", first)
    with serving(two_disks, "vm1@tag:manual:good", "--socket", path) as served:
        assert all(f"/vm1/{first}/" in uri for uri in served.uris)


def test_only_what_was_named_is_served(two_disks: Backy, path: Path) -> None:
    two_disks.ok("backup", "vm1")
    first, second = two_disks.revisions("vm1")
    with serving(two_disks, "vm1@first", "--socket", path) as served:
        assert [re.findall(r"///(.*)\?", uri) for uri in served.uris] == [
            [f"vm1/{first}/vda"],
            [f"vm1/{first}/vdb"],
        ]
        assert [content_of(uri) for uri in served.uris] == [SMALL[1], SMALL[2]]
        for name in (f"vm1/{second}/vda", "vm1/latest/vda", f"vm1/{first}/vdc", "vm1", "", "/"):
            asked = ["nbdinfo", f"nbd+unix:///{name}?socket={path}"]
            assert subprocess.run(asked, capture_output=True, check=False).returncode == 1


def test_a_client_sees_what_changed_since_another_revision(aged_either: Backy, path: Path) -> None:
    changed = bytearray(SMALL[3])
    changed[KIB64 + 5] ^= 1
    aged_either.backup("vm1", image(aged_either.base.parent / "vm1.img", bytes(changed)))
    ids = aged_either.revisions("vm1")
    with serving(aged_either, "vm1", "--socket", path) as served:
        found = map_of(served.uri, f"backy:changed-since:{ids[2]}")
        assert found == [(0, KIB64, 0), (KIB64, KIB64, 1), (2 * KIB64, 200_000 - 2 * KIB64, 0)]
        assert map_of(served.uri, f"backy:changed-since:{ids[0]}") == [(0, 200_000, 1)]
        asked = ["nbdinfo", "--map=backy:changed-since:nosuch", served.uri]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert "server does not support metadata context" in done.stderr
        listed = ran("nbdinfo", served.uri)
        assert f"backy:changed-since:{ids[0]}" in listed


def test_a_damaged_block_is_healed(aged_either: Backy, path: Path) -> None:
    (newest,) = aged_either.revisions("vm1")[-1:]
    if aged_either.store == "chunks":
        aged_either.chunk("vm1", newest, 1).write_bytes(b"damaged")
    else:
        with (aged_either.base / "vm1" / "revisions" / newest / "vda.img").open("r+b") as file:
            os.pwrite(file.fileno(), b"damaged", KIB64)
    with serving(aged_either, "vm1", "--socket", path) as served:
        copied = subprocess.run(["nbdcopy", served.uri, "-"], capture_output=True, check=False)
        said = served.end()
    assert f"vm1: {newest} vda: bytes {KIB64} to {2 * KIB64} were damaged; a good copy" in said
    assert copied.stdout == SMALL[3]
    assert aged_either.content("vm1") == SMALL[3]


def test_a_lost_block_is_an_error_that_the_log_names_and_the_rest_is_read(
    backy: Backy, tmp_path: Path, path: Path
) -> None:
    disk = image(tmp_path / "vm1.img", SMALL[1])
    newest = backy.backup("vm1", disk, "--block-size", "64KiB")
    backy.chunk("vm1", newest, 1).unlink()
    disk.unlink()
    with serving(backy, "vm1", "--socket", path) as served:
        for _ in range(2):
            assert "Input/output error" in qemu_io(served.uri, "read 64k 64k")
        for part in ("0 64k", "128k 67k"):
            assert "error" not in qemu_io(served.uri, f"read {part}")
        said = served.end()
    assert said.count(f"vm1: {newest} vda: block 1 (byte {KIB64})") == 1  # for all who try again
    assert len(backy.ok("reports", "--json").record()["reports"]) == 1


def test_a_client_that_wants_a_lost_block_again_and_again_takes_no_more_memory(
    backy: Backy, tmp_path: Path, path: Path
) -> None:
    disk = image(tmp_path / "vm1.img", random.Random(1).randbytes(16 * MIB))
    revision = backy.backup("vm1", disk, "--block-size", "16MiB")
    with backy.chunk("vm1", revision, 0).open("r+b") as chunk:
        os.pwrite(chunk.fileno(), b"damaged", 8 * MIB)
    disk.unlink()
    with serving(backy, "vm1", "--socket", path) as served:
        said = qemu_io(served.uri, *["read 0 4k"] * 60)
        assert said.count("Input/output error") == 60
        assert peak_kib(served) < LIMIT_KIB
        served.end()


def qemu_io(uri: str, *commands: str) -> str:
    """What it says of commands that may fail."""
    words = ["qemu-io", "-r", "-f", "raw", *(f"-c{command}" for command in commands), uri]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_revision_that_was_named_cannot_be_purged_and_others_can(aged: Backy, path: Path) -> None:
    first, second, _ = aged.revisions("vm1")
    with serving(aged, "vm1@first", "vm1", "--socket", path) as served:
        assert content_of(f"nbd+unix:///vm1/{second}/vda?socket={path}") == SMALL[2]
        aged.ok("remove", "vm1", "-r", f"{first}..{second}")
        aged.run("purge", "vm1")
        left = {each.name for each in (aged.base / "vm1" / "trash").glob("*/*")}
        assert left == {first}
        served.end()
    aged.ok("purge", "vm1")
    assert not list((aged.base / "vm1" / "trash").glob("*/*"))


def test_a_revision_is_not_purged_while_a_client_reads_it(aged: Backy, path: Path) -> None:
    first, *_ = aged.revisions("vm1")
    name = f"vm1/{first}/vda"
    with serving(aged, "vm1", "--socket", path) as served:
        reader = ["qemu-io", "-r", "-f", "raw", f"nbd+unix:///{name}?socket={path}"]
        with subprocess.Popen(
            reader, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdin
            assert client.stdout
            client.stdin.write("read 0 512\n")
            client.stdin.flush()
            assert "512" in client.stdout.readline()
            aged.ok("remove", "vm1", "-r", first)
            aged.run("purge", "vm1")
            client.communicate("read 64k 64k\nquit\n")
            assert client.returncode == 0
        wait_for(lambda: purged(aged), "nobody reads it any more")
        served.end()


def purged(backy: Backy) -> bool:
    backy.run("purge", "vm1")
    return not list((backy.base / "vm1" / "trash").glob("*/*"))


def test_with_tls_only_clients_with_a_certificate_read(aged: Backy, tmp_path: Path) -> None:
    keys = certificates(tmp_path / "keys")
    (without := tmp_path / "without").mkdir()
    shutil.copy(keys / "ca-cert.pem", without)
    strange = tmp_path / "strange"
    shutil.copytree(keys, strange)
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=strange"
    ran("openssl", *make.split(), "-keyout", strange / "client-key.pem", "-out", strange / "c.pem")
    shutil.copy(strange / "c.pem", strange / "client-cert.pem")
    port = free_port()
    listen: list[Argument] = ["--listen", f"127.0.0.1:{port}", "--tls-certificates", keys]
    with serving(aged, "vm1", *listen) as served:
        query = "?tls-certificates={}&tls-hostname=localhost"
        assert served.uri.startswith(f"nbds://127.0.0.1:{port}/vm1/")
        assert content_of(served.uri + query.format(keys)) == SMALL[3]
        for uri in (
            served.uri + query.format(without),
            served.uri + query.format(strange),
            served.uri.replace("nbds:", "nbd:"),
        ):
            assert (
                subprocess.run(
                    ["nbdcopy", uri, "null:"], capture_output=True, check=False
                ).returncode
                == 1
            )
        assert "a client was lost" in served.end()


def test_the_socket_is_for_its_owner_or_also_for_a_group(aged: Backy, path: Path) -> None:
    group = grp.getgrnam("daemon")
    for more, mode, owner in ([], 0o600, os.getegid()), (["daemon"], 0o660, group.gr_gid):
        options = [word for name in more for word in ("--socket-group", name)]
        with serving(aged, "vm1", "--socket", path, *options) as served:
            status = path.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode, owner)
            served.end()


def test_a_socket_that_a_killed_server_left_is_replaced_and_one_in_use_is_not(
    aged: Backy, path: Path
) -> None:
    with serving(aged, "vm1", "--socket", path) as served:
        served.running.signal(signal.SIGKILL)
        served.running.end()
    assert path.is_socket()
    with serving(aged, "vm1", "--socket", path) as served:
        assert "another server" in aged.refuses(3, "serve", "vm1", "--socket", path).message
        assert content_of(served.uri) == SMALL[3]


def test_a_file_in_the_place_of_the_socket_stays(aged: Backy, path: Path) -> None:
    path.write_text("mine")
    aged.refuses(3, "serve", "vm1", "--socket", path)
    assert path.read_text() == "mine"
    path.unlink()


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        pytest.param(2, [], id="nowhere"),
        pytest.param(2, ["--socket", "x", "--listen", "127.0.0.1:1"], id="two-places"),
        pytest.param(2, ["--listen", "0.0.0.0:10809"], id="everybody-without-tls"),
        pytest.param(2, ["--listen", "127.0.0.1:1", "--socket-group", "daemon"], id="no-socket"),
        pytest.param(2, ["--listen", "localhost"], id="no-port"),
        pytest.param(2, ["--socket", "x", "--socket-group", "nosuch"], id="no-group"),
        pytest.param(3, ["--socket", "x" * 200], id="long-path"),
        pytest.param(3, ["--socket", "x", "--tls-certificates", "/nowhere"], id="no-certificates"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused(
    aged: Backy, code: int, arguments: list[str]
) -> None:
    assert aged.refuses(code, "serve", "vm1", *arguments).hint


def test_a_server_ends_while_clients_are_connected(aged: Backy, path: Path) -> None:
    with serving(aged, "vm1", "--socket", path) as served:
        idle = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for each in idle:
            each.connect(str(path))
        served.end()
        for each in idle:
            each.close()


def test_32_clients_at_once_take_at_most_200_mib(backy: Backy, tmp_path: Path, path: Path) -> None:
    """Each reads a disk of its own, of which nothing can be compressed."""
    content = random.Random(1).randbytes(8 * MIB)
    backy.backup("vm0", image(tmp_path / "vm.img", content))
    jobs = [f"vm{number}" for number in range(32)]
    for job in jobs[1:]:
        shutil.copytree(backy.base / "vm0", backy.base / job)
    with serving(backy, *jobs, "--socket", path) as served:
        with ThreadPoolExecutor(32) as pool:
            found = list(pool.map(content_of, served.uris))
        assert all(each == content for each in found)
        assert len(found) == 32
        assert peak_kib(served) < LIMIT_KIB
        served.end()


def peak_kib(served: Served) -> int:
    """The most memory that a server has taken."""
    status = Path(f"/proc/{served.running.process.pid}/status").read_text()
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(peak)


def test_systemd_hears_that_it_is_ready(aged: Backy, path: Path, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(folder / "ear"))
        ear.settimeout(60)
        env = {"NOTIFY_SOCKET": str(folder / "ear")}
        with aged.started("serve", "vm1", "--socket", path, env=env) as running:
            assert ear.recv(100) == b"READY=1"
            running.signal(signal.SIGINT)
            assert running.end().code == 0


def test_a_disk_whose_index_is_lost_is_named_and_the_others_are_served(
    two_disks: Backy, path: Path
) -> None:
    [revision] = two_disks.revisions("vm1")
    two_disks.lose_index("vm1", revision, "vda")
    with serving(two_disks, "vm1", "--socket", path) as served:
        for uri, code in zip(served.uris, (1, 0), strict=True):
            done = subprocess.run(["nbdcopy", uri, "null:"], capture_output=True, check=False)
            assert done.returncode == code
        assert f"vm1/{revision}/vda cannot be opened: " in served.end()
