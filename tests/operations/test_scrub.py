"""Every stored block is read within the promised time, a share at each run."""

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.errors import BusyError
from backy.image.progress import Watcher
from backy.model.revision import Trust, id_for, time_of
from backy.operations import scrub
from backy.operations.heal import Damage
from backy.operations.origin import LiveSource
from backy.operations.scrub import (
    Coverage,
    Limits,
    Scrub,
    Slice,
    SliceRead,
    coverage,
    longest_ago,
    plan,
)
from backy.operations.verify import verify
from backy.repository.create import create
from backy.repository.records import Settings
from backy.system import signals
from backy.system.folders import locked
from backy.units import GiB, KiB, MiB
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import changed, sample

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MONTH = timedelta(days=30)
DISK = sample(BLOCK) + sample(BLOCK, seed=1) + bytes(2 * BLOCK) + sample(BLOCK, seed=2)


def days(count: float) -> datetime:
    """So many days before now."""
    return NOW - timedelta(days=count)


def made_at(when: datetime) -> str:
    return id_for(when, "aaaa")


OLD, NEW = made_at(days(40)), made_at(days(1))


@pytest.fixture(params=["chunks", "images"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    if request.param == "chunks":
        return Made(tmp_path)
    return Made(request.getfixturevalue("reflink_folder"), "images")


def run(made: Made, within: timedelta = MONTH, **limits: object) -> tuple[Scrub, list[Damage]]:
    one = Scrub(made.repository, within)
    return one, list(one.run(Limits(**limits), origins=[LiveSource(made.repository)]))  # type: ignore[arg-type]


def flip(made: Made, number: int) -> None:
    """Change a stored byte of a block of the newest revision."""
    revision = made.repository.history().revisions[-1]
    if made.store == "chunks":
        path, offset = made.chunk(revision, number), 100
    else:
        path, offset = made.repository.store.plain_path(revision, "vda").path, number * BLOCK + 100
    with path.open("r+b") as file:
        [byte] = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)


class TestPlan:
    def test_slices_that_were_never_read_come_before_those_read_long_ago(self) -> None:
        known = {"vda": [Slice(days(29), NEW, 1), Slice(), Slice(days(31), NEW, 1)]}
        assert plan(known, {"vda": NEW}, NOW, MONTH) == [
            SliceRead("vda", 1),
            SliceRead("vda", 2),
            SliceRead("vda", 0),
        ]

    def test_what_new_revisions_brought_comes_before_all_else(self) -> None:
        known = {"vda": [Slice(days(29), NEW, 1)], "vdb": [Slice(days(2), OLD, 1)]}
        assert plan(known, {"vda": NEW, "vdb": NEW}, NOW, MONTH) == [
            SliceRead("vdb", 0, OLD),
            SliceRead("vda", 0),
        ]

    def test_what_was_read_within_half_the_time_can_wait(self) -> None:
        known = {"vda": [Slice(days(14.9), NEW, 1), Slice(days(15.1), NEW, 1)]}
        assert plan(known, {"vda": NEW}, NOW, MONTH) == [SliceRead("vda", 1)]

    @given(st.lists(st.floats(0, 90), min_size=1, max_size=20), st.integers(1, 8))
    def test_runs_that_each_read_a_share_keep_the_promise(
        self, ages: list[float], a_day: int
    ) -> None:
        """Whatever was neglected before, once there was the time to read it."""
        known = {"vda": [Slice(days(age), NEW, 1) for age in ages]}
        for day in range(60):
            now = NOW + timedelta(days=day)
            for task in plan(known, {"vda": NEW}, now, MONTH)[:a_day]:
                known["vda"][task.number] = Slice(now, NEW, 1)
            if day * a_day >= len(ages):
                assert all(each.read and now - each.read <= MONTH for each in known["vda"])


class TestCoverage:
    def of(self, *slices: Slice, unread: int = 100) -> Coverage:
        class Revision:
            def __init__(self, revision_id: str) -> None:
                self.id, self.time = revision_id, time_of(revision_id)
                self.disks = ["vda"]

        revisions = [Revision(OLD), Revision(NEW)]
        estimates = {"vda": [unread] * len(slices)}
        return coverage({"vda": slices}, revisions, estimates, NOW, MONTH)  # type: ignore[arg-type]

    def test_counts_bytes_and_not_slices(self) -> None:
        found = self.of(Slice(days(1), NEW, 300), Slice(days(31), NEW, 100))
        assert (found.total, found.read, found.share) == (400, 300, 0.75)
        assert found.oldest == timedelta(days=31)

    def test_what_was_never_read_is_not_covered_and_as_old_as_its_oldest_revision(self) -> None:
        found = self.of(Slice(days(1), NEW, 300), Slice())
        assert (found.total, found.read) == (400, 300)
        assert found.oldest == timedelta(days=40)

    def test_a_revision_that_is_not_read_yet_has_as_much_time_as_any_block(self) -> None:
        found = self.of(Slice(days(2), OLD, 100))
        assert (found.share, found.oldest) == (1.0, timedelta(days=2))

    def test_a_revision_that_was_not_read_in_that_time_uncovers_its_slices(self) -> None:
        before_old = made_at(days(50))
        found = self.of(Slice(days(2), before_old, 100))
        assert (found.share, found.oldest) == (0.0, timedelta(days=40))

    def test_nothing_stored_is_all_of_it(self) -> None:
        assert coverage({}, [], {}, NOW, MONTH) == Coverage(0, 0, None)
        assert Coverage(0, 0, None).share == 1


@pytest.mark.parametrize(
    ("size", "length"),
    [
        pytest.param(1, GiB, id="a-byte"),
        pytest.param(256 * GiB, GiB, id="256GiB"),
        pytest.param(256 * GiB + 1, 2 * GiB, id="a-byte-more"),
        pytest.param(2**60, 2**60 // 256, id="1EiB"),
    ],
)
def test_a_disk_has_no_more_slices_than_may_be_remembered(size: int, length: int) -> None:
    assert scrub.slice_length(size, 256) == length


def test_memory_of_many_large_disks_can_be_read_again(tmp_path: Path) -> None:
    repository = create(tmp_path, "vm1", Settings("chunks", BLOCK))
    one = Scrub(repository, MONTH)
    one._sizes = {f"vd{number}": 2**60 for number in range(60)}
    one._lengths = {name: scrub.slice_length(2**60, 4096 // 60) for name in one._sizes}
    known = Slice(NOW - MONTH, NEW, 2**59)
    one._slices = {name: [known] * (2**60 // one._lengths[name]) for name in one._sizes}
    one._save(_Strict())
    again = Scrub(repository, MONTH)
    again._sizes, again._lengths = one._sizes, one._lengths
    again._recall(_Strict())
    assert again._slices == one._slices


class _Strict(Watcher):
    """A watcher that nothing may be warned of."""

    def begin(self, total: int) -> None:
        pass

    def advance(self, length: int) -> None:
        pass

    def note(self, text: str) -> None:
        pytest.fail(text)

    def warn(self, text: str) -> None:
        pytest.fail(text)


def test_the_first_run_reads_everything_once_and_the_second_nothing(made: Made) -> None:
    made.backup(DISK)
    made.backup(DISK)
    made.backup(changed(DISK, 10))
    first, damage = run(made)
    # Three blocks, one of them in two versions, and on chunks the block of zeroes.
    assert first.bytes == (4 + (made.store == "chunks")) * BLOCK
    assert damage == []
    assert first.coverage().share == 1
    second, _ = run(made)
    assert second.bytes == 0
    assert second.coverage().share == 1


def test_a_new_revision_costs_what_it_brought(made: Made) -> None:
    made.backup(DISK)
    run(made)
    made.backup(changed(DISK, 4 * BLOCK + 5))
    assert run(made)[0].bytes == BLOCK


def test_damage_in_what_a_new_revision_brought_is_found_at_once(made: Made) -> None:
    made.backup(DISK)
    run(made)
    bad = made.backup(changed(DISK, 4 * BLOCK + 5))
    flip(made, 4)
    _, found = run(made)
    assert [(each.revision, each.start, each.healed) for each in found] == [
        (bad.id, 4 * BLOCK, None)
    ]
    assert made.again(bad).trust is Trust.DISTRUSTED
    assert made.again(bad).damaged == {"vda": ((4 * BLOCK, BLOCK),)}


def test_what_is_due_is_read_also_where_a_new_revision_is_read_first(made: Made) -> None:
    made.backup(DISK)
    run(made)
    made.backup(changed(DISK, 4 * BLOCK + 5))
    flip(made, 1)  # only now: the backup would have read it back, and mended it
    one, found = run(made, within=timedelta(seconds=0.001))
    assert BLOCK in {each.start for each in found}
    assert one.bytes >= 3 * BLOCK


def test_damage_in_what_was_read_before_is_found_when_it_is_due(made: Made) -> None:
    made.backup(DISK)
    run(made)
    flip(made, 1)
    assert run(made)[1] == []
    [found] = run(made, within=timedelta(seconds=0.001))[1]
    assert found.start == BLOCK


def test_a_revision_that_verify_calls_damaged_scrub_does_not_call_whole(made: Made) -> None:
    made.backup(DISK)
    for number in (0, 1, 4):
        flip(made, number)
    ours = {(each.start, each.length) for each in run(made)[1]}
    theirs = {
        (each.start, each.length)
        for each in verify(made.repository, made.repository.history().revisions, origins=[])
    }
    assert ours == theirs == {(0, 2 * BLOCK), (4 * BLOCK, BLOCK)}


def test_a_run_without_time_reads_a_slice_and_the_next_goes_on(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "GiB", BLOCK)  # slices of one block
    made.backup(DISK)
    shares = []
    for number in range(5):
        one, _ = run(made, until=time.monotonic())
        assert one.bytes <= 2 * BLOCK, number
        shares.append(one.coverage().share)
    assert shares == sorted(shares)
    assert 0 < shares[0] < 1
    assert shares[-1] == 1


def test_a_run_whose_time_is_up_begins_no_other_repository(made: Made) -> None:
    made.backup(DISK)
    limits = Limits(until=time.monotonic())
    limits.spend(0)
    one = Scrub(made.repository, MONTH)
    assert list(one.run(limits, origins=[])) == []
    assert one.bytes == 0


def test_what_was_read_is_remembered_when_the_run_is_stopped(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "GiB", BLOCK)
    made.backup(DISK)
    flip(made, 1)
    one = Scrub(made.repository, MONTH)
    found = one.run(Limits(), origins=[])
    next(found)  # the damage in the second slice: the first was read
    found.close()  # type: ignore[attr-defined]
    remembered = json.loads((made.root / "scrub.json").read_text())["disks"]["vda"]
    assert [bool(each["read"]) for each in remembered] == [True, False, False, False, False]


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: text[: len(text) // 2], id="cut-short"),
        pytest.param(lambda text: text.replace('"format": 1', '"format": 9'), id="newer"),
        pytest.param(lambda text: text.replace("2026", "2999"), id="from-the-future"),
        pytest.param(lambda text: text.replace("Z-", "?-"), id="no-revision"),
        pytest.param(lambda text: text.replace(str(GiB), "1"), id="other-slices"),
    ],
)
def test_a_memory_that_cannot_be_believed_means_that_nothing_was_read(
    made: Made, broken: Callable[[str], str]
) -> None:
    made.backup(DISK)
    whole = run(made)[0].bytes
    path = made.root / "scrub.json"
    path.write_text(broken(path.read_text().replace(f"{datetime.now(UTC):%Y}", "2026")))
    assert run(made)[0].bytes == whole


def test_a_disk_that_grew_has_its_new_part_read_and_one_that_came_is_read(made: Made) -> None:
    made.backup(DISK)
    run(made)
    made.backup(vda=DISK + sample(BLOCK, seed=7), vdb=sample(BLOCK, seed=8))
    one, _ = run(made)
    assert one.bytes == 2 * BLOCK
    assert one.coverage().share == 1


def test_nothing_but_its_memory_is_written_where_nothing_is_damaged(made: Made) -> None:
    made.backup(DISK)

    def state() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in made.root.rglob("*")
            if path.is_file() and path.name != "scrub.json"
        }

    before = state()
    run(made)
    assert state() == before


def test_only_one_scrub_runs_at_a_time(made: Made) -> None:
    made.backup(DISK)
    with locked(made.root), pytest.raises(BusyError, match="another one is running"):
        run(made)


def test_an_empty_repository_has_nothing_to_read(made: Made) -> None:
    one, damage = run(made)
    assert (one.bytes, damage, one.coverage().share) == (0, [], 1)


def test_jobs_that_were_never_scrubbed_come_first_then_those_scrubbed_longest_ago(
    tmp_path: Path,
) -> None:
    for name, age in (("a", 10), ("b", 30), ("c", None)):
        (tmp_path / name).mkdir()
        if age is not None:
            (tmp_path / name / "scrub.json").touch()
            os.utime(tmp_path / name / "scrub.json", (1_000_000 - age,) * 2)
    assert longest_ago(tmp_path, ["a", "b", "c"]) == ["c", "b", "a"]


def test_a_rate_makes_readers_wait_for_as_long_as_their_bytes_are_worth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals, "sleep", sleep)
    limits = Limits(rate=MiB)
    for _ in range(5):
        limits.spend(512 * KiB)
    assert sum(slept) == pytest.approx(2.0)


def test_no_rate_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "sleep", pytest.fail)
    Limits().spend(2**60)


def test_a_run_with_a_rate_reads_the_same(made: Made) -> None:
    made.backup(DISK)
    threads = threading.active_count()
    one, _ = run(made, rate=GiB)
    assert one.coverage().share == 1
    assert threading.active_count() == threads
