"""One installation of backy for each test of its commands."""

import shutil
from pathlib import Path

import pytest

from tests.cli.runner import SMALL, Backy, image


@pytest.fixture
def backy(tmp_path: Path) -> Backy:
    """For what is the same in both stores."""
    return Backy(tmp_path / "backups", "chunks")


@pytest.fixture
def plain(reflink_folder: Path) -> Backy:
    """With the store "images"."""
    return Backy(reflink_folder / "backups", "images")


@pytest.fixture
def alone(own_reflink_folder: Path) -> Backy:
    """The same on a file system of its own, whose space can be measured."""
    return Backy(own_reflink_folder / "backups", "images")


@pytest.fixture(params=["chunks", "images"])
def either(request: pytest.FixtureRequest) -> Backy:
    """With one store and then the other."""
    name = {"chunks": "backy", "images": "plain"}[request.param]
    installation: Backy = request.getfixturevalue(name)
    return installation


@pytest.fixture(scope="session")
def first_aged(tmp_path_factory: pytest.TempPathFactory) -> Backy:
    """What `aged` copies: to make it takes a second."""
    folder = tmp_path_factory.mktemp("aged")
    backy = Backy(folder / "backups")
    for seed, tag in [(1, "daily"), (2, "upgrade"), (3, "daily")]:
        source = image(folder / "vm1.img", SMALL[seed])
        backy.backup("vm1", source, "--tag", tag, "--block-size", "64KiB")
    return backy


@pytest.fixture
def aged(first_aged: Backy, backy: Backy) -> Backy:
    """vm1 has three revisions of SMALL[1] to SMALL[3], tagged daily, upgrade and daily."""
    shutil.copytree(first_aged.base, backy.base)
    return backy


@pytest.fixture(scope="session")
def first_two_disks(tmp_path_factory: pytest.TempPathFactory) -> Backy:
    """What `two_disks` copies."""
    folder = tmp_path_factory.mktemp("two")
    backy = Backy(folder / "backups")
    one, two = (image(folder / f"{seed}.img", SMALL[seed]) for seed in (1, 2))
    backy.ok("backup", "vm1", "--source", f"vda={one}", "--source", f"vdb={two}")
    return backy


@pytest.fixture
def two_disks(first_two_disks: Backy, backy: Backy) -> Backy:
    """vm1 has one revision with the disks vda, SMALL[1], and vdb, SMALL[2]."""
    shutil.copytree(first_two_disks.base, backy.base)
    return backy
