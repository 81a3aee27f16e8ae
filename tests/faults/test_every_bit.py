"""Whatever happens to a file of a repository, restores give what they gave, or it is found.

A failure names its case; run it again with `make test ARGS="tests/faults/test_every_bit.py -n 0"`,
with BACKY_SEED and BACKY_FLIPS as they were. BACKY_FLIPS=1000 flips a bit in every byte of small
files, and in so many of the others.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backy.system import files
from tests.faults.damages import (
    BREAKS,
    JOB,
    TWICE,
    Damage,
    Place,
    Said,
    Whole,
    broken,
    flip,
    flips,
    in_all_copies,
    kind_of,
    older,
    run,
    swapped,
)
from tests.lab.indexes import bad_lists
from tests.lab.repositories import BLOCK

SEED = int(os.environ.get("BACKY_SEED", "1"))
FLIPS = int(os.environ.get("BACKY_FLIPS", "1"))  # in a file
MANY = 2 * FLIPS if FLIPS > 1 else 1  # files of a kind break in each way
MOST = 1000  # flips in a file; smaller files have one in each byte
STORES = ["chunks", "images"]
Disk = tuple[str, str]  # a revision and its disk


@pytest.fixture(params=STORES)
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Whole:
    """The repository in each of both stores."""
    name: str = request.param
    return Whole(tmp_path if name == "chunks" else request.getfixturevalue("reflink_folder"), name)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where disks are restored to."""
    return tmp_path / "restored.img"


