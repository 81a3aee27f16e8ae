"""Thin volumes: the real thin_delta on metadata that the real thin_restore made.

The kernel of a test machine may have no device mapper, so lvcreate, lvs, lvremove and dmsetup are
programs of the test. They keep a pool as LVM does: volumes by name, with a number and mappings.
"""

import json
import subprocess
from pathlib import Path
from random import Random
from xml.etree import ElementTree as ET

import pytest

from backy.model.revision import Consistency
from tests.contrib.test_sources import Chain, Taken, recorder, revision, say

BLOCK = 64 * 1024
BLOCKS = 32
SIZE = BLOCKS * BLOCK - 4096  # the last block of the pool is larger than what the volume has of it


class Pool:
    """A pool with the volume vg-0/vm1: each volume maps its blocks to blocks of `data`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.data: list[bytes] = []
        self.log = folder / "log"
        programs = folder / "bin"
        programs.mkdir()
        (folder / "dev").mkdir()
        self.state = folder / "volumes.json"
        self.save({"vm1": {"id": 1, "origin": "", "map": {}}})
        log = f'echo "$(basename "$0")" "$@" >> {self.log}\n'
        here = f"import json, sys; path = {str(self.state)!r}; v = json.load(open(path))\n"
        end = "json.dump(v, open(path, 'w'))\n"
        create = (
            "new = sys.argv[-2]; old = sys.argv[-1].split('/')[1]\n"
            "v[new] = {'id': max(e['id'] for e in v.values()) + 1, 'origin': old,"
            " 'map': dict(v[old]['map'])}\n"
        )
        remove = "del v[sys.argv[-1].split('/')[1]]\n"
        for name, code in (("lvcreate", create), ("lvremove", remove)):
            (folder / f"{name}.py").write_text(here + code + end)
            recorder(programs, name, f'{log}exec python3 {folder}/{name}.py "$@"\n')
        show = (
            "fields, what = sys.argv[-2].split(','), sys.argv[-1].partition('/')[2]\n"
            f"facts = lambda n: dict(lv_name=n, origin=v[n]['origin'], lv_size={SIZE},"
            " pool_lv='p-1', thin_id=v[n]['id'])\n"
            "what in v or not what or sys.exit('  Failed to find logical volume')\n"
            "[print('  ' + '|'.join(str(facts(n)[f]) for f in fields))"
            " for n in v if what in ('', n)]\n"
        )
        (folder / "lvs.py").write_text(here + show)
        recorder(programs, "lvs", f'exec python3 {folder}/lvs.py "$@"\n')
        recorder(programs, "dmsetup", log)
        real = subprocess.run(
            ["which", "thin_delta"], check=True, capture_output=True, text=True
        ).stdout.strip()
        # The real one, on metadata that are a file.
        delta = f'{log}for last; do :; done; [ "$last" = /dev/mapper/vg--0-p--1_tmeta ]\n'
        recorder(
            programs, "thin_delta", f'{delta}shift\nexec {real} "$1" "$2" "$3" "$4" {folder}/meta\n'
        )
        monkeypatch.setenv("PATH", f"{programs}:/usr/sbin:/usr/bin:/bin")

    def load(self) -> dict[str, dict[str, object]]:
        loaded: dict[str, dict[str, object]] = json.loads(self.state.read_text())
        return loaded

    def save(self, volumes: dict[str, dict[str, object]]) -> None:
        self.state.write_text(json.dumps(volumes))

    def change(self, seed: int) -> None:
        """Write to some blocks of vm1 and discard others."""
        noise, volumes = Random(seed), self.load()
        mapped = volumes["vm1"]["map"]
        assert isinstance(mapped, dict)
        for block in noise.sample(range(BLOCKS), 5):
            mapped[str(block)] = len(self.data)
            self.data.append(noise.randbytes(BLOCK))
        for block in noise.sample(sorted(mapped), 2):
            del mapped[block]
        self.save(volumes)

    def content(self, name: str = "vm1") -> bytes:
        mapped = self.load()[name]["map"]
        assert isinstance(mapped, dict)
        blocks = [
            self.data[mapped[str(block)]] if str(block) in mapped else bytes(BLOCK)
            for block in range(BLOCKS)
        ]
        return b"".join(blocks)[:SIZE]

    def write_metadata(self, volumes: dict[str, dict[str, object]]) -> None:
        """Make what the pool's metadata device has of these volumes."""
        root = ET.Element(
            "superblock", uuid="", time="9", transaction="9", flags="0", version="2",
            data_block_size=str(BLOCK // 512), nr_data_blocks="4096",
        )  # fmt: skip
        for volume in volumes.values():
            mapped = volume["map"]
            assert isinstance(mapped, dict)
            device = ET.SubElement(
                root, "device", dev_id=str(volume["id"]), mapped_blocks=str(len(mapped)),
                transaction="0", creation_time="0", snap_time="0",
            )  # fmt: skip
            for block in sorted(mapped, key=int):
                ET.SubElement(
                    device, "single_mapping", origin_block=block, data_block=str(mapped[block]),
                    time="0",
                )  # fmt: skip
        text = self.folder / "metadata.xml"
        text.write_bytes(ET.tostring(root))
        metadata = self.folder / "meta"
        metadata.write_bytes(bytes(4 * 1024 * 1024))
        subprocess.run(
            ["thin_restore", "-i", text, "-o", metadata], check=True, stdout=subprocess.DEVNULL
        )


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    return Pool(tmp_path, monkeypatch)


def chain_of(pool: Pool) -> Chain:
    return Chain("lvm-thin", volumes={"vda": "vg-0/vm1"}, devices=str(pool.folder / "dev"))


def backup(chain: Chain, pool: Pool, *, is_kept: bool = True) -> Taken:
    """Back up what vm1 has now; its snapshot's device is there as soon as it is made."""
    name = f"vm1-backy-{revision(len(chain.taken), {}).id}"
    device = pool.folder / "dev" / "vg-0" / name
    device.parent.mkdir(exist_ok=True)
    device.write_bytes(pool.content())
    # What the metadata have when the changes are asked for, which is after lvcreate.
    volumes = pool.load()
    number = max(int(str(each["id"])) for each in volumes.values()) + 1
    pool.write_metadata(volumes | {name: volumes["vm1"] | {"id": number}})
    return chain.backup(is_kept=is_kept)


def test_deltas_restore_to_what_each_snapshot_has(pool: Pool) -> None:
    chain = chain_of(pool)
    for number in range(6):
        pool.change(number)
        taken = backup(chain, pool)
        assert taken.contents == {"vda": pool.content()}
        assert taken.full_read_reasons == {}
        assert taken.consistency is Consistency.CRASH
        if number:
            assert taken.same["vda"] >= SIZE // 2
    assert set(pool.load()) == {"vm1", f"vm1-backy-{revision(5, {}).id}"}


def test_the_metadata_are_given_back(pool: Pool) -> None:
    chain = chain_of(pool)
    backup(chain, pool)
    backup(chain, pool)
    messages = [line for line in pool.log.read_text().splitlines() if line.startswith("dmsetup")]
    assert messages == [
        "dmsetup message vg--0-p--1-tpool 0 reserve_metadata_snap",
        "dmsetup message vg--0-p--1-tpool 0 release_metadata_snap",
    ]


def test_a_parent_whose_snapshot_is_gone_is_read_in_full(pool: Pool) -> None:
    chain = chain_of(pool)
    pool.change(0)
    backup(chain, pool)
    pool.save({"vm1": pool.load()["vm1"]})
    taken = backup(chain, pool)
    assert "the snapshot of the parent does not exist" in taken.full_read_reasons["vda"]
    assert taken.contents == {"vda": pool.content()}
    assert taken.same == {"vda": 0}


def test_a_map_for_another_parent_is_refused(pool: Pool) -> None:
    backup(chain_of(pool), pool)
    asked = {"revision": revision(0, {}).id, "parent": revision(7, {}).id, "disk": "vda"}
    ended = say("lvm-thin", "extents", settings={"volumes": {"vda": "vg-0/vm1"}}, **asked)
    assert ended.returncode == 1
    assert ended.stdout == ""


def test_a_failed_backup_leaves_the_parent_for_the_next(pool: Pool) -> None:
    chain = chain_of(pool)
    pool.change(0)
    backup(chain, pool)
    pool.change(1)
    backup(chain, pool, is_kept=False)
    assert set(pool.load()) == {"vm1", f"vm1-backy-{revision(0, {}).id}"}
    taken = backup(chain, pool)
    assert taken.full_read_reasons == {}
    assert taken.contents == {"vda": pool.content()}


def test_release_removes_our_snapshots_of_this_volume_and_no_others(pool: Pool) -> None:
    foreign = f"vm1-backy-{revision(9, {}).id}"
    volumes: dict[str, dict[str, object]] = {
        foreign: {"id": 90, "origin": "vm2", "map": {}},
        "vm1-backy-mine": {"id": 91, "origin": "vm1", "map": {}},
        "vm1-before-upgrade": {"id": 92, "origin": "vm1", "map": {}},
    }
    kept, old = (f"vm1-backy-{revision(number, {}).id}" for number in (2, 1))
    ours: dict[str, dict[str, object]] = {
        kept: {"id": 93, "origin": "vm1", "map": {}},
        old: {"id": 94, "origin": "vm1", "map": {}},
    }
    pool.save(pool.load() | volumes | ours)
    chain_of(pool).source.remove_all_except([revision(2, {}).id])
    assert set(pool.load()) == {"vm1", kept, *volumes}


@pytest.mark.parametrize(
    ("is_frozen", "expected"), [(False, Consistency.NONE), (True, Consistency.CRASH)]
)
def test_two_volumes_are_one_point_in_time_only_while_the_guest_is_frozen(
    pool: Pool, is_frozen: bool, expected: Consistency
) -> None:
    new = revision(0, {}).id
    (pool.folder / "dev" / "vg-0").mkdir()
    for volume in ("vm1", "vm2"):
        (pool.folder / "dev" / "vg-0" / f"{volume}-backy-{new}").write_bytes(bytes(SIZE))
    pool.save(pool.load() | {"vm2": {"id": 2, "origin": "", "map": {}}})
    volumes = {"vda": "vg-0/vm1", "vdb": "vg-0/vm2"}
    chain = Chain("lvm-thin", volumes=volumes, devices=str(pool.folder / "dev"))
    assert chain.backup(is_frozen=is_frozen).consistency is expected
