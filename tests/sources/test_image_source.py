"""An image source reads what QEMU reads, is fooled by no content, and never reads what changes."""

import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from backy.errors import ConfigError, SourceError
from backy.model.extent import Kind
from backy.model.revision import Consistency
from backy.sources import Request, Source
from backy.sources.image_file import ImageSource
from backy.targets.formats import format_of
from tests.cli.runner import wait_for
from tests.conformance.image import read
from tests.conformance.source import SourceSuite
from tests.lab.devices import device_of, needs_loop_devices
from tests.memory_source import sample
from tests.snapshots import opened

MIB = 1024**2
CONTENT = sample(3 * MIB)
FORMATS = {
    "qcow": [], "qcow2": [], "qed": [], "raw": [], "vdi": [], "vhdx": [],
    "vmdk": ["-o", "subformat=monolithicSparse"], "vpc": ["-o", "force_size=on"],
}  # fmt: skip
REQUEST = Request("20261123T004938Z-x7k2")


def convert(path: Path, image_format: str, *options: str | Path, content: bytes = CONTENT) -> Path:
    """An image of `content` in some format."""
    raw = path.with_name(f"{path.name}.input")
    raw.write_bytes(content)
    command = ["qemu-img", "convert", "-f", "raw", "-O", image_format, *options, raw, path]
    subprocess.run(command, check=True)
    raw.unlink()
    return path


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, stdout=subprocess.DEVNULL)


def content_of(disk: object) -> bytes:
    """What the source reads as its only disk."""
    with opened(ImageSource(disks={"vda": disk}), REQUEST) as snapshot:
        image = snapshot.disks["vda"]
        return read(image, 0, image.size)


def refusal(disk: object, timeout: str = "60s") -> SourceError:
    """The error that a disk gives."""
    source = ImageSource(disks={"vda": disk}, timeout=timeout)
    with pytest.raises(SourceError) as caught, opened(source, REQUEST):
        pytest.fail("it was opened")
    return caught.value


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_gives_the_disk_that_is_in_it(tmp_path: Path, image_format: str) -> None:
    path = convert(tmp_path / f"vm1.{image_format}", image_format, *FORMATS[image_format])
    assert content_of(str(path)) == CONTENT


@pytest.mark.parametrize(
    ("name", "image_format"),
    [("a.IMG", "raw"), ("a.Qcow2", "qcow2"), ("a.vhd", "vpc"), ("a,b=c d.qcow2", "qcow2")],
    ids=["upper-case", "mixed-case", "virtual-pc", "odd-characters"],
)
def test_the_suffix_says_the_format(tmp_path: Path, name: str, image_format: str) -> None:
    path = convert(tmp_path / name, image_format, *FORMATS[image_format])
    assert content_of(str(path)) == CONTENT


def test_a_format_can_be_given(tmp_path: Path) -> None:
    path = convert(tmp_path / "vm1", "qcow2")
    assert content_of({"path": str(path), "format": "qcow2"}) == CONTENT


@pytest.mark.parametrize("name", ["vm1", "vm1.disk", "vm1.qcow2.old"])
def test_a_suffix_that_says_nothing_is_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises(ConfigError, match=r"disks\.vda\.format"):
        ImageSource(disks={"vda": f"/nonexistent/{name}"})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"disks": {}},
        {"disks": {"vda": "relative.qcow2"}},
        {"disks": {"vda": {"path": "/x.qcow2", "key": "/y"}}},
        {"disks": {"../vda": "/x.qcow2"}},
        {"disks": {"vda": "/x.qcow2"}, "pool": "rbd"},
        {"disks": {"vda": 3}},
    ],
    ids=["nothing", "no-disks", "relative", "foreign-key", "bad-name", "foreign-setting", "number"],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ImageSource(**settings)


@pytest.mark.parametrize("image_format", ["qcow2", "raw", "vdi", "vmdk", "qed"])
def test_what_is_not_in_an_image_is_zero_and_is_not_read(tmp_path: Path, image_format: str) -> None:
    path = tmp_path / f"vm1.{image_format}"
    qemu_img("create", "-q", "-f", image_format, path, "1T")
    with opened(ImageSource(disks={"vda": str(path)}), REQUEST) as snapshot:
        image = snapshot.disks["vda"]
        assert image.size == 1 << 40
        data = [each.length for each in image.extents() if each.kind is Kind.DATA]
        assert sum(data) <= 4096  # qemu-img writes the first page of a raw image