class Case:
    """A copy of a repository that was damaged, and what must be said of it."""

    def __init__(self, whole: Whole, damage: Damage, target: Path, draw: random.Random) -> None:
        self._draw = draw
        self.whole = whole
        self.damage = damage
        self.base = whole.copy()
        damage.strike(self.base / JOB)
        self._target = target
        self.by_block = damage.kind == "chunk" or (damage.kind == "image" and not damage.whole)
        self.healed = {
            each
            for each in damage.places
            if self.by_block and (whole.is_zero(each) or whole.copies(each) - damage.places)
        }
        if damage.kind == "page" and (whole.store == "images" or whole.are_zero(damage.places)):
            self.healed = set(damage.places)
        self.lost = set(damage.places) - self.healed

    def verify(self) -> tuple[Said, set[Place], set[Place]]:
        """What verify says, with the places that it calls lost and healed."""
        said = run(self.base, "verify", JOB)
        found: tuple[set[Place], set[Place]] = (set(), set())
        for each in said.events:
            if each["event"] == "damage" and each["revision"] not in self._without_record():
                found[bool(each["healed"])].update(self._places(each))
        return said, *found

    def _places(self, event: dict[str, Any]) -> set[Place]:
        revision, disk = event["revision"], event["disk"]
        end = event["start"] + event["length"]
        assert not event["start"] % BLOCK
        assert not end % BLOCK or end == len(self.whole.contents[revision][disk])
        return {(revision, disk, n) for n in range(event["start"] // BLOCK, -(-end // BLOCK))}

    def _without_record(self) -> set[str]:
        return self.damage.revisions if self.damage.kind == "revision.json" else set()

    def restore(self, disk: Disk) -> tuple[Said, bytes | None]:
        """What restore says, and what it made."""
        revision, name = disk
        said = run(self.base, "restore", JOB, self._target, "-r", revision, "--disk", name)
        content = self._target.read_bytes() if self._target.exists() else None
        self._target.unlink(missing_ok=True)
        return said, content

    def failing(self, may_fail: Callable[[Disk], bool]) -> set[Disk]:
        """The disks that restore refuses, and says why; others come back as they were.

        One other stands for all unless this is a long run.
        """
        failed = set()
        concerned = disks_of(set(self.damage.places))
        if self.damage.kind in TWICE:
            concerned.update(*(disks_of(self.whole.listed(file)) for file in self.damage.files))
        others = [each for each in self.whole.lines if each not in concerned and not may_fail(each)]
        passed = others if FLIPS > 1 else self._draw.sample(others, min(1, len(others)))
        for disk in {*self.whole.lines} - {*others} | {*passed}:
            said, content = self.restore(disk)
            if said.code:
                assert content is None
                assert may_fail(disk), said
                self._is_explained(disk, said)
                failed.add(disk)
            else:
                assert content == self.whole.contents[disk[0]][disk[1]], disk
        return failed

    def _is_explained(self, disk: Disk, said: Said) -> None:
        """A refusal has the right exit code, and names what is damaged."""
        if self.damage.kind == "repository.json":
            assert said.code == 3, said
            assert "repository.json" in said.error
            return
        assert said.code == 6, said
        assert disk[0] in said.error
        if self.damage.kind != "revision.json":
            assert disk[1] in said.error
            starts = [number * BLOCK for *of, number in self.damage.places if tuple(of) == disk]
            names = [f"byte {start})" for start in starts]
            names += [f"bytes {start} to " for start in starts] if self.by_block else []
            assert any(each in said.error for each in (*names, *self.damage.files)), said

    def trust(self) -> dict[str, str]:
        """What each revision says of itself now."""
        return {each: self._record(each)["trust"] for each in self.whole.ids}

    def recorded(self) -> set[Place]:
        """What the revisions remember as damaged."""
        return {
            place
            for each in self.whole.ids
            for disk, ranges in self._record(each)["damaged"].items()
            for start, length in ranges
            for place in self._places(
                {"revision": each, "disk": disk, "start": start, "length": length}
            )
        }

    def _record(self, revision: str) -> dict[str, Any]:
        path = self.base / JOB / f"revisions/{revision}/revision.json"
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    def is_reported(self, lost: set[Place], healed: set[Place]) -> None:
        """There are reports for these places, and for no other revision."""
        [said] = run(self.base, "reports", JOB).events
        new = [each for each in said["reports"] if each["digest"] != "ab" * 32]
        for places, reports in (
            (lost, [each for each in new if not each["healed"]]),
            (healed, [each for each in new if each["healed"]]),
        ):
            assert {self.whole.line(place) for place in places} == {
                each["digest"] for each in reports
            }
            assert {place[0] for place in places} == {
                revision for each in reports for revision in each["revisions"]
            }


def disks_of(places: set[Place]) -> set[Disk]:
    return {(revision, disk) for revision, disk, _ in places}


def verify_first(case: Case) -> None:
    """Verify finds exactly what is damaged, and restore agrees."""
    said, lost, healed = case.verify()
    kind = case.damage.kind
    if kind == "repository.json":
        check_settings(case, said)
    elif kind == "revision.json":
        check_record(case, said, lost)
    elif kind == "status":
        assert said.code == 0 or (said.code == 5 and "status.json" in said.error), said
        assert case.failing(lambda _: False) == set()
    elif kind in {"restore.sh", "optional"}:
        assert (said.code, lost, healed) == (0, set(), set()), said
        check_script(case, said)
        assert case.failing(lambda _: False) == set()
    elif kind in TWICE and not case.damage.places:
        check_mended(case, said, lost, healed)
    elif said.code == 0 and not healed:
        # Nothing that anybody reads has changed; zstd ignores one bit of a frame's header.
        assert kind == "chunk", said
        assert case.whole.is_right_by_hand(case.base, set())
        assert case.failing(lambda _: False) == set()
    else:
        check_blocks(case, said, lost, healed)


def check_blocks(case: Case, said: Said, lost: set[Place], healed: set[Place]) -> None:
    assert (lost, healed) == (case.lost, case.healed), said
    assert said.code == (6 if lost else 0)
    revisions = {place[0] for place in lost}
    expected = dict.fromkeys(case.whole.ids, "verified") | dict.fromkeys(revisions, "distrusted")
    assert case.trust() == expected
    assert case.recorded() == lost
    if case.by_block:
        case.is_reported(lost, healed)
    assert case.whole.is_right_by_hand(case.base, lost)
    assert case.failing(lambda disk: disk in disks_of(lost)) == disks_of(lost)


def check_mended(case: Case, said: Said, lost: set[Place], healed: set[Place]) -> None:
    """The other copy was good: nothing is damaged, and both copies are as they were."""
    assert (said.code, lost, healed) == (0, set(), set()), said
    assert all(file in said.warned() for file in case.damage.files), said
    assert bad_lists(case.base / JOB) == set()
    assert case.whole.is_right_by_hand(case.base, set())
    assert case.failing(lambda _: False) == set()


def check_settings(case: Case, said: Said) -> None:
    assert said.code in {0, 3}, said
    if said.code:
        assert "repository.json" in said.error
    failed = case.failing(lambda _: bool(said.code))
    assert bool(failed) == bool(said.code)


def check_record(case: Case, said: Said, lost: set[Place]) -> None:
    """Other revisions are never called damaged for it."""
    assert said.code in {0, 6}, said
    assert lost == set(), said
    named = [each["revision"] for each in said.events if each["event"] == "damage"]
    assert set(named) <= case.damage.revisions
    if said.code and not named:
        assert all(file in said.warned() for file in case.damage.files), said
    case.failing(lambda disk: bool(said.code) and disk[0] in case.damage.revisions)
    assert case.whole.is_right_by_hand(case.base, set())


def check_script(case: Case, said: Said) -> None:
    path = case.base / JOB / "restore.sh"
    if case.damage.kind == "restore.sh":
        assert "restore.sh" in said.warned()
    if not path.is_dir():  # such a thing is only complained of
        assert path.read_bytes() == (case.whole.root / "restore.sh").read_bytes()
        assert path.stat().st_mode & 0o777 == 0o755


def restore_first(case: Case) -> None:
    """Restore finds what is damaged without verify, and verify agrees."""
    kind = case.damage.kind
    failed = case.failing(lambda disk: may_fail(case, disk))
    if kind in {"chunk", "image", *TWICE}:
        if kind == "chunk" and not failed:
            assert case.whole.is_right_by_hand(case.base, set())
            return
        assert failed == disks_of(case.lost)
    if case.by_block:
        recorded = case.recorded()
        distrusted = {each for each, trust in case.trust().items() if trust == "distrusted"}
        assert distrusted == {place[0] for place in recorded}
        if len({case.whole.line(place) for place in case.lost}) > 1:
            # A restore ends with the first that it finds.
            assert recorded <= case.lost
            assert disks_of(recorded) == failed
        else:
            assert recorded == case.lost
            case.is_reported(case.lost, case.healed)
        assert case.whole.is_right_by_hand(case.base, case.lost)
    said, _, _ = case.verify()
    if kind in TWICE and not case.lost:
        assert bad_lists(case.base / JOB) == set()
    if kind == "restore.sh":
        check_script(case, said)
    if failed:
        assert said.code == (3 if kind == "repository.json" else 6), said


def may_fail(case: Case, disk: Disk) -> bool:
    if case.damage.kind == "repository.json":
        return True
    is_in_record = case.damage.kind == "revision.json" and disk[0] in case.damage.revisions
    return is_in_record or disk in disks_of(case.lost)


def judge(whole: Whole, damages: Sequence[Damage], target: Path, draw: random.Random) -> list[str]:
    """What is wrong. In half of the cases verify comes first, in the other half restore."""
    wrong = []
    for number, damage in enumerate(damages, start=draw.randrange(2)):
        first = (verify_first, restore_first)[number % 2]
        try:
            first(Case(whole, damage, target, draw))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other cases are judged, too
            files = ", ".join(whole.label(file) for file in damage.files)
            case = f"{whole.store} {files}: {damage.what}; {first.__name__}, BACKY_SEED={SEED}"
            wrong.append(f"{case}: {error!r}")
    return wrong


def test_a_flipped_bit_changes_nothing_that_is_restored_or_is_found(
    whole: Whole, target: Path
) -> None:
    wrong = []
    count = 0
    for file in whole.files():
        draw = random.Random(f"{SEED} {whole.store} {whole.label(file)}")
        damages = list(flips(whole, file, min(FLIPS, MOST), draw))
        damages += of_all_copies(whole, damages)
        wrong += judge(whole, damages, target, draw)
        count += len(damages)
    print(f"{whole.store}, seed {SEED}: {count} bits flipped")  # noqa: T201 - for soak
    assert not wrong, "\n\n".join(wrong)


def of_all_copies(whole: Whole, damages: Sequence[Damage]) -> list[Damage]:
    """The damages of indexes and pages, in all copies."""
    return [in_all_copies(whole, each) for each in damages if each.kind in {"index", "page"}]


DAMAGES: dict[str, Callable[[Whole, str], Damage]] = {
    **{how: partial(broken, how=how) for how in BREAKS},
    "older": older,
    "swapped": swapped,
}
COMES_ONCE = {"repository.json", "restore.sh", "status", "optional"}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_file_that_is_not_what_it_was_changes_nothing_that_is_restored_or_is_found(
    whole: Whole, target: Path, how: str
) -> None:
    kinds: dict[str, list[str]] = {}
    for file in whole.files():
        kinds.setdefault(kind_of(file), []).append(file)
    wrong = []
    for kind, found in kinds.items():
        if how != "swapped" or kind not in COMES_ONCE:
            draw = random.Random(f"{SEED} {whole.store} {how} {kind}")
            # What can be healed of an image depends on which one it is.
            count = MANY if kind != "image" or how in BREAKS else len(found)
            some = draw.sample(found, min(count, len(found)))
            damages = [DAMAGES[how](whole, file) for file in some]
            if how != "swapped":
                damages += of_all_copies(whole, damages)
            wrong += judge(whole, damages, target, draw)
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("whole", ["chunks"], indirect=True)
@pytest.mark.parametrize("how", ["missing", "half", "pipe"])
def test_the_latest_revision_is_never_quietly_an_older_one(
    whole: Whole, target: Path, how: str
) -> None:
    base = whole.copy()
    BREAKS[how](base / JOB / f"revisions/{whole.ids[-1]}/revision.json")
    said = run(base, "restore", JOB, target, "--disk", "vda")
    assert said.code == 6
    assert whole.ids[-1] in said.error
    assert not target.exists()
    assert run(base, "restore", JOB, target, "--disk", "vda", "-r", whole.ids[-2]).code == 0


@pytest.mark.parametrize("whole", ["chunks"], indirect=True)
@pytest.mark.parametrize("position", [0, -1], ids=["oldest", "newest"])
def test_a_record_with_another_size_is_found_and_nothing_is_said_of_other_revisions(
    whole: Whole, position: int
) -> None:
    base, revision = whole.copy(), whole.ids[position]
    path = base / JOB / f"revisions/{revision}/revision.json"
    size = len(whole.contents[revision]["vda"])
    path.write_text(path.read_text().replace(f'"size": {size}', f'"size": {size - 1}'))
    said = run(base, "verify", JOB)
    assert said.code == 6
    found = {each["revision"] for each in said.events if each["event"] == "damage"}
    assert found == {revision}


@pytest.mark.parametrize("whole", ["chunks"], indirect=True)
def test_a_disk_whose_name_changed_in_the_record_is_known_by_that_name_only(
    whole: Whole, target: Path
) -> None:
    base, revision = whole.copy(), whole.ids[-1]
    path = base / JOB / f"revisions/{revision}/revision.json"
    path.write_text(path.read_text().replace('"vdc"', '"vdb"'))
    restore = ("restore", JOB, target, "-r", revision, "--disk")
    assert run(base, *restore, "vdc").code == 6
    said = run(base, "verify", JOB)  # the twin of its index is not named after the disk
    assert said.code == 0
    assert "vdb.blocks" in said.warned()
    assert run(base, *restore, "vdc").code == 6
    assert run(base, *restore, "vdb").code == 0
    assert target.read_bytes() == whole.contents[revision]["vdc"]


@pytest.mark.parametrize("whole", ["chunks"], indirect=True)
@pytest.mark.parametrize("command", ["verify", "restore"])
def test_a_store_that_changed_its_name_is_told_with_the_file_that_says_so(
    whole: Whole, target: Path, command: str
) -> None:
    base = whole.copy()
    path = base / JOB / "repository.json"
    path.write_text(path.read_text().replace('"chunks"', '"chunkS"'))
    said = run(base, command, JOB, *[target][: command == "restore"])
    assert said.code == 3
    assert "repository.json" in said.error


def test_a_bit_that_flips_below_what_revisions_share_is_named_with_each_of_them(
    target: Path, own_reflink_folder: Path
) -> None:
    whole = Whole(own_reflink_folder, "images")
    # All revisions have it, nobody ever wrote to it again, and nothing else is alike.
    number = next(
        n
        for _, disk, n in whole.places()
        if disk == "vda"
        and not whole.is_zero((whole.ids[0], disk, n))
        and whole.named(whole.line((whole.ids[0], disk, n)))
        == {(each, disk, n) for each in whole.ids}
    )
    images = [whole.root / f"revisions/{each}/vda.img" for each in whole.ids]
    os.sync()
    [physical] = {place(path, number * BLOCK) for path in images}
    flip(own_reflink_folder.parent / "device", physical + 5)
    for path in images:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    base = whole.root.parent
    said = run(base, "verify", JOB)
    assert said.code == 6
    found = [each for each in said.events if each["event"] == "damage"]
    assert [(each["revision"], each["start"], each["length"]) for each in found] == [
        (each, number * BLOCK, len(whole.contents[each]["vda"][number * BLOCK :][:BLOCK]))
        for each in whole.ids
    ]
    for each in whole.ids:
        assert run(base, "restore", JOB, target, "-r", each, "--disk", "vda").code == 6


def place(path: Path, offset: int) -> int:
    """Where the medium has a byte of a file."""
    with files.open_to_read(path) as file:
        [(_, _, physical), *_] = file.physical_extents(offset, BLOCK)
    assert physical is not None
    return physical


@pytest.mark.parametrize("whole", ["images"], indirect=True)
def test_what_was_overwritten_a_moment_ago_is_found_before_it_is_written_back(
    whole: Whole,
) -> None:
    base, newest = whole.copy(), whole.ids[-1]
    os.sync()
    with (base / JOB / f"revisions/{newest}/vda.img").open("r+b") as file:
        file.seek(BLOCK)
        file.write(b"overwritten")
    said = run(base, "verify", JOB)
    found = [each for each in said.events if each["event"] == "damage"]
    assert [(each["revision"], each["start"]) for each in found] == [(newest, BLOCK)]
    assert found[0]["healed"]
