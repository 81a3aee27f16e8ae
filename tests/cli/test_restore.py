"""backy restore: a disk comes back, to where it was asked for, and to nowhere else."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.runner import MIB, SMALL, Backy, data, environment, image, overwrite
from tests.lab.devices import loop_device

SPARSE = data(1, MIB) + bytes(40 * MIB) + data(2, 5000)


@pytest.fixture(params=["64KiB", "4MiB"])
def block_size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_disk_comes_back_to_a_new_file_with_its_holes(
    either: Backy, tmp_path: Path, block_size: str
) -> None:
    either.backup("vm1", image(tmp_path / "vm1.img", SPARSE), "--block-size", block_size)
    either.quiet("restore", "vm1", tmp_path / "new.img")
    assert (tmp_path / "new.img").read_bytes() == SPARSE
    assert (tmp_path / "new.img").stat().st_blocks * 512 < 6 * MIB
    assert {each.name for each in tmp_path.iterdir()} - {"backups"} == {"new.img", "vm1.img"}


@pytest.mark.parametrize("length", [len(SPARSE) // 2, len(SPARSE) + MIB], ids=["longer", "shorter"])
def test_an_existing_file_becomes_the_disk(either: Backy, tmp_path: Path, length: int) -> None:
    either.backup("vm1", image(tmp_path / "vm1.img", SPARSE))
    target = image(tmp_path / "old.img", data(9, length))
    (tmp_path / "link.img").hardlink_to(target)
    either.quiet("restore", "vm1", target, "--overwrite")
    assert (tmp_path / "link.img").read_bytes() == SPARSE


def test_a_block_device_becomes_the_disk_and_keeps_what_lies_beyond(
    either: Backy, tmp_path: Path
) -> None:
    either.backup("vm1", image(tmp_path / "vm1.img", SPARSE))
    old = data(9, len(SPARSE) // 512 * 512 + 4096)
    image(tmp_path / "device", old)
    with loop_device(tmp_path / "device") as device:
        either.quiet("restore", "vm1", device)
        assert device.read_bytes() == SPARSE + old[len(SPARSE) :]


def test_standard_output_gets_the_disk_and_nothing_else(either: Backy, tmp_path: Path) -> None:
    either.backup("vm1", image(tmp_path / "vm1.img", SPARSE))
    command = either.command("restore", "vm1", "-")
    done = subprocess.run(command, env=environment(), capture_output=True, check=True)
    assert done.stdout == SPARSE
    assert b"vda restored to -: 41.0 MiB" in done.stderr


def test_the_end_of_a_restore_says_what_went_where(backy: Backy, tmp_path: Path) -> None:
    revision = backy.backup("vm1", image(tmp_path / "vm1.img", SPARSE))
    said = backy.quiet("restore", "vm1", tmp_path / "new.img").out
    start = re.escape(f"vm1: {revision}: vda restored to {tmp_path}/new.img: 41.0 MiB, of which ")
    assert re.fullmatch(start + r"[12]\.0 MiB are data, \d+\.\d s, \d+\.\d [KMG]iB/s\n", said)


@pytest.mark.parametrize(
    ("spec", "seed"),
    [
        pytest.param("latest", 3, id="latest"),
        pytest.param("first", 1, id="first"),
        pytest.param("1", 2, id="number"),
        pytest.param("tag:upgrade", 2, id="tag"),
        pytest.param("first(tag:daily)", 1, id="function"),
    ],
)
def test_any_revision_comes_back(aged: Backy, tmp_path: Path, spec: str, seed: int) -> None:
    aged.quiet("restore", "vm1", tmp_path / "new.img", "-r", spec)
    assert (tmp_path / "new.img").read_bytes() == SMALL[seed]


@pytest.mark.parametrize(("disk", "seed"), [("vda", 1), ("vdb", 2)])
def test_a_disk_is_chosen_by_its_name(
    two_disks: Backy, tmp_path: Path, disk: str, seed: int
) -> None:
    two_disks.quiet("restore", "vm1", tmp_path / "new.img", "--disk", disk)
    assert (tmp_path / "new.img").read_bytes() == SMALL[seed]


@pytest.mark.parametrize("command", [["restore", "vm1", "new.img"], ["find", "vm1"]], ids=str)
def test_without_a_name_several_disks_are_listed(two_disks: Backy, command: list[str]) -> None:
    said = two_disks.refuses(9, *command)
    assert "has several disks: vda, vdb" in said.message
    assert "--disk" in said.hint


@pytest.mark.parametrize("name", ["vdc", "", "../vda", "-"])
def test_an_unknown_disk_is_refused_and_those_there_are_listed(
    two_disks: Backy, tmp_path: Path, name: str
) -> None:
    said = two_disks.refuses(9, "restore", "vm1", tmp_path / "new.img", "--disk", name)
    assert f"has no disk {name!r}" in said.message
    assert "vda, vdb" in said.hint
    assert not (tmp_path / "new.img").exists()


def test_the_source_can_be_overwritten_only_on_purpose(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    backy.backup("vm1", source)
    overwrite(source, 0, b"damaged by somebody")
    said = backy.refuses(10, "restore", "vm1", source)
    assert f"{source} is the source of disk vda" in said.message
    assert "--over-source" in said.hint
    assert source.read_bytes() != data(1)
    backy.quiet("restore", "vm1", source, "--over-source")
    assert source.read_bytes() == data(1)


@pytest.mark.parametrize("block", [0, 2])
def test_a_damaged_block_ends_the_restore_and_no_file_appears(
    backy: Backy, tmp_path: Path, block: int
) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    revision = backy.backup("vm1", source)
    source.write_bytes(data(2))
    chunk = backy.chunk("vm1", revision, block)
    chunk.write_bytes(chunk.read_bytes()[:-1])
    said = backy.refuses(6, "restore", "vm1", tmp_path / "new.img")
    assert f"block {block} (byte {block * MIB})" in said.message
    left = {each.name for each in tmp_path.iterdir()}
    assert left <= {"backups", "vm1.img", ".new.img.partial"}


def test_a_bit_that_flipped_in_a_plain_image_ends_the_restore(plain: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    plain.backup("vm1", source)
    source.write_bytes(data(2))
    path = Path(plain.quiet("find", "vm1").out.strip())
    path.chmod(0o600)
    overwrite(path, MIB + 7, b"\0")
    said = plain.refuses(6, "restore", "vm1", tmp_path / "new.img")
    assert f"bytes {MIB} to {2 * MIB}" in said.message
    assert not (tmp_path / "new.img").exists()
