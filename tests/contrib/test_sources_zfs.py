"""Volumes of ZFS: streams in the form in which zstream prints them.

No test machine has ZFS in its kernel.  The lines are what `zstream dump -v` of OpenZFS 2.1 to 2.3
prints for each record (cmd/zstream/zstream_dump.c), with the numbers of the volume in the test.
"""

import json
from pathlib import Path
from random import Random

import pytest

from backy.model.revision import Consistency
from tests.contrib.test_sources import Chain, Taken, recorder, revision, say

BLOCK = 16 * 1024
BLOCKS = 64
SIZE = BLOCK * BLOCKS
HEAD = """BEGIN record
\thdrtype = 1
\tfeatures = 4
\tmagic = 2f5bacbac
\tcreation_time = 6743a0b1
\ttype = 3
\tflags = 0x4
\ttoguid = 8b5b6f3e4a7c9d21
\tfromguid = 3c1d7e9a5f2b4860
\ttoname = tank/vm1@backy
\tpayloadlen = 0

FREEOBJECTS firstobj = 0 numobjs = 1
OBJECT object = 1 type = 23 bonustype = 0 blksz = 16384 bonuslen = 0 dn_slots = 1 raw_bonuslen = 0 \
flags = 0 maxblkid = 0 indblkshift = 0 nlevels = 0 nblkptr = 0
"""
TAIL = """OBJECT object = 2 type = 24 bonustype = 0 blksz = 512 bonuslen = 0 dn_slots = 1 \
raw_bonuslen = 0 flags = 0 maxblkid = 0 indblkshift = 0 nlevels = 0 nblkptr = 0
FREE object = 2 offset = 512 length = -1
WRITE object = 2 type = 24 checksum type = 7 compression type = 0 flags = 0 offset = 0 \
logical_size = 512 compressed_size = 0 payload_size = 512 props = 0 salt = 0 iv = 0 mac = 0
FREEOBJECTS firstobj = 3 numobjs = 61
END checksum = 1c5e1b9b3/5fa1d8ee0a1/94f2f0ad7e7c0/9c2b1e1b0fa3d6
SUMMARY:
\tTotal DRR_BEGIN records = 1 (0 bytes)
"""


def write(block: int, compressed: int = 0) -> str:
    return (
        "WRITE object = 1 type = 23 checksum type = 7 compression type = "
        f"{15 if compressed else 0} flags = 0 offset = {block * BLOCK} logical_size = {BLOCK} "
        f"compressed_size = {compressed} payload_size = {compressed or BLOCK} props = f00080007 "
        "salt = 0000000000000000 iv = 000000000000000000000000 "
        "mac = 00000000000000000000000000000000\n"
    )


def embedded(block: int) -> str:
    return (
        f"WRITE_EMBEDDED object = 1 offset = {block * BLOCK} length = {BLOCK} "
        "toguid = 8b5b6f3e4a7c9d21 comp = 15 etype = 0 lsize = 16384 psize = 71\n"
    )


def free(block: int, length: int) -> str:
    return f"FREE object = 1 offset = {block * BLOCK} length = {length}\n"


