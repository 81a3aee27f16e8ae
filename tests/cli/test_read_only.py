"""Whoever may only read a repository can do everything that reads it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.runner import MIB, Backy, data, image
from tests.lab.needs import need, no_mounts
from tests.lab.reflink import unmount

DISK = data(1, 3 * MIB)


@pytest.fixture(params=["chunks", "images"])
def read_only(request: pytest.FixtureRequest, reflink_folder: Path) -> Iterator[Backy]:
    """Two revisions of vm1, one of which is in a read-only mount of the whole base directory."""
    need(no_mounts())
    backy = Backy(reflink_folder / "backups", request.param)
    source = image(reflink_folder / "vm1.img", DISK[: 2 * MIB])
    backy.backup("vm1", source)
    source.write_bytes(DISK)
    backy.backup("vm1", source)
    mounted = reflink_folder / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "--bind", backy.base, mounted], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        yield Backy(mounted, request.param)
    finally:
        unmount(mounted)


def test_a_read_only_repository_gets_its_verdict_and_a_warning(read_only: Backy) -> None:
    for verb, verdict in {"verify": "5.0 MiB verified", "scrub": "100.0 % of "}.items():
        said = read_only.ok(verb, "vm1")
        assert verdict in said.out
        assert "vm1: warning: the result is not recorded: " in said.err
        assert "Read-only file system" in said.err


def test_damage_in_a_read_only_repository_is_named_with_its_exit_code(
    read_only: Backy, reflink_folder: Path
) -> None:
    writable = Backy(reflink_folder / "backups", read_only.store)
    newest = writable.revisions("vm1")[-1]
    writable.damage("vm1", newest, 2)
    for verb in ("verify", "scrub"):
        said = read_only.refuses(6, verb, "vm1")
        assert f"damaged: {newest} vda bytes {2 * MIB} to {3 * MIB}" in said.before
        assert "not marked as distrusted" in said.before


def test_a_read_only_repository_can_be_restored_and_listed(
    read_only: Backy, tmp_path: Path
) -> None:
    said = read_only.ok("restore", "vm1", tmp_path / "new.img")
    assert said.err.startswith("vm1: warning: this restore is not in backy history: ")
    assert said.err.count("\n") == 1
    assert (tmp_path / "new.img").read_bytes() == DISK
    for command in (["list"], ["status"], ["reports"], ["diff", "vm1", "1", "0"], ["find", "vm1"]):
        read_only.ok(*command)
    assert "Read-only file system" in read_only.refuses(5, "backup", "vm1").message
    assert "Read-only file system" in read_only.refuses(5, "remove", "vm1", "-r", "1").message
