"""Targets behind a server keep what a Target promises: NBD exports, images of QEMU, Ceph."""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from backy.errors import TargetError, UsageError
from backy.image.copy import copy
from backy.targets import Target, open_target
from backy.units import MiB
from tests.cli.machine import ext4
from tests.conformance.image import read
from tests.conformance.target import BLOCK, OLD, TargetSuite, Trial, restore
from tests.lab.ceph import Cluster
from tests.lab.devices import needs_loop_devices
from tests.memory_source import BytesImage, sample
from tests.nbd.servers import (
    nbdkit,
    qemu_nbd,
    running,
    short_folder,
    storage_daemon,
    unix_server,
)

ODD = pytest.param(2 * MiB + 12_345, id="short-last-block")
SECTORS = pytest.param(2 * MiB + 512, id="whole-sectors")
BEYOND = 64 * 1024  # bytes of an export after the disk


def allocated(path: Path) -> int:
    os.sync()
    return path.stat().st_blocks * 512


def up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class TestExport(TargetSuite):
    """A raw file, exported by qemu-nbd, which takes as many connections as there are threads."""

    last_calls: ClassVar = ["flush"]
    sizes: ClassVar = [ODD, pytest.param(1, id="one-byte")]

    def server(self, path: Path) -> tuple[str | Path, ...]:
        return ("qemu-nbd", "-f", "raw", "--discard=unmap", "--persistent", "--shared=8", path)

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        path = folder / "export"
        path.write_bytes(bytes([OLD]) * (up(size, 4096) + BEYOND))
        with unix_server(*self.server(path)) as uri:
            yield Trial(
                open_target(uri),
                lambda: path.read_bytes()[:size],
                allocated=lambda: allocated(path) - BEYOND,
                is_used=True,
                place=f"nbd:{parse_qs(urlsplit(uri).query)['socket'][0]}/",
            )

    def test_keeps_the_bytes_beyond_the_disk(self, tmp_path: Path) -> None:
        disk = sample(2 * MiB + 12_345)
        with self.open(tmp_path, len(disk)) as trial:
            restore(trial.target, disk)
            rest = (tmp_path / "export").read_bytes()[len(disk) :]
            assert rest == bytes([OLD]) * len(rest)


class TestExportOfPickyServer(TestExport):
    """nbdkit promises nothing to several connections; blocks of 4 KiB, and 64 KiB at once."""

    sizes: ClassVar = [ODD]

    def server(self, path: Path) -> tuple[str | Path, ...]:
        policy = ("blocksize-minimum=4096", "blocksize-maximum=64K", "blocksize-error-policy=error")
        filters = ("--filter=blocksize-policy", "--filter=multi-conn")
        return nbdkit(*filters, "file", path, *policy, "multi-conn-mode=disable")


class TestExportForOneClient(TestExport):
    """This qemu-nbd takes a connection when the one before has ended."""

    sizes: ClassVar = [ODD]

    def server(self, path: Path) -> tuple[str | Path, ...]:
        return ("qemu-nbd", "-f", "raw", "--discard=unmap", "--persistent", "--shared=1", path)


class TestExportThatOnlyTrims(TestExport):
    """nbdkit without write zeroes: what it trims and calls zero needs no zeroes."""

    sizes: ClassVar = [ODD]

    def server(self, path: Path) -> tuple[str | Path, ...]:
        return nbdkit("--filter=nozero", "file", path)


def test_a_server_that_can_neither_zero_nor_trim_gets_zeroes(tmp_path: Path) -> None:
    disk, path = sample(2 * MiB), tmp_path / "export"
    path.write_bytes(bytes([OLD]) * len(disk))
    with unix_server(*nbdkit("split", path)) as uri:
        restore(open_target(uri), disk)
    assert path.read_bytes() == disk