def test_a_backup_has_no_change_tracking_and_is_of_one_point_in_time(tmp_path: Path) -> None:
    disks = {name: str(convert(tmp_path / f"{name}.qcow2", "qcow2")) for name in ("vda", "vdb")}
    with opened(ImageSource(disks=disks), REQUEST) as snapshot:
        assert snapshot.consistency is Consistency.CRASH
        assert set(snapshot.disks) == {"vda", "vdb"}
        assert snapshot.full_read_reasons == {}


@contextmanager
def opened_by_a_vm(path: Path, image_format: str, folder: Path) -> Iterator[None]:
    """A program of QEMU's that has an image open to write, as a VM has."""
    socket = folder / "writer"
    protocol = "host_device" if path.is_block_device() else "file"
    command = [
        "qemu-storage-daemon",
        "--blockdev", f"driver={protocol},node-name=file,filename={path}",
        "--blockdev", f"driver={image_format},node-name=disk,file=file",
        "--nbd-server", f"addr.type=unix,addr.path={socket}",
        "--export", "type=nbd,id=export,node-name=disk,writable=on",
        "--pidfile", str(folder / "ready"),
    ]  # fmt: skip
    with subprocess.Popen(command) as daemon:
        try:
            wait_for((folder / "ready").exists, "it has opened the image")
            yield
        finally:
            daemon.kill()


@pytest.mark.parametrize("image_format", ["qcow2", "raw", "vdi"])
def test_an_image_that_a_vm_writes_to_is_refused_with_a_hint(
    tmp_path: Path, image_format: str
) -> None:
    path = convert(tmp_path / f"vm1.{image_format}", image_format)
    with opened_by_a_vm(path, image_format, tmp_path):
        error = refusal(str(path))
        assert "another process using the image" in error.message
        assert "type: qemu" in error.hint
    assert content_of(str(path)) == CONTENT


@needs_loop_devices
def test_a_device_that_a_vm_writes_to_is_refused(tmp_path: Path) -> None:
    with device_of(CONTENT, tmp_path) as device:
        disk = {"path": str(device), "format": "raw"}
        assert content_of(disk) == CONTENT
        with opened_by_a_vm(device, "raw", tmp_path):
            assert "another process using the image" in refusal(disk).message


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_no_vm_can_be_started_while_its_image_is_read(tmp_path: Path, image_format: str) -> None:
    path = convert(tmp_path / f"vm1.{image_format}", image_format)
    command = ["qemu-io", "-f", image_format, "-c", "write 0 512", str(path)]
    with opened(ImageSource(disks={"vda": str(path)}), REQUEST):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert 'Failed to get "write" lock' in ended.stderr
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("image_format", ["qcow", "qcow2", "qcow2-of-version-2", "qed", "vmdk"])
def test_a_backing_file_is_refused_unless_it_is_allowed(tmp_path: Path, image_format: str) -> None:
    name = image_format.partition("-")[0]
    base = convert(tmp_path / f"base.{name}", name, *FORMATS[name])
    path = tmp_path / f"top.{name}"
    old = ["-o", "compat=0.10"] if image_format != name else []
    qemu_img("create", "-q", "-f", name, *old, "-b", base, "-F", name, path)
    error = refusal(str(path))
    assert "data in other files" in error.message
    assert "backing: true" in error.hint
    assert content_of({"path": str(path), "backing": True}) == CONTENT


def test_an_image_of_version_2_without_a_backing_file_is_read(tmp_path: Path) -> None:
    path = convert(tmp_path / "vm1.qcow2", "qcow2", "-o", "compat=0.10")
    assert content_of(str(path)) == CONTENT


@pytest.mark.parametrize(
    "backing",
    ["/etc/shadow", "nbd://127.0.0.1:1/x", "ssh://127.0.0.1/etc/shadow", 'json:{"driver":"nbd"}'],
    ids=["a-file", "nbd", "ssh", "json"],
)
def test_a_header_that_a_guest_wrote_makes_us_start_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backing: str
) -> None:
    """QEMU would open such a file even to look what an image is, in some versions."""
    path = tmp_path / "vm1.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", path, "1M")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "data in other files" in refusal(str(path)).message


