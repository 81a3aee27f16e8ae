"""An RBD source does what its page says with an image, a pool or a cluster in an odd state."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from backy.errors import SourceError
from backy.units import MiB
from tests.lab.ceph import Cluster
from tests.lab.watchdog import ends
from tests.sources.rbd_machine import Machine, unique, with_one_disk

PAGE = Path(__file__).parents[2] / "docs" / "sources" / "rbd.md"
State = Callable[[Machine], AbstractContextManager[None]]


@pytest.fixture
def machine(ceph: Cluster, tmp_path: Path) -> Machine:
    return with_one_disk(ceph, tmp_path / "backups")


def clone_of_new(machine: Machine) -> None:
    """Let the machine's disk be a clone; its parent has all the data."""
    parent, image = machine.images["vda"], f"rbd/{unique('clone')}"
    machine.ceph.rbd("snap", "create", "--no-progress", f"{parent}@base")
    machine.ceph.rbd("clone", "--rbd-default-clone-format", "2", f"{parent}@base", image)
    machine.images["vda"] = image


def as_ceph_has_it(machine: Machine) -> bool:
    """Whether a new backup has what the image has now."""
    return machine.stored(machine.run(), "vda") == machine.ceph.export(machine.images["vda"])


# States of the page in which a backup is refused: no snapshot is taken, and none is removed.


@contextmanager
def migrating(machine: Machine) -> Iterator[None]:
    image = machine.images["vda"]
    machine.ceph.rbd("migration", "prepare", image)
    yield
    machine.ceph.rbd("migration", "abort", "--no-progress", image)


@contextmanager
def migrated(machine: Machine) -> Iterator[None]:
    image = machine.images["vda"]
    machine.ceph.rbd("migration", "prepare", image)
    machine.ceph.rbd("migration", "execute", "--no-progress", image)
    yield
    machine.ceph.rbd("migration", "commit", "--no-progress", image)


@contextmanager
def not_primary(machine: Machine) -> Iterator[None]:
    image = machine.images["vda"]
    machine.ceph.rbd("mirror", "pool", "enable", "rbd", "image")
    machine.ceph.rbd("mirror", "image", "enable", image, "snapshot")
    machine.ceph.rbd("mirror", "image", "demote", image)
    yield
    machine.ceph.rbd("mirror", "image", "promote", image)


@contextmanager
def without_its_object_map(machine: Machine) -> Iterator[None]:
    image = machine.images["vda"]
    name = f"rbd_object_map.{machine.ceph.json('info', image)['id']}"
    access = ["--conf", str(machine.ceph.conf), "--pool", "rbd"]
    subprocess.run(["rados", *access, "rm", name], check=True)
    yield
    machine.ceph.rbd("object-map", "rebuild", "--no-progress", image)


@contextmanager
def in_the_trash(machine: Machine) -> Iterator[None]:
    image = machine.images["vda"]
    image_id = machine.ceph.json("info", image)["id"]
    machine.ceph.rbd("trash", "mv", image)
    yield
    machine.ceph.rbd("trash", "restore", f"rbd/{image_id}")


@contextmanager
def at_its_limit_of_snapshots(machine: Machine) -> Iterator[None]:
    machine.ceph.rbd("snap", "limit", "set", "--limit", "1", machine.images["vda"])
    yield
    machine.ceph.rbd("snap", "limit", "clear", machine.images["vda"])


@contextmanager
def locked_by_hand(machine: Machine) -> Iterator[None]:
    image = machine.images["vda"]
    machine.ceph.rbd("lock", "add", image, "mine")
    yield
    [lock] = machine.ceph.json("lock", "ls", image)
    machine.ceph.rbd("lock", "rm", image, "mine", lock["locker"])


@contextmanager
def in_a_full_cluster(machine: Machine) -> Iterator[None]:
    machine.settings["timeout"] = 3
    set_ratios(machine.ceph, {"nearfull": 0.0001, "backfillfull": 0.0002, "full": 0.0003})
    try:
        with ends(60):
            while b"HEALTH_ERR" not in machine.ceph.ceph("health"):
                pass
        yield
    finally:
        set_ratios(machine.ceph, {"full": 0.95, "backfillfull": 0.9, "nearfull": 0.85})
        machine.settings["timeout"] = 60


def set_ratios(ceph: Cluster, ratios: dict[str, float]) -> None:
    for name, ratio in ratios.items():
        ceph.ceph("osd", f"set-{name}-ratio", str(ratio))


# States in which it works.


@contextmanager
def flattened_before(machine: Machine) -> Iterator[None]:
    machine.ceph.rbd("flatten", "--no-progress", machine.images["vda"])
    yield


@contextmanager
def sparsified_meanwhile(machine: Machine) -> Iterator[None]:
    machine.write("write -P 1 0 16M", "write -z 4M 8M")
    with during(machine, "sparsify"):
        yield


@contextmanager
def copied_meanwhile(machine: Machine) -> Iterator[None]:
    machine.write("write -P 1 0 16M")
    with during(machine, "deep", "cp", f"{machine.images['vda']}-copy"):
        yield


@contextmanager
def during(machine: Machine, *words: str) -> Iterator[None]:
    """While `rbd` does something slowly to the image."""
    verb, names = words[: 2 - (len(words) == 1)], words[2:]
    slowly = ["--rbd-concurrent-management-ops", "1", "--no-progress"]
    command = ["rbd", "--conf", str(machine.ceph.conf), *verb, *slowly, machine.images["vda"]]
    with subprocess.Popen([*command, *names], stderr=subprocess.DEVNULL) as process:
        yield
        assert process.wait() == 0