class ImageSuite(TargetSuite):
    """An image in `kind`, which is new."""

    last_calls: ClassVar = ["flush", "sync", "rename", "sync_folder", "sync"]
    sizes: ClassVar = [ODD]
    kind: ClassVar[str]

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        path, empty = folder / f"disk.{self.kind}", folder / "empty"
        self.create(empty, size)
        space = allocated(empty)
        empty.unlink()
        target = open_target(f"{self.kind}:{path}")
        yield Trial(
            target, lambda: self.content(path, size), allocated=lambda: allocated(path) - space
        )

    def create(self, path: Path, size: int) -> None:
        command = ["qemu-img", "create", "-q", "-f", self.kind]
        subprocess.run([*command, path, str(up(size, 512))], check=True)

    def content(self, path: Path, size: int) -> bytes | None:
        if not path.exists():
            return None
        raw = path.with_name("content")
        self.convert(path, raw)
        content = raw.read_bytes()
        raw.unlink()
        assert len(content) == up(size, 512)
        assert content[size:] in {bytes(len(content) - size), bytes([OLD]) * (len(content) - size)}
        return content[:size]

    def convert(self, path: Path, raw: Path) -> None:
        command = ["qemu-img", "convert", "-f", self.kind, "-O", "raw"]
        subprocess.run([*command, path, raw], check=True)


class TestNewQcow2(ImageSuite):
    kind = "qcow2"
    sizes: ClassVar = [ODD, pytest.param(1, id="one-byte")]

    def test_is_the_same_for_qemu_and_only_for_its_owner(self, tmp_path: Path) -> None:
        compare_images(self.kind, tmp_path)


class TestOldQcow2(ImageSuite):
    kind = "qcow2"
    last_calls: ClassVar = ["flush"]

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        with super().open(folder, size) as trial:
            path = folder / f"disk.{self.kind}"
            self.create(path, size)
            fill = f"write -q -P {OLD} 0 {up(size, 512)}"
            subprocess.run(["qemu-io", "-f", self.kind, "-c", fill, path], check=True)
            trial.is_used = True
            before = trial.allocated
            assert before
            trial.allocated = lambda: before() - 2 * BLOCK  # its tables stay
            yield trial


class TestNewVmdk(ImageSuite):
    kind = "vmdk"

    def test_is_the_same_for_qemu_and_only_for_its_owner(self, tmp_path: Path) -> None:
        compare_images(self.kind, tmp_path)
        assert b'SPARSE "disk.vmdk"' in (tmp_path / "disk.vmdk").read_bytes()


class TestNewVhdx(ImageSuite):
    kind = "vhdx"

    def test_is_the_same_for_qemu_and_only_for_its_owner(self, tmp_path: Path) -> None:
        compare_images(self.kind, tmp_path)


def test_an_encrypted_image_is_made_and_overwritten(tmp_path: Path) -> None:
    """It cannot have holes, and each opening takes two seconds of a processor."""
    key, path, raw = (tmp_path / name for name in ("key", "vm1.luks", "raw"))
    key.write_bytes(b"secret")
    target = open_target(f"luks:{path}?key-file={key}")
    for content in (sample(MiB + 512), bytes(MiB + 512)):
        for _ in range(9):
            try:
                restore(target, content)
            except TargetError as error:
                # QEMU gives up if its clock of processor time is coarse.
                if "Unable to get accurate CPU usage" not in error.message:
                    raise
            else:
                break
        opened = f"driver=luks,key-secret=key,file.filename={path}"
        words = ["qemu-img", "convert", "--object", f"secret,id=key,file={key}", "--image-opts"]
        subprocess.run([*words, opened, "-O", "raw", raw], check=True)
        assert raw.read_bytes() == content
        assert not any(content) or content[:4096] not in path.read_bytes()


