"""The power goes at every operation of every command; the history is the old or the new one.

A failure names its case; run it again with
`make test ARGS="tests/faults/test_power_cut.py -k 'CASE' -n 0"`, with BACKY_SEED where one was set.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.journal import Survival
from tests.faults.recording import recording
from tests.faults.workloads import WORKLOADS, Workload, check, one_worker, prepared

SEED = int(os.environ.get("BACKY_SEED", "1"))
SEEDS = int(os.environ.get("BACKY_SEEDS", "1"))  # how many; `make soak` takes 50


@pytest.fixture(params=["chunks", "images"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A store, and a folder on a file system that can have it."""
    if request.param == "chunks":
        return "chunks", tmp_path
    return "images", request.getfixturevalue("reflink_folder")


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_power_cut_at_any_operation_leaves_the_old_or_the_new_history(
    workload: Workload, place: tuple[str, Path]
) -> None:
    store, folder = place
    base = folder / "base"
    base.mkdir()
    with one_worker():
        known = prepared(base, workload, store)
        with recording(base) as journal:
            workload.command(base, store)
        cases = [(Survival.NONE, 0), (Survival.ALL, 0)]
        for seed in range(SEED, SEED + SEEDS):
            cases += [(Survival.SOME, seed), (Survival.TORN, seed)]
        for moment in range(len(journal.entries) + 1):
            for survival, seed in cases:
                after = folder / "after"
                journal.after_cut(moment, survival, seed, after)
                try:
                    check(after, workload, known, store)
                except Exception as error:
                    case = f"{store} {workload.name}, cut after {moment} operations"
                    raise AssertionError(
                        f"{case}, {survival.value} survive, seed {seed}"
                    ) from error
                shutil.rmtree(after)
