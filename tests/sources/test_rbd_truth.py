"""Every revision of an RBD image has the bytes that `rbd export` gives of its snapshot."""

import os
from pathlib import Path
from random import Random

import pytest

from backy.units import MiB
from tests.lab.ceph import Cluster
from tests.sources.rbd_machine import OBJECTS, SIZE, Machine, commands, unique

# `make soak` takes 10 images of each kind, with 20 deltas instead of 4.
ROUNDS = int(os.environ.get("BACKY_ROUNDS", "1"))
SEED = int(os.environ.get("BACKY_SEED", "1"))
DELTAS = 20 if "BACKY_ROUNDS" in os.environ else 4


def made(ceph: Cluster, kind: str, chance: Random) -> str:
    """An image of that kind."""
    name = unique(kind)
    match kind:
        case "clone":
            # Its parent lies in another pool, and is a bit smaller.
            size = SIZE - 5 * MiB // 2
            parent = ceph.create(f"templates/{name}", size, *OBJECTS)
            ceph.write(parent, *commands(chance, size), "write -P 1 4M 5M")
            ceph.rbd("snap", "create", "--no-progress", f"{parent}@base")
            ceph.rbd("clone", "--rbd-default-clone-format", "2", f"{parent}@base", f"rbd/{name}")
            ceph.rbd("resize", "--no-progress", "--size", f"{SIZE}B", f"rbd/{name}")
            ceph.write(parent, *commands(chance, SIZE // 2))
            return f"rbd/{name}"
        case "namespace":
            return ceph.create(f"rbd/customers/{name}", SIZE, "--data-pool", "data", *OBJECTS)
        case _:
            return ceph.create(f"rbd/{name}", SIZE, *OBJECTS)


def happen(machine: Machine, chance: Random) -> bool:
    """Something that happens to an image between two backups; whether its size is another one."""
    image, size = machine.images["vda"], machine.last().disks["vda"].size
    other = chance.randrange(SIZE // 2, SIZE * 3 // 2) // 512 * 512
    event = chance.choice(["write", "write", "write", "resize", "back", "rollback", "rare"])
    match event:
        case "resize":
            machine.resize(other)
            size = other
        case "back":
            machine.resize(other)
            machine.write(*commands(chance, other))
            machine.resize(size)
        case "rollback":
            machine.ceph.rbd("snap", "rollback", "--no-progress", machine.point())
        case "rare" if "parent" in machine.ceph.json("info", image) and chance.random() < 0.3:
            machine.ceph.rbd("flatten", "--no-progress", image)
        case "rare":
            machine.ceph.rbd("sparsify", "--no-progress", image)
        case _:
            pass
    if event != "rare":
        machine.write(*commands(chance, size))
    return size != machine.last().disks["vda"].size


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize(
    ("kind", "store"),
    [("plain", "images"), ("clone", "chunks"), ("namespace", "chunks")],
)
def test_a_full_and_its_deltas_hold_what_the_cluster_exports(
    ceph_pools: Cluster, tmp_path: Path, reflink_folder: Path, kind: str, store: str, number: int
) -> None:
    chance = Random(f"{SEED} {kind} {number}")
    base = reflink_folder if store == "images" else tmp_path
    machine = Machine(ceph_pools, base, {"vda": made(ceph_pools, kind, chance)}, store)
    machine.write(*commands(chance, SIZE))
    machine.backup()
    for delta in range(DELTAS):
        was_resized = happen(machine, chance)
        revision = machine.backup()
        is_whole = any("was resized" in warning for warning in revision.warnings)
        assert is_whole == was_resized, (SEED, number, delta, revision.warnings)
        assert machine.ours() == machine.points()