def test_a_guest_that_writes_a_header_into_its_raw_disk_gets_it_backed_up(tmp_path: Path) -> None:
    header = tmp_path / "header.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", header, "1M")
    path = tmp_path / "vm1.raw"
    content = header.read_bytes()
    content += bytes(-len(content) % 512)
    path.write_bytes(content)
    assert content_of(str(path)) == content
    assert content_of({"path": str(shutil.copy(path, tmp_path / "vm1.img"))}) == content


@pytest.mark.parametrize("image_format", ["qcow", "qcow2", "qed"])
def test_a_file_of_another_format_is_not_said_to_have_its_data_elsewhere(
    tmp_path: Path, image_format: str
) -> None:
    path = tmp_path / "vm1.img"
    path.write_bytes(b"\xff" * MIB)
    error = refusal({"path": str(path), "format": image_format})
    assert "other files" not in error.message
    assert "backing" not in error.hint


def test_an_external_data_file_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "vm1.qcow2"
    convert(path, "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on")
    assert "data in other files" in refusal(str(path)).message
    assert content_of({"path": str(path), "backing": True}) == CONTENT


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_a_vmdk_of_several_files_is_refused_unless_it_is_allowed(tmp_path: Path, kind: str) -> None:
    path = convert(tmp_path / "vm1.vmdk", "vmdk", "-o", f"subformat={kind}")
    assert "data in other files" in refusal(str(path)).message
    assert content_of({"path": str(path), "backing": True}) == CONTENT


def test_a_vmdk_with_a_descriptor_inside_is_refused(tmp_path: Path) -> None:
    """A capacity of 0 has QEMU believe the descriptor in the file, which can name any other."""
    path = convert(tmp_path / "vm1.vmdk", "vmdk")
    content = bytearray(path.read_bytes())
    content[12:20] = bytes(8)
    path.write_bytes(content)
    assert "data in other files" in refusal(str(path)).message


def test_a_streamed_vmdk_is_read(tmp_path: Path) -> None:
    path = convert(tmp_path / "vm1.vmdk", "vmdk", "-o", "subformat=streamOptimized")
    assert content_of(str(path)) == CONTENT


SECRET = "a passphrase, with a comma"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "a key,file"
    path.write_text(SECRET)
    return path


def encrypted(folder: Path, image_format: str) -> Path:
    """An image of CONTENT that is encrypted with SECRET."""
    path = folder / f"vm1.{image_format}"
    path.write_bytes(_encrypted(image_format))
    return path