class Volume:
    """tank/vm1, whose snapshots are files in `devices`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.devices = folder / "zvol"
        (self.devices / "tank").mkdir(parents=True)
        self.content = bytearray(Random(0).randbytes(SIZE))
        self.records = ""
        programs = folder / "bin"
        programs.mkdir()
        recorder(
            programs,
            "zfs",
            f'cd {self.devices}\necho "$@" >> {folder}/log\n'
            "case $1 in\n"
            f'snapshot) shift; for each; do cp {folder}/now "$each"; done ;;\n'
            'list) eval "last=\\${$#}"; ls -d "$last"@* 2>/dev/null || : ;;\n'
            f"get) echo {SIZE} ;;\n"
            f'send) test -e "tank/vm1$4"; cat {folder}/stream ;;\n'
            'destroy) rm "$2" ;;\n'
            "esac\n",
        )
        recorder(programs, "zstream", 'test "$*" = "dump -v"\ncat\n')
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        settings = {"volumes": {"vda": "tank/vm1"}, "devices": str(self.devices)}
        self.chain = Chain("zfs-zvol", **settings)

    def change(self, block: int, content: bytes, record: str) -> None:
        self.content[block * BLOCK : block * BLOCK + len(content)] = content
        self.records += record

    def backup(self, head: str = HEAD, tail: str = TAIL) -> Taken:
        (self.folder / "now").write_bytes(self.content)
        (self.folder / "stream").write_text(head + self.records + tail)
        self.records = ""
        return self.chain.backup()

    def snapshots(self) -> set[str]:
        return {path.name for path in (self.devices / "tank").iterdir()}


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    return Volume(tmp_path, monkeypatch)


def test_deltas_restore_to_what_each_snapshot_has(volume: Volume) -> None:
    noise = Random(1)
    volume.backup()
    for number in range(4):
        volume.change(number, noise.randbytes(BLOCK), write(number))
        volume.change(9, b"compressible" + bytes(BLOCK - 12), write(9, compressed=1024))
        volume.change(20 + number, bytes([number] * BLOCK), embedded(20 + number))
        volume.change(30, bytes(5 * BLOCK), free(30, 5 * BLOCK))
        volume.change(60, bytes(4 * BLOCK), free(60, -1))
        taken = volume.backup()
        assert taken.contents == {"vda": volume.content}
        assert taken.full_read_reasons == {}
        assert taken.data == {"vda": 3 * BLOCK}
        assert taken.same == {"vda": SIZE - 12 * BLOCK}
        assert taken.consistency is Consistency.CRASH
    assert volume.snapshots() == {f"vm1@backy-{revision(4, {}).id}"}


def test_what_was_freed_and_written_again_is_read(volume: Volume) -> None:
    volume.backup()
    volume.change(40, bytes(24 * BLOCK), free(40, -1))
    volume.change(50, b"x" * BLOCK, write(50))
    assert volume.backup().contents == {"vda": volume.content}


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ("", ""),
        (HEAD, TAIL.replace("END checksum", "")),
        (HEAD, f"REDACT object = 1 offset = 0 length = {BLOCK}\n{TAIL}"),
        (HEAD, f"WRITE_BYREF object = 1 checksum type = 7 props = 0 offset = 0\n{TAIL}"),
        (HEAD, f"WRITE object = 1 type = 23\n    offset = 0 logical_size = {BLOCK}\n{TAIL}"),
    ],
    ids=["nothing", "cut", "redacted", "by-reference", "another-form"],
)
def test_a_stream_that_is_not_understood_is_a_full_read(
    volume: Volume, head: str, tail: str
) -> None:
    volume.backup()
    volume.change(0, b"y" * BLOCK, "")
    taken = volume.backup(head, tail)
    assert set(taken.full_read_reasons) == {"vda"}
    assert taken.contents == {"vda": volume.content}


def test_a_parent_whose_snapshot_is_gone_is_read_in_full(volume: Volume) -> None:
    volume.backup()
    volume.chain.source.remove_all_except([])
    volume.change(3, b"z" * BLOCK, "")
    taken = volume.backup()
    assert "the snapshot of the parent does not exist" in taken.full_read_reasons["vda"]
    assert taken.contents == {"vda": volume.content}


def test_a_map_for_another_parent_is_refused(volume: Volume) -> None:
    volume.backup()
    settings = {"volumes": {"vda": "tank/vm1"}, "devices": str(volume.devices)}
    asked = {"revision": revision(0, {}).id, "parent": revision(7, {}).id, "disk": "vda"}
    ended = say("zfs-zvol", "extents", settings=settings, **asked)
    assert ended.returncode == 1
    assert ended.stdout == ""


def test_snapshots_of_others_stay(volume: Volume) -> None:
    foreign = {"vm1@daily", "vm1@backy-mine", f"vm10@backy-{revision(0, {}).id}"}
    for name in foreign:
        (volume.devices / "tank" / name).touch()
    volume.backup()
    volume.backup()
    assert volume.snapshots() == {*foreign, f"vm1@backy-{revision(1, {}).id}"}


def test_volumes_of_one_pool_are_taken_at_once(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "now").write_bytes(volume.content)
    new = revision(0, {}).id
    ended = say(
        "zfs-zvol", "snapshot", revision=new, parent=None, is_frozen=False,
        settings={"volumes": {"a": "tank/a", "b": "tank/b"}, "devices": str(volume.devices)},
    )  # fmt: skip
    assert json.loads(ended.stdout)["consistency"] == "crash"
    assert f"snapshot tank/a@backy-{new} tank/b@backy-{new}" in (tmp_path / "log").read_text()
