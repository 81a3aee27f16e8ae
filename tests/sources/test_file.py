"""A file source reads regular files, sparse files and block devices, and says what it could not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backy.errors import ConfigError, SourceError
from backy.model.extent import Kind
from backy.model.revision import Consistency
from backy.sources import Request, open_source
from backy.sources.file import FileSource
from tests.conformance.image import read
from tests.lab.devices import device_of, needs_loop_devices
from tests.memory_source import sample
from tests.snapshots import opened

REQUEST = Request("20261123T004938Z-x7k2")

MIB = 1024**2
CONTENT = sample(3 * MIB + 12_345)


def source(*paths: Path) -> FileSource:
    return FileSource(
        disks={f"vd{letter}": str(path) for letter, path in zip("abc", paths, strict=False)}
    )


def write_all(path: Path, content: bytes) -> None:
    """Overwrite a file in place."""
    with path.open("r+b") as file:
        file.write(content)
        os.fsync(file.fileno())


@pytest.mark.parametrize("reflink_folder", ["xfs", "btrfs"], indirect=True)
def test_a_file_that_can_be_cloned_is_read_as_it_was_when_the_snapshot_began(
    reflink_folder: Path,
) -> None:
    path = reflink_folder / "vm1.img"
    path.write_bytes(CONTENT)
    with opened(source(path), REQUEST) as snapshot:
        image = snapshot.disks["vda"]
        first = read(image, 0, MIB)
        write_all(path, CONTENT[::-1])
        os.truncate(path, 100)
        assert image.size == len(CONTENT)
        assert first + read(image, MIB, len(CONTENT) - MIB) == CONTENT
        assert snapshot.consistency is Consistency.CRASH
        assert snapshot.warnings() == []
    assert list(reflink_folder.iterdir()) == [path]


@pytest.mark.parametrize("reflink_folder", ["btrfs"], indirect=True)
@pytest.mark.parametrize("is_inherited", [False, True], ids=["file", "folder"])
def test_a_file_without_checksums_is_cloned_as_well(
    reflink_folder: Path, is_inherited: bool
) -> None:
    """With chattr +C, as libvirt makes its images on btrfs. It need not be that of its folder."""
    path, kept = reflink_folder / "vm1.img", reflink_folder / "kept.img"
    (reflink_folder / "without").mkdir()
    kept.touch()
    path.touch()
    subprocess.run(["chattr", "+C", path, reflink_folder / "without"], check=True)
    if is_inherited:
        path = kept.rename(reflink_folder / "without" / "vm1.img")
    path.write_bytes(CONTENT)
    with opened(source(path), REQUEST) as snapshot:
        write_all(path, CONTENT[::-1])
        assert read(snapshot.disks["vda"], 0, len(CONTENT)) == CONTENT
        assert snapshot.consistency is Consistency.CRASH
        assert snapshot.warnings() == []


@pytest.mark.parametrize("reflink_folder", ["xfs", "btrfs"], indirect=True)
def test_what_is_written_before_it_is_opened_is_not_in_a_clone(reflink_folder: Path) -> None:
    """A guest that hooks have frozen goes on when the snapshot was taken."""
    path = reflink_folder / "vm1.img"
    path.write_bytes(CONTENT)
    with source(path).snapshot(REQUEST) as taken:
        write_all(path, CONTENT[::-1])
        with taken.open() as snapshot:
            assert read(snapshot.disks["vda"], 0, len(CONTENT)) == CONTENT


def test_a_file_without_a_clone_is_as_it_is_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "vm1.img"
    path.write_bytes(CONTENT)
    with source(path).snapshot(REQUEST) as taken:
        write_all(path, CONTENT[::-1])
        with taken.open() as snapshot:
            assert read(snapshot.disks["vda"], 0, len(CONTENT)) == CONTENT[::-1]
            assert snapshot.warnings() == []
            assert snapshot.consistency is Consistency.NONE


def test_where_a_clone_fails_that_the_file_system_could_make_the_reason_is_told(
    reflink_folder: Path,
) -> None:
    path = reflink_folder / "vm1.img"
    path.write_bytes(CONTENT)
    subprocess.run(["chattr", "+i", reflink_folder], check=True)  # no file can be made in it
    try:
        with opened(source(path), REQUEST) as snapshot:
            assert snapshot.consistency is Consistency.NONE
            why = "and may change meanwhile: Operation not permitted"
            assert snapshot.warnings() == [f"{path} was not cloned, {why}"]
    finally:
        subprocess.run(["chattr", "-i", reflink_folder], check=True)


def test_what_was_just_written_and_not_yet_synced_is_in_the_clone(reflink_folder: Path) -> None:
    path = reflink_folder / "vm1.img"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(CONTENT)
        file.flush()
        with opened(source(path), REQUEST) as snapshot:
            image = snapshot.disks["vda"]
            data = sum(each.length for each in image.extents() if each.kind is Kind.DATA)
            assert data >= len(CONTENT) - len(CONTENT) // 2
            assert read(image, 32 * MIB, len(CONTENT)) == CONTENT


def test_a_clone_leaves_no_name_behind(reflink_folder: Path) -> None:
    path = reflink_folder / "vm1.img"
    path.write_bytes(CONTENT)
    with opened(source(path), REQUEST):
        assert list(reflink_folder.iterdir()) == [path]


def test_two_disks_are_not_of_one_point_in_time(reflink_folder: Path) -> None:
    paths = [reflink_folder / "a.img", reflink_folder / "b.img"]
    for path in paths:
        path.write_bytes(CONTENT)
    with opened(source(*paths), REQUEST) as snapshot:
        assert snapshot.consistency is Consistency.NONE
        assert set(snapshot.disks) == {"vda", "vdb"}


@pytest.mark.parametrize("change", ["content", "longer"])
def test_a_file_that_changed_while_it_was_read_is_told(tmp_path: Path, change: str) -> None:
    path = tmp_path / "vm1.img"
    path.write_bytes(CONTENT)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    with opened(source(path), REQUEST) as snapshot:
        read(snapshot.disks["vda"], 0, MIB)
        assert snapshot.warnings() == []
        if change == "content":
            write_all(path, b"x")
        else:
            os.truncate(path, len(CONTENT) + 1)
        [warning] = snapshot.warnings()
        assert str(path) in warning
        assert snapshot.consistency is Consistency.NONE


def test_a_file_that_shrank_while_it_was_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "vm1.img"
    path.write_bytes(CONTENT)
    with opened(source(path), REQUEST) as snapshot:
        os.truncate(path, MIB)
        with pytest.raises(SourceError, match=rf"{path} ended at byte {MIB}"):
            read(snapshot.disks["vda"], 0, len(CONTENT))


def test_holes_cost_nothing_and_are_zero(tmp_path: Path) -> None:
    path = tmp_path / "vm1.img"
    with path.open("wb") as file:
        file.seek(1 << 40)
        file.write(b"end")
    with opened(source(path), REQUEST) as snapshot:
        image = snapshot.disks["vda"]
        assert image.size == (1 << 40) + 3
        extents = list(image.extents())
        assert [each.kind for each in extents] == [Kind.ZERO, Kind.DATA]
        assert extents[1].length <= 4096


def test_a_file_of_one_hole_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "vm1.img"
    path.touch()
    os.truncate(path, 12_345)
    with opened(source(path), REQUEST) as snapshot:
        [extent] = snapshot.disks["vda"].extents()
        assert (extent.start, extent.length, extent.kind) == (0, 12_345, Kind.ZERO)


@needs_loop_devices
def test_a_block_device_has_the_size_that_the_kernel_says(tmp_path: Path) -> None:
    content = sample(1_000_960)
    with device_of(content, tmp_path) as device:
        assert device.stat().st_size == 0
        with opened(source(device), REQUEST) as snapshot:
            image = snapshot.disks["vda"]
            assert image.size == len(content)
            assert [each.kind for each in image.extents()] == [Kind.DATA]
            assert read(image, 0, image.size) == content
            assert snapshot.consistency is Consistency.NONE


@needs_loop_devices
def test_a_read_error_in_the_middle_names_the_source_and_the_byte(tmp_path: Path) -> None:
    """A loop device whose file was cut gives EIO beyond that, as a broken disk does."""
    with device_of(sample(4 * MIB), tmp_path) as device:
        [backing] = tmp_path.glob("device-*")
        os.truncate(backing, MIB)
        with opened(source(device), REQUEST) as snapshot:
            image = snapshot.disks["vda"]
            assert read(image, 0, MIB) == sample(4 * MIB)[:MIB]
            with pytest.raises(SourceError, match=rf"{device} at byte {2 * MIB}.*error") as caught:
                read(image, 2 * MIB, MIB)
            assert "nothing was published" in caught.value.hint


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "vm1.img").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to("vm1.img")
    with opened(source(tmp_path / "link"), REQUEST) as snapshot:
        assert read(snapshot.disks["vda"], 0, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "fifo", "character-device"])
def test_what_is_no_disk_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "vm1.img"
    match kind:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "character-device":
            path = Path("/dev/null")
        case _:
            pass
    with pytest.raises(SourceError, match=str(path)), opened(source(path), REQUEST):
        pytest.fail("a snapshot was taken")


def test_what_may_not_be_read_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "vm1.img"
    path.write_bytes(CONTENT)
    path.chmod(0)
    code = (
        "import sys\n"
        "from backy.errors import SourceError\n"
        "from backy.sources import Request\n"
        "from backy.sources.file import FileSource\n"
        "try:\n"
        "    source = FileSource(disks={'vda': sys.argv[1]})\n"
        "    with source.snapshot(Request('')) as taken, taken.open(): pass\n"
        "except SourceError as error: print(error)\n"
    )
    # The last of these takes root's right to read everything.
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    result = subprocess.run(
        [*drop, sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"opening the source {path}: Permission denied\n"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"disks": {}},
        {"disks": ["/images/vm1.img"]},
        {"disks": {"vda": "/x"}, "pool": "rbd"},
        {"disks": {"../vda": "/x"}},
    ],
    ids=["nothing", "no-disks", "a-list", "foreign-setting", "bad-name"],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        open_source({"type": "file", **settings})


@pytest.mark.parametrize("settings", [{}, {"type": 3}, {"type": "tape"}], ids=str)
def test_a_source_without_a_known_type_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        open_source(settings)
