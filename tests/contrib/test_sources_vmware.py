"""VMware's changed block tracking, in the shape of what QueryChangedDiskAreas answers."""

import json
from pathlib import Path
from random import Random

import pytest

from backy.model.revision import Consistency
from tests.contrib.test_sources import Chain, Taken, revision, say

MIB = 1024**2
SIZE = 8 * MIB
ID = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b 0e 5d bf 07/{}"


class Export:
    """What the program that talks to VMware leaves: a flat disk, and the answers about it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flat, self.changes = folder / "vm1-flat.vmdk", folder / "vda.json"
        self.content = bytearray(Random(0).randbytes(SIZE))
        self.areas: list[dict[str, int]] = []
        disks = {"vda": {"flat": str(self.flat), "changes": str(self.changes)}}
        self.settings = {"state": str(folder / "state"), "disks": disks, "consistency": "crash"}
        self.chain = Chain("vmware-cbt", **self.settings)
        self.number = 0

    def write(self, offset: int, content: bytes) -> None:
        """Areas are in blocks of 64 KiB, as VMware tells them."""
        self.content[offset : offset + len(content)] = content
        start = offset - offset % 65536
        end = offset + len(content)
        self.areas.append({"start": start, "length": end + -end % 65536 - start})

    def say(self, since: str | None = None, answers: list[dict[str, object]] | None = None) -> None:
        """Export the next snapshot, with the changes since the one before or another."""
        self.flat.write_bytes(self.content)
        default = [{"startOffset": 0, "length": SIZE, "changedArea": self.areas}]
        said = {
            "changeId": ID.format(self.number),
            "since": since or ID.format(self.number - 1),
            "answers": default if answers is None else answers,
        }
        self.changes.write_text(json.dumps(said))
        self.number += 1
        self.areas = []

    def backup(self) -> Taken:
        return self.chain.backup()


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return Export(tmp_path)


def test_deltas_restore_to_what_each_snapshot_has(export: Export) -> None:
    export.say(since="*")
    assert export.backup().contents == {"vda": export.content}
    for number in range(4):
        export.write(number * MIB + 12_345, bytes([number] * 100_000))
        export.write(7 * MIB, b"end")
        export.say()
        taken = export.backup()
        assert taken.contents == {"vda": export.content}
        assert taken.full_read_reasons == {}
        assert taken.data == {"vda": 3 * 65536}
        assert taken.consistency is Consistency.CRASH
    assert [path.name for path in (export.folder / "state").iterdir()] == [revision(4, {}).id]


@pytest.mark.parametrize(
    "since", ["*", ID.format(7), "53 00 00 00/0"], ids=["all", "later", "another-disk"]
)
def test_changes_since_another_snapshot_are_refused(export: Export, since: str) -> None:
    export.say(since="*")
    export.backup()
    export.write(MIB, b"changed")
    export.say(since=since)
    taken = export.backup()
    assert "the changes are since" in taken.full_read_reasons["vda"]
    assert taken.contents == {"vda": export.content}
    assert taken.same == {"vda": 0}


def test_a_failed_backup_does_not_move_the_base(export: Export) -> None:
    """The other program asked since the snapshot of the failed one: that is not the parent's."""
    export.say(since="*")
    export.backup()
    export.write(MIB, b"changed")
    export.say()
    export.chain.backup(is_kept=False)
    export.say()
    taken = export.backup()
    assert "the changes are since" in taken.full_read_reasons["vda"]
    assert taken.contents == {"vda": export.content}


def test_answers_in_pieces_are_put_together(export: Export) -> None:
    export.say(since="*")
    export.backup()
    export.write(MIB, b"first")
    export.write(6 * MIB, b"second")
    first, second = export.areas
    pieces: list[dict[str, object]] = [
        {"startOffset": 5 * MIB, "length": 3 * MIB, "changedArea": [second]},
        {"startOffset": 0, "length": 5 * MIB, "changedArea": [first]},
    ]
    export.say(answers=pieces)
    taken = export.backup()
    assert taken.full_read_reasons == {}
    assert taken.contents == {"vda": export.content}


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [{"startOffset": 0, "length": SIZE - 512}],
        [{"startOffset": 512, "length": SIZE - 512}],
        [{"startOffset": 0, "length": MIB}, {"startOffset": 2 * MIB, "length": 6 * MIB}],
    ],
    ids=["none", "cut", "late", "a-gap"],
)
def test_answers_that_do_not_cover_the_disk_are_refused(
    export: Export, pieces: list[dict[str, object]]
) -> None:
    export.say(since="*")
    export.backup()
    export.write(SIZE - 600, b"lost")
    export.say(answers=pieces)
    taken = export.backup()
    assert set(taken.full_read_reasons) == {"vda"}
    assert taken.contents == {"vda": export.content}


def test_a_map_for_another_parent_is_refused(export: Export) -> None:
    export.say(since="*")
    export.backup()
    asked = {"revision": revision(0, {}).id, "parent": revision(7, {}).id, "disk": "vda"}
    ended = say("vmware-cbt", "extents", settings=export.settings, **asked)
    assert ended.returncode == 1
    assert ended.stdout == ""