@contextmanager
def locked_by_the_dead(machine: Machine) -> Iterator[None]:
    """Its client was killed, and did not release the exclusive lock."""
    pool, image = machine.images["vda"].split("/")
    target = f"driver=rbd,pool={pool},image={image},conf={machine.ceph.conf},user=admin"
    command = ["qemu-io", "--image-opts", target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(b"write -P 5 0 64k\n")
        process.stdin.flush()
        with ends(60):
            while not machine.ceph.json("lock", "ls", machine.images["vda"]):
                pass
        os.kill(process.pid, signal.SIGKILL)
    yield


REFUSED: dict[str, tuple[State, str]] = {
    "migration prepared": (migrating, "being migrated"),
    "migration executed": (migrated, "being migrated"),
    "mirrored, not primary": (not_primary, "not primary"),
    "object map lost": (without_its_object_map, "lost its object map"),
    "in the trash": (in_the_trash, "No such file"),
    "limit of snapshots reached": (at_its_limit_of_snapshots, "quota exceeded"),
    "locked with `rbd lock add`": (locked_by_hand, "Read-only file system"),
    "cluster full": (in_a_full_cluster, "took longer than 3 s"),
}
BACKED_UP: dict[str, State] = {
    "flattened": flattened_before,
    "being sparsified": sparsified_meanwhile,
    "being deep-copied": copied_meanwhile,
    "exclusive lock of a dead client": locked_by_the_dead,
}
OTHER = {"being flattened", "migration begins meanwhile", "target of a deep copy"}
ALWAYS = {"migration prepared", "mirrored, not primary", "object map lost", "flattened"}
IS_LONG = "BACKY_ROUNDS" in os.environ


def chosen(states: dict[str, object]) -> list[str]:
    return [name for name in states if IS_LONG or name in ALWAYS]


@pytest.mark.parametrize("name", chosen({**REFUSED}))
def test_a_backup_is_refused_with_the_reason_and_no_snapshot_changes(
    machine: Machine, name: str
) -> None:
    state, reason = REFUSED[name]
    machine.run()
    before = machine.points()
    machine.write("write -P 2 8M 64k")
    with state(machine):
        with ends(60), pytest.raises(SourceError, match=f"{machine.images['vda']}.*{reason}") as it:
            machine.run()
        assert name == "in the trash" or machine.points() == before
        if name.startswith("migration"):  # not even those that nobody needs
            with pytest.raises(SourceError, match=reason):
                machine.source().remove_all_except([])
            assert machine.points() == before
        if name == "object map lost":
            assert f"rbd object-map rebuild {machine.images['vda']}" in it.value.hint
    assert as_ceph_has_it(machine)
    assert len(machine.points()) == 1


@pytest.mark.parametrize("name", chosen({**BACKED_UP}))
def test_a_backup_in_this_state_is_right(machine: Machine, name: str) -> None:
    if name == "flattened":
        clone_of_new(machine)
    machine.run()
    with BACKED_UP[name](machine), ends(100):
        assert as_ceph_has_it(machine)
    assert as_ceph_has_it(machine)
    assert len(machine.points()) == 1


def test_a_backup_during_which_its_image_was_flattened_is_not_believed(machine: Machine) -> None:
    """Ceph 16.2 makes zeroes of what it was copying when the snapshot was taken."""
    clone_of_new(machine)
    with machine.snapshot() as snapshot:
        machine.ceph.rbd("flatten", "--no-progress", machine.images["vda"])
        with pytest.raises(SourceError, match=f"{machine.images['vda']} was flattened"):
            snapshot.warnings()
    assert machine.points() == []


def test_a_migration_that_begins_during_a_backup_loses_no_snapshot(machine: Machine) -> None:
    machine.run()
    image = machine.images["vda"]
    with machine.taken() as taken:
        machine.ceph.rbd("migration", "prepare", image)
        before = machine.points()
        with pytest.raises(SourceError, match="being migrated"), taken.open():
            pytest.fail("it was opened")
    assert machine.points() == before
    assert len(before) == 2
    machine.write("write -P 9 0 1M")
    machine.ceph.rbd("migration", "execute", "--no-progress", image)
    machine.ceph.rbd("migration", "commit", "--no-progress", image)
    assert as_ceph_has_it(machine)
    assert len(machine.points()) == 1


def test_an_image_that_is_read_cannot_begin_to_migrate(machine: Machine) -> None:
    """So a backup need not look for it after it has opened the image."""
    with machine.snapshot(), pytest.raises(RuntimeError, match="Device or resource busy"):
        machine.ceph.rbd("migration", "prepare", machine.images["vda"])


def test_images_whose_names_look_like_options_are_backed_up(ceph: Cluster, tmp_path: Path) -> None:
    ceph.ceph("osd", "pool", "create", "--", "-my pool", "8", "8")
    place = {"pool": "-my pool", "image": f'--id=x {unique("vm")}, "y"'}
    name = "/".join(place.values())
    words = [f"--{key}={value}" for key, value in place.items()]
    ceph.rbd("create", "--size", f"{MiB}B", *words)
    machine = Machine(ceph, tmp_path, {"vda": name}, settings={"disks": {"vda": place}})
    for _ in range(2):
        machine.run()
    [kept] = ceph.json("snap", "ls", *words)
    assert machine.last().id in kept["name"]
    machine.source().remove_all_except([])
    assert ceph.json("snap", "ls", *words) == []


def test_the_page_has_a_line_for_each_state_and_no_other() -> None:
    section = PAGE.read_text().partition("## Odd states\n")[2].partition("\n## ")[0]
    names = re.findall(r"(?m)^\| (.*?) \|", section)
    assert set(names[2:]) == {*REFUSED, *BACKED_UP, *OTHER}