def compare_images(kind: str, folder: Path) -> None:
    """Restore to a new image, and have QEMU compare and check it."""
    disk, raw, path = sample(3 * MiB), folder / "disk.raw", folder / f"disk.{kind}"
    raw.write_bytes(disk)
    restore(open_target(f"{kind}:{path}"), disk)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", kind, raw, path], check=True)
    subprocess.run(["qemu-img", "check", "-f", kind, path], check=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert {each.name for each in folder.iterdir()} == {path.name, raw.name}


class RbdSuite(TargetSuite):
    """An image of Ceph."""

    last_calls: ClassVar = ["flush"]
    sizes: ClassVar = [ODD]

    @pytest.fixture(autouse=True)
    def _cluster(self, ceph_pools: Cluster) -> None:
        self.cluster = ceph_pools

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        image = f"rbd/customers/{self.name(folder, size)}"
        target = open_target(f"rbd:{image}?conf={self.cluster.conf}&data-pool=data")
        try:
            yield Trial(
                target,
                lambda: self.content(image, size),
                allocated=lambda: self.allocated(image),
                place=f"rbd:{image}",
            )
        finally:
            for left in (image, self.partial(image)):
                if self.exists(left):
                    self.cluster.rbd("rm", "--no-progress", left)

    def name(self, folder: Path, size: int) -> str:
        return f"vm{size}"

    def partial(self, image: str) -> str:
        above, _, name = image.rpartition("/")
        return f"{above}/.{name}.partial"

    def exists(self, image: str) -> bool:
        above, _, name = image.rpartition("/")
        return name in self.cluster.rbd("ls", above).decode().split()

    def content(self, image: str, size: int) -> bytes | None:
        return self.cluster.export(image)[:size] if self.exists(image) else None

    def allocated(self, image: str) -> int:
        return sum(each["length"] for each in self.cluster.json("diff", image))


class TestNewRbd(RbdSuite):
    pass


class TestOldRbd(RbdSuite):
    sizes: ClassVar = [pytest.param(8 * MiB + 512, id="whole-objects")]

    @contextmanager
    def open(self, folder: Path, size: int) -> Iterator[Trial]:
        image = self.cluster.create(f"rbd/customers/vm{size}", up(size, 512))
        self.cluster.write(image, f"write -q -P {OLD} 0 {up(size, 512)}")
        with super().open(folder, size) as trial:
            trial.is_used = True
            yield trial


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx"])
def test_a_new_image_goes_to_where_a_link_leads(tmp_path: Path, kind: str) -> None:
    disk, link, place = sample(MiB), tmp_path / "link", tmp_path / "folder" / "disk"
    place.parent.mkdir()
    place.touch()
    link.symlink_to("folder/disk")
    restore(open_target(f"{kind}:{link}"), disk)
    assert link.is_symlink()
    assert [each.name for each in place.parent.iterdir()] == ["disk"]
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", kind, "-O", "raw", link, raw], check=True)
    assert raw.read_bytes() == disk


@pytest.mark.parametrize("kind", ["file", "qcow2", "vmdk", "vhdx"])
def test_what_appears_under_its_name_meanwhile_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk"
    target = open_target(f"{kind}:{path}")

    def filled() -> None:
        with target.open(MiB, BLOCK) as draft:
            copy(BytesImage(sample(MiB)), draft)
            path.write_bytes(b"somebody's")

    with pytest.raises(TargetError, match=f"{path} has appeared meanwhile"):
        filled()
    assert path.read_bytes() == b"somebody's"
    path.unlink()
    restore(target, sample(MiB))
    assert path.exists()


def test_an_rbd_image_that_appears_meanwhile_stays(ceph: Cluster) -> None:
    target = open_target(f"rbd:rbd/appears?conf={ceph.conf}")

    def filled() -> None:
        with target.open(MiB, BLOCK) as draft:
            copy(BytesImage(sample(MiB)), draft)
            ceph.create("rbd/appears", MiB)

    with pytest.raises(TargetError, match="File exists"):
        filled()
    assert ceph.export("rbd/appears") == bytes(MiB)


@pytest.mark.parametrize("name", ["a\nb", "a\x1bb", os.fsdecode(b"a\xffb")])
@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx", "luks"])
def test_a_path_that_qemu_cannot_be_told_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    for place in (f"{tmp_path}/{name}?key-file=key", f"{tmp_path}/x?key-file={name}"):
        with pytest.raises(UsageError, match="is not printable"):
            open_target(f"{kind}:{place}")


@needs_loop_devices
def test_a_full_file_system_is_named_as_the_reason(tmp_path: Path) -> None:
    """QEMU itself only says: writing to file failed."""
    with (
        ext4(tmp_path, 16 * MiB) as folder,
        pytest.raises(TargetError, match="No space left on device"),
    ):
        restore(open_target(f"qcow2:{folder}/disk.qcow2"), sample(20 * MiB))


@pytest.mark.parametrize("server", ["qemu-nbd", "nbdkit"])
def test_a_server_that_dies_ends_the_restore_for_good(tmp_path: Path, server: str) -> None:
    disk, path = sample(4 * MiB), tmp_path / "export"
    path.write_bytes(bytes(len(disk)))
    command = {
        "qemu-nbd": ("qemu-nbd", "-f", "raw", "--persistent", "--shared=8"),
        "nbdkit": nbdkit("file"),
    }[server]
    with short_folder() as folder, closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        target = open_target(f"nbd+unix:///?socket={folder}/socket")
        with ExitStack() as stack:
            process = stack.enter_context(running(listener, *command, path))
            with pytest.raises(TargetError, match="a connection was lost earlier"):
                fill_and_lose(
                    target,
                    disk,
                    process,
                    lambda: stack.enter_context(running(listener, *command, path)),
                )
            restore(target, disk)
        assert path.read_bytes() == disk


def fill_and_lose(
    target: Target, disk: bytes, process: "subprocess.Popen[bytes]", again: Callable[[], object]
) -> None:
    """Write half of it, kill the server, and go on as if nothing had happened."""
    with target.open(len(disk), BLOCK) as draft:
        half = len(disk) // 2
        draft.write(0, memoryview(disk)[:half])
        process.kill()
        process.wait()
        with pytest.raises(TargetError, match="writing"):
            draft.write(half, memoryview(disk)[half:])
        again()
        with pytest.raises(TargetError, match="a connection was lost earlier"):
            draft.zero(half, BLOCK)


@pytest.mark.parametrize(
    ("content", "is_used"),
    [
        pytest.param(bytes(4096), False, id="as-qemu-img-create-makes-it"),
        pytest.param(bytes(3 * MiB) + b"x", True, id="a-byte-behind-zeroes"),
        pytest.param(bytes(65 * MiB), True, id="more-zeroes-than-are-read"),
    ],
)
def test_an_export_whose_data_are_all_zero_is_not_used(
    tmp_path: Path, content: bytes, *, is_used: bool
) -> None:
    path = tmp_path / "export"
    path.write_bytes(content)
    os.truncate(path, 66 * MiB)
    with unix_server("qemu-nbd", "-f", "raw", "--persistent", path) as uri:
        target = open_target(uri)
        if not is_used:
            target.refuse_used()
            return
        with pytest.raises(TargetError, match="holds data, or its server cannot tell"):
            target.refuse_used()


def test_an_export_that_can_only_be_read_is_refused_before_anything(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.touch()
    os.truncate(path, MiB)
    with unix_server(*qemu_nbd("-f", "raw", path)) as uri:
        target = open_target(uri)
        target.refuse_used()
        with pytest.raises(TargetError, match="can only be read"):
            target.check(MiB)
        held = target.read_back()
        assert held
        with held as image:
            assert read(image, 0, 512) == bytes(512)


def test_an_export_of_the_bytes_of_an_image_is_not_destroyed(tmp_path: Path) -> None:
    path = tmp_path / "vm1.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    with unix_server("qemu-nbd", "-f", "raw", "--persistent", path) as uri:
        with pytest.raises(TargetError, match="holds a qcow2 image"):
            open_target(uri).refuse_format(lambda: bytes(4096))
        open_target(uri).refuse_format(lambda: b"QFI\xfb")


def test_an_image_that_names_other_files_is_refused(tmp_path: Path) -> None:
    base, path = tmp_path / "base", tmp_path / "vm1.qcow2"
    base.write_bytes(bytes(MiB))
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(path)]
    subprocess.run(create, check=True)
    with pytest.raises(TargetError, match="has some of its data in other files"):
        open_target(f"qcow2:{path}").check(MiB)


def test_an_image_that_a_vm_has_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vm1.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    with storage_daemon(path, "qcow2"), pytest.raises(TargetError, match="lock"):
        open_target(f"qcow2:{path}").check(MiB)


def test_a_new_image_is_continued_after_a_failure(tmp_path: Path) -> None:
    disk, path = sample(2 * MiB), tmp_path / "vm1.qcow2"
    target = open_target(f"qcow2:{path}")

    def stopped() -> None:
        with target.open(len(disk), BLOCK) as draft:
            draft.write(0, memoryview(disk)[:MiB])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not path.exists()
    held = target.read_back()
    assert held
    with held as image:
        assert read(image, 0, MiB) == disk[:MiB]
    restore(target, disk)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_an_rbd_image_that_somebody_watches_is_refused(ceph: Cluster) -> None:
    image = ceph.create("rbd/watched", MiB)
    target = open_target(f"rbd:{image}?conf={ceph.conf}")
    options = f"driver=rbd,pool=rbd,image=watched,conf={ceph.conf}"
    with unix_server("qemu-nbd", "--persistent", "--image-opts", options) as uri:
        subprocess.run(["nbdinfo", "--size", uri], check=True, capture_output=True)
        with pytest.raises(TargetError, match=r"rbd/watched is open: .* watches it"):
            target.check(MiB)


def fill(target: Target, disk: bytes) -> None:
    with target.open(len(disk), BLOCK) as draft:
        copy(BytesImage(disk), draft)


def test_an_rbd_image_that_somebody_opens_after_the_check_is_refused(ceph: Cluster) -> None:
    """Two restores that begin together could both write, and both succeed, otherwise."""
    image = ceph.create("rbd/raced", MiB)
    ceph.write(image, f"write -q -P {OLD} 0 {MiB}")
    one, other = (open_target(f"rbd:{image}?conf={ceph.conf}") for _ in range(2))
    one.check(MiB)
    other.check(MiB)
    with one.open(MiB, BLOCK):
        with pytest.raises(TargetError, match=r"rbd/raced is open: .*, .* watches it"):
            fill(other, sample(MiB))
        assert ceph.export(image) == bytes([OLD]) * MiB
    fill(other, sample(MiB))
    assert ceph.export(image) == sample(MiB)


def test_an_rbd_image_is_made_as_it_was_asked_for(ceph_pools: Cluster) -> None:
    disk, cluster = sample(MiB + 1), ceph_pools
    word = f"rbd:rbd/made@customers?conf={cluster.conf}&data-pool=data&features=layering"
    restore(open_target(word), disk)
    info = cluster.json("info", "rbd/customers/made")
    assert (info["size"], info["data_pool"]) == (MiB + 512, "data")
    assert sorted(info["features"]) == ["data-pool", "layering"]
    cluster.rbd("rm", "--no-progress", "rbd/customers/made")


@pytest.mark.parametrize(
    "word",
    [
        "rbd:image",
        "rbd:a/b/c@d",
        "rbd:pool/image?colour=red",
        "rbd:pool/",
        "luks:/vm1.luks",
        "qcow2:",
        "nbd://host/vm1?colour=red",
        "nbd+unix:///vm1",
    ],
)
def test_what_names_nothing_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        open_target(word)


def test_the_rights_on_the_page_are_enough_for_an_image_of_ceph(ceph_pools: Cluster) -> None:
    page = Path(__file__).parents[2] / "docs" / "targets.md"
    found = re.search(r"mon '([^']*)' osd '([^']*)'", page.read_text())
    assert found
    osd = found[2].replace("POOL", "rbd")
    user = ceph_pools.user(
        "writer", found[1], f"{osd}, {osd.replace('rbd pool=rbd', 'rbd pool=data')}"
    )
    word = f"rbd:rbd/written?conf={ceph_pools.conf}&user={user}&data-pool=data"
    for disk in (sample(MiB), bytes(MiB)):
        restore(open_target(word), disk)
        assert ceph_pools.export("rbd/written") == disk
    with pytest.raises(TargetError, match="Operation not permitted"):
        restore(open_target(word.replace("rbd:rbd/", "rbd:templates/")), sample(MiB))
    ceph_pools.rbd("rm", "--no-progress", "rbd/written")
