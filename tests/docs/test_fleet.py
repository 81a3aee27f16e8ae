"""The scripts of docs/fleet.md that restore many VMs keep what the page says, whatever happens.

BACKY_ROUNDS is how many times the mass restore is killed; with it there are 64 VMs, not 12.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.runner import MIB, leased, wait_for
from tests.docs.fleet import SCRIPTS, Fleet
from tests.lab.needs import absent, need, no_mounts
from tests.lab.volumes import file_system

ROUNDS = int(os.environ.get("BACKY_ROUNDS", "0"))
HOW_MANY = 64 if ROUNDS else 12


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    need(absent("parallel", "jq", "flock"))
    made = Fleet(tmp_path / "fleet")
    made.make()
    yield made
    made.power_cut()


def planned(fleet: Fleet, *names: str) -> None:
    """A plan of these VMs, as mass-plan would make it of their newest revisions."""
    revisions = {name: fleet.backy.revisions(name)[-1] for name in names}
    lines = [f"{name} {revision} {2 * MIB} - vda\n" for name, revision in revisions.items()]
    (fleet.mass / "plan").write_text("".join(lines))


def attempts(fleet: Fleet) -> list[list[str]]:
    """The lines of the file "times"."""
    return [line.split("\t") for line in (fleet.mass / "times").read_text().splitlines()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_the_page_is_short_and_shellcheck_finds_nothing(name: str) -> None:
    need(absent("shellcheck"))
    text = SCRIPTS[name]
    command = ["shellcheck", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert text.startswith(f"#!/bin/bash\n# {name}")
    assert len(text.splitlines()) <= 35


def test_a_mass_restore_that_is_killed_again_and_again_brings_all_good_vms_back(
    fleet: Fleet,
) -> None:
    """One VM is damaged, the target of one is full, and one hangs; none holds up the others."""
    need(no_mounts())
    names = [f"vm{number}" for number in range(HOW_MANY)]
    odd = {"damaged", "full", "hangs"}
    order = [*names[:2], *sorted(odd), *names[2:]]
    for name in order:
        fleet.add(name)
    fleet.backy.damage("damaged", fleet.backy.revisions("damaged")[0], 0)
    fleet.image("damaged").unlink()  # or it would be healed from there
    planned(fleet, *order)
    chance = random.Random(ROUNDS)
    done_before: dict[str, int] = {}
    with ExitStack() as stack:
        small = stack.enter_context(file_system("tmpfs", MIB))
        fleet.targets.mkdir()
        (fleet.targets / "full").symlink_to(small)
        hanging = fleet.backy.chunk("hangs", fleet.backy.revisions("hangs")[0], 1)
        for number in range(1 + ROUNDS):
            enough = min(len(fleet.complete()) + chance.randint(1, 6), HOW_MANY)
            lease = stack.enter_context(leased(hanging))
            with fleet.started("mass-restore", "3", TIMEOUT="20s") as process:
                wait_for(lambda n=enough: len(fleet.complete()) >= n, "some are done")  # type: ignore[misc]
                process.kill()
            if number % 2:  # what they started lives on, and the next round meets it
                fleet.kill("mass-restore", "parallel", "mass-restore-on")
            else:
                fleet.power_cut()
            lease.release()
            for name in fleet.complete():
                done_before.setdefault(name, fleet.restored(name).stat().st_mtime_ns)
        with leased(hanging):
            last = fleet.run("mass-restore", "3", env={"TIMEOUT": "8s", "RETRIES": "1"})
        assert last.returncode >= len(odd), last.stderr
        assert "timed out" in last.stderr
        assert not fleet.restored("hangs").exists()
        again = fleet.run("mass-restore", "3", env={"RETRIES": "1"})
        assert again.returncode == 2, again.stderr  # the one that hung does not any more
        assert "No space left" in (fleet.mass / "logs" / "full" / "stderr").read_text()
    assert all(fleet.is_back(name) for name in [*names, "hangs"])
    assert fleet.complete() == {*names, "hangs"}
    assert not fleet.restored("damaged").exists()
    assert done_before
    written_once = {name: fleet.restored(name).stat().st_mtime_ns for name in done_before}
    assert written_once == done_before
