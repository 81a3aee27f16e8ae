"""The power goes at every operation of every command; the history is the old or the new one.

A normal run takes a sample that BACKY_SEED chooses. With BACKY_SEEDS, which is 50 in `make soak`,
it is every operation, and as many random choices of what survives it, from BACKY_SEED on. A
failure says which command repeats it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backy.repository.repository import Repository
from tests.faults.journal import Journal, Survival
from tests.faults.paged_workloads import ALL_WORKLOADS
from tests.faults.recording import recording
from tests.faults.workloads import (
    JOB,
    WORKLOADS,
    Disks,
    Workload,
    check,
    check_evidence,
    check_undo,
    one_worker,
    prepared,
)

SEED = int(os.environ.get("BACKY_SEED", "1"))
SEEDS = int(os.environ.get("BACKY_SEEDS", "0"))
ONLY = os.environ.get("BACKY_CUT")  # moment:survival:seed, as a failure says it
Cut = tuple[int, Survival, int]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> str:
    """What pytest calls the test that runs."""
    name: str = request.node.nodeid
    return name


def cuts(moments: int, case: str, sample: int = 8) -> list[Cut]:
    """Every moment, with what may survive it; or some of those."""
    if ONLY:
        number, survival, chosen = ONLY.split(":")
        return [(int(number), Survival(survival), int(chosen))]
    found: list[Cut] = []
    for moment in range(moments):
        found += [(moment, Survival.NONE, 0), (moment, Survival.ALL, 0)]
        for seed in range(SEED, SEED + max(1, SEEDS)):
            found += [(moment, Survival.SOME, seed), (moment, Survival.TORN, seed)]
    if SEEDS:
        return found
    after_the_end = found[-4:][:1]
    return after_the_end + random.Random(f"{case} {SEED}").sample(found[:-4], sample)


@contextmanager
def after(journal: Journal, cut: Cut, folder: Path, case: str) -> Iterator[Path]:
    """The tree that a power cut leaves; what fails in the body says how to repeat it."""
    moment, survival, seed = cut
    tree = folder / "after"
    journal.after_cut(moment, survival, seed, tree)
    try:
        yield tree
    except Exception as error:
        raise AssertionError(
            f"the power went after {moment} operations, {survival.value} of what was volatile "
            f"survived. Again: BACKY_CUT={moment}:{survival.value}:{seed} make test "
            f"ARGS=\"-n 0 '{case}'\""
        ) from error
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def recorded(workload: Workload, store: str, folder: Path) -> tuple[Journal, Disks]:
    """What a command did, and what each revision held before."""
    base = folder / "base"
    base.mkdir()
    known = prepared(base, workload, store)
    with recording(base) as journal:
        workload.command(base, store)
    return journal, known


@pytest.mark.parametrize("workload", ALL_WORKLOADS, ids=lambda workload: workload.name)
def test_a_power_cut_at_any_operation_leaves_the_old_or_the_new_history(
    workload: Workload, place: tuple[str, Path], case: str
) -> None:
    store, folder = place
    with one_worker():
        journal, known = recorded(workload, store, folder)
        assert len(journal.entries) > 1
        wanted = cuts(len(journal.entries) + 1, case, workload.sample)
        for cut in wanted:
            with after(journal, cut, folder, case) as base:
                has_ended = cut[0] == len(journal.entries)
                check(base, workload, known, store, has_ended=has_ended)
    done = f"{store}, {workload.name}: {len(journal.entries)} operations, {len(wanted)} power cuts"
    print(done)  # noqa: T201 - `make soak` shows it


@pytest.mark.parametrize(
    "workload", [each for each in WORKLOADS if each.has_source], ids=lambda workload: workload.name
)
def test_whenever_the_power_goes_the_bytes_that_healing_replaced_are_kept(
    workload: Workload, place: tuple[str, Path], case: str
) -> None:
    store, folder = place
    with one_worker():
        journal, _ = recorded(workload, store, folder)
        for cut in cuts(len(journal.entries) + 1, case):
            with after(journal, cut, folder, case) as base:
                check_evidence(Repository(base / JOB))


def test_whenever_the_power_goes_in_a_purge_what_undo_brings_back_is_whole(
    place: tuple[str, Path], case: str
) -> None:
    store, folder = place
    (purge,) = (each for each in WORKLOADS if each.name == "purge")
    with one_worker():
        journal, known = recorded(purge, store, folder)
        for cut in cuts(len(journal.entries) + 1, case):
            with after(journal, cut, folder, case) as base:
                check_undo(Repository(base / JOB), known)
