"""The first, second, third … call of the disk door to the system fails, until none does.

After each failure the command has said so with a BackyError, the history is the old or the new
one, and backy goes on from it unaided. That is how SQLite tests I/O errors
(https://sqlite.org/testing.html, "I/O error testing").

A normal run takes a seeded sample of all calls (BACKY_SEED); with BACKY_ALL_CALLS=1, as in
`make soak`, it is each call with each fault. A failure says which command repeats it.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from backy.errors import BackyError
from tests.faults.calls import FAULTS, Calls, faults_of
from tests.faults.paged_workloads import ALL_WORKLOADS
from tests.faults.workloads import Workload, check, one_worker, prepared

SEED = int(os.environ.get("BACKY_SEED", "1"))
ALL = os.environ.get("BACKY_ALL_CALLS") == "1"
ONLY = os.environ.get("BACKY_CALL")  # number:fault, as a failure says it
Case = tuple[int, str]


def cases(made: list[str], seed: object, sample: int) -> list[Case]:
    """Which call fails how."""
    if ONLY:
        number, fault = ONLY.split(":")
        return [(int(number), fault)]
    found = [(number, fault) for number, name in enumerate(made, 1) for fault in faults_of(name)]
    return found if ALL else random.Random(str(seed)).sample(found, sample)


def strike(base: Path, workload: Workload, store: str, case: Case) -> None:
    """Run the command with one call that fails; it may only end with an error of ours."""
    number, fault = case
    with Calls(number, FAULTS[fault]).counted():
        try:
            workload.command(base, store)
        except BackyError:
            assert fault != "short", "a short read or write is no error"


@pytest.mark.parametrize("workload", ALL_WORKLOADS, ids=lambda workload: workload.name)
def test_a_call_that_fails_leaves_the_old_or_the_new_history(
    workload: Workload, place: tuple[str, Path], request: pytest.FixtureRequest
) -> None:
    store, folder = place
    prototype, base = folder / "prototype", folder / "base"
    prototype.mkdir()
    with one_worker():
        known = prepared(prototype, workload, store)
        shutil.copytree(prototype, base)
        calls = Calls()
        with calls.counted():
            workload.command(base, store)
        shutil.rmtree(base)
        assert len(calls.made) > 10
        wanted = cases(calls.made, f"{store} {workload.name} {SEED}", workload.sample)
        for number, fault in wanted:
            shutil.copytree(prototype, base)
            try:
                strike(base, workload, store, (number, fault))
                check(base, workload, known, store)
            except Exception as error:
                name = calls.made[number - 1]
                raise AssertionError(
                    f"{fault} at call {number}, {name}. Again: BACKY_CALL={number}:{fault} "
                    f"make test ARGS=\"-n 0 '{request.node.nodeid}'\""
                ) from error
            shutil.rmtree(base)
    done = f"{store}, {workload.name}: {len(calls.made)} calls, {len(wanted)} faults"
    print(done)  # noqa: T201 - `make soak` shows it
