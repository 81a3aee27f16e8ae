"""The rights that docs/sources/rbd.md asks for are enough, and change no disk."""

import re
from pathlib import Path

import pytest

from backy.errors import SourceError
from backy.units import MiB
from tests.lab.ceph import Cluster
from tests.sources.rbd_machine import OBJECTS, SIZE, Machine, unique

PAGE = Path(__file__).parents[2] / "docs" / "sources" / "rbd.md"
ROWS = dict(re.findall(r"(?m)^\| (.*) \| `(allow .*)` \|$", PAGE.read_text()))
POOL, NAMESPACE, DATA, PARENTS = ROWS.values()


def cloned(ceph: Cluster, image: str) -> str:
    """A clone with its parent in the pool "templates" and its data in "data"."""
    parent = ceph.create(f"templates/{unique('base')}", SIZE, *OBJECTS)
    ceph.write(parent, "write -P 1 3M 64k")
    ceph.rbd("snap", "create", "--no-progress", f"{parent}@base")
    options = ["--rbd-default-clone-format", "2", "--data-pool", "data"]
    ceph.rbd("clone", *options, f"{parent}@base", image)
    return image


@pytest.mark.parametrize(
    ("folder", "rights"), [("rbd", POOL), ("rbd/customers", NAMESPACE)], ids=["pool", "namespace"]
)
def test_the_documented_rights_are_enough_and_let_nobody_change_a_disk(
    ceph_pools: Cluster, tmp_path: Path, folder: str, rights: str
) -> None:
    image = cloned(ceph_pools, f"{folder}/{unique('vm')}")
    user = ceph_pools.user(unique("backy"), "profile rbd", f"{rights}, {DATA}, {PARENTS}")
    machine = Machine(ceph_pools, tmp_path, {"vda": image}, settings={"user": user})
    machine.backup()
    machine.write("write -P 2 8M 64k")
    revision = machine.backup()
    assert revision.disks["vda"].changed == 64 * 1024
    assert not revision.warnings
    assert len(machine.points()) == 1
    before = ceph_pools.export(image)
    with pytest.raises(RuntimeError, match="not permitted"):
        ceph_pools.write(image, "write -P 3 0 64k", user=user)
    assert ceph_pools.export(image) == before


def test_a_user_who_may_only_read_is_told_so(ceph: Cluster, tmp_path: Path) -> None:
    user = ceph.user(unique("reader"), "profile rbd-read-only", "profile rbd-read-only pool=rbd")
    image = ceph.create(f"rbd/{unique('vm')}", MiB)
    machine = Machine(ceph, tmp_path, {"vda": image}, settings={"user": user})
    with pytest.raises(SourceError, match=rf"{image}@.*: \(1\) Operation not permitted") as caught:
        machine.run()
    assert "may this user do it? See docs/sources/rbd.md" in caught.value.hint


def test_a_cluster_may_have_another_name(ceph: Cluster, tmp_path: Path) -> None:
    """It is in the name of the configuration, and that of the key follows from it."""
    (ceph.folder / "prod.conf").write_text(ceph.conf.read_text())
    user = unique("only-in-prod")
    ceph.user(user, "profile rbd", "profile rbd pool=rbd")
    keyring = ceph.folder / f"ceph.client.{user}.keyring"
    keyring.rename(ceph.folder / f"prod.client.{user}.keyring")
    image = ceph.create(f"rbd/{unique('vm')}", MiB)
    conf = str(ceph.folder / "prod.conf")
    machine = Machine(ceph, tmp_path, {"vda": image}, settings={"conf": conf, "user": user})
    assert machine.backup().disks["vda"].size == MiB


@pytest.mark.parametrize(
    "name", ["user", "conf", "cluster", "server", "timeout", "full-always", "whole-object", "disks"]
)
def test_every_setting_is_documented(name: str) -> None:
    assert f"| `{name}` |" in PAGE.read_text()