@cache
def _encrypted(image_format: str) -> bytes:
    """Made once: whatever one asks for, QEMU first measures for two seconds how fast it is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "key").write_text(SECRET)
        return _encrypt(folder, image_format, folder / "key").read_bytes()


def _encrypt(folder: Path, image_format: str, key: Path) -> Path:
    path = folder / f"vm1.{image_format}"
    prefix = "encrypt." if image_format == "qcow2" else ""
    options = f"{prefix}key-secret=key,{prefix}iter-time=10"
    options += ",encrypt.format=luks" if prefix else ""
    secret = f"secret,id=key,file={key}"
    create = ["create", "-q", "--object", secret, "-f", image_format, "-o", options, path, "3M"]
    wait_for(lambda: is_created(*create), "the key is derived")
    raw = folder / "content"
    raw.write_bytes(CONTENT)
    target = f"driver={image_format},file.filename={path},{prefix}key-secret=key"
    qemu_img("convert", "--object", secret, "-n", "-f", "raw", raw, "--target-image-opts", target)
    return path


def is_created(*arguments: object) -> bool:
    """Run qemu-img; False where it could not measure how fast this busy machine is."""
    command = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unable to get accurate CPU usage" in done.stderr:
        return False
    done.check_returncode()
    return True


@pytest.mark.parametrize("image_format", ["luks", "qcow2"])
def test_an_encrypted_image_is_read_with_its_key(
    tmp_path: Path, image_format: str, key: Path
) -> None:
    path = encrypted(tmp_path, image_format)
    assert CONTENT[: 64 * 1024] not in path.read_bytes()
    assert format_of(path.read_bytes()) == image_format  # so that no restore destroys it
    assert content_of({"path": str(path), "key-file": str(key)}) == CONTENT


@pytest.mark.parametrize("image_format", ["luks", "qcow2"])
def test_an_encrypted_image_is_refused_with_another_key_and_without_one(
    tmp_path: Path, image_format: str, key: Path
) -> None:
    path = encrypted(tmp_path, image_format)
    assert "key-secret' is required" in refusal(str(path)).message
    key.write_text("another")
    error = refusal({"path": str(path), "key-file": str(key)})
    assert "Invalid password" in error.message
    assert "another" not in str(error) + error.hint


@pytest.mark.parametrize("image_format", ["qcow2", "qed", "vdi", "vhdx", "vmdk", "luks"])
@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "zeroes"])
def test_what_is_no_image_of_its_format_is_refused_by_name(
    tmp_path: Path, image_format: str, damage: str
) -> None:
    path = tmp_path / f"vm1.{image_format}"
    match damage:
        case "garbage":
            path.write_bytes(sample(MIB))
        case "empty":
            path.touch()
        case "zeroes":
            path.write_bytes(bytes(MIB))
        case _ if image_format == "luks":
            path.write_bytes(b"LUKS\xba\xbe\x00\x01")
        case _:
            convert(path, image_format)
            os.truncate(path, 70)
    assert str(path) in refusal(str(path)).message


def test_an_empty_raw_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vm1.raw"
    path.touch()
    assert "size of 0 bytes" in refusal(str(path)).message


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "character-device"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "vm1.raw"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "character-device":
            path.symlink_to("/dev/null")
        case _:
            pass
    assert f"opening the image {path}" in refusal(str(path)).message


@pytest.mark.parametrize("size", ["65T", "8191P"])
def test_a_small_file_that_claims_a_huge_disk_is_refused(tmp_path: Path, size: str) -> None:
    path = tmp_path / "vm1.qcow2"
    options = ["-o", "cluster_size=2M"]
    qemu_img("create", "-q", "-f", "qcow2", *options, path, "64T")
    with opened(ImageSource(disks={"vda": str(path)}), REQUEST) as snapshot:
        assert snapshot.disks["vda"].size == 64 << 40
    content = bytearray(path.read_bytes())
    claimed = int(size[:-1]) << {"T": 40, "P": 50}[size[-1]]
    content[24:32] = struct.pack(">Q", claimed)
    path.write_bytes(content)
    assert str(path) in refusal(str(path)).message


def test_a_raw_file_that_claims_a_huge_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vm1.raw"
    path.touch()
    try:
        os.truncate(path, 65 << 40)
    except OSError:
        os.truncate(path, 15 << 40)  # as large as a file can be on ext4
        return
    error = refusal(str(path))
    assert "65.0 TiB" in error.message


def test_memory_that_an_image_makes_qemu_take_is_limited(tmp_path: Path) -> None:
    """A VDI of 512 TiB, the largest there is, has QEMU read a map of 2 GiB; here it is a hole."""
    path = tmp_path / "vm1.vdi"
    qemu_img("create", "-q", "-f", "vdi", path, "1M")
    content = bytearray(path.read_bytes())
    blocks = 0x1FFFFF80
    content[0x170:0x178] = struct.pack("<Q", blocks << 20)
    content[0x180:0x184] = struct.pack("<I", blocks)
    offset = 0x200 + blocks * 4
    content[0x158:0x15C] = struct.pack("<I", offset + -offset % 512)
    path.write_bytes(content)
    os.truncate(path, 3 << 30)
    assert "Cannot allocate memory" in refusal(str(path)).message


def test_a_key_that_takes_for_ever_to_derive_ends_at_the_time_limit(
    tmp_path: Path, key: Path
) -> None:
    path = encrypted(tmp_path, "luks")
    content = bytearray(path.read_bytes())
    content[212:216] = struct.pack(">I", 0xFFFFFFFF)  # iterations of the first key slot
    path.write_bytes(content)
    error = refusal({"path": str(path), "key-file": str(key)}, timeout="1s")
    assert "took longer than 1 s" in error.message


class TestImages(SourceSuite):
    consistency = Consistency.CRASH

    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
        yield ImageSource(
            disks={
                name: str(convert(folder / f"{name}.qcow2", "qcow2", content=content))
                for name, content in disks.items()
            }
        )


def test_the_settings_can_be_stored_as_json(tmp_path: Path) -> None:
    path = convert(tmp_path / "vm1.qcow2", "qcow2")
    settings = json.loads(json.dumps({"disks": {"vda": {"path": str(path)}}, "timeout": "30s"}))
    with opened(ImageSource(**settings), REQUEST) as snapshot:
        assert snapshot.disks["vda"].size == len(CONTENT)
