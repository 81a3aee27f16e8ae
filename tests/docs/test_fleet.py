"""The scripts of docs/fleet.md that restore many VMs keep what the page says, whatever happens.

BACKY_ROUNDS is how many times the mass restore is killed; with it there are 64 VMs, not 5.
"""

import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.runner import MIB, data, leased, wait_for
from tests.docs.fleet import SCRIPTS, Fleet
from tests.lab.needs import absent, need, no_mounts
from tests.lab.paged import block_hashes
from tests.lab.volumes import file_system

ROUNDS = int(os.environ.get("BACKY_ROUNDS", "0"))
HOW_MANY = 64 if ROUNDS else 5


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


def chunk(fleet: Fleet, name: str, revision: str, disk: str) -> Path:
    """The file of the first block of a disk."""
    root = fleet.backy.base / name
    digest = block_hashes(root, root / "revisions" / revision, disk)[0]
    return root / "chunks" / digest[:2] / f"{digest}.zst"


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
    planned(fleet, *(set(order) - {"hangs"}))
    chance = random.Random(ROUNDS)
    done_before: dict[str, int] = {}
    with ExitStack() as stack:
        small = stack.enter_context(file_system("tmpfs", MIB))
        fleet.targets.mkdir()
        (fleet.targets / "full").symlink_to(small)
        for number in range(1 + ROUNDS):
            enough = min(len(fleet.complete()) + chance.randint(1, 6), HOW_MANY)
            with fleet.started("mass-restore", "3") as process:
                wait_for(lambda n=enough: len(fleet.complete()) >= n, "some are done")  # type: ignore[misc]
                process.kill()
            if number % 2:  # what they started lives on, and the next round meets it
                fleet.kill("mass-restore", "parallel", "mass-restore-on")
            else:
                fleet.power_cut()
                for name in fleet.complete():
                    done_before.setdefault(name, fleet.restored(name).stat().st_mtime_ns)
        planned(fleet, *order)  # in another order, and with one more
        hanging = fleet.backy.chunk("hangs", fleet.backy.revisions("hangs")[0], 1)
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


def test_the_most_urgent_vms_are_restored_first_in_the_order_of_the_plan(fleet: Fleet) -> None:
    for name in ("vm1", "vm2", "vm3"):
        fleet.add(name)
    fleet.plan("vm3 5", "vm1", "vm3", "", "vm2 60")
    today = {"REVISION": f"last(..{datetime.now(UTC):%Y-%m-%d})"}
    assert fleet.run("mass-plan", stdin="vm1\n", env=today).stdout.startswith("vm1 ")
    assert fleet.run("mass-restore", "1").returncode == 0
    assert [words[8].split()[1] for words in attempts(fleet)] == ["vm3", "vm1", "vm2"]
    assert [words[3] for words in fleet.plan_lines()] == ["5", "-", "60"]
    forecast = fleet.run("mass-forecast", "2", stdin=(fleet.mass / "plan").read_text())
    assert forecast.returncode == 0, forecast.stderr  # the history has a rate now
    (fleet.mass / "forecast").write_text(forecast.stdout)
    report = fleet.run("mass-report", "forecast")
    assert report.returncode == 0, report.stderr
    assert report.stdout.endswith("\n3 VMs, 3 done, 0 late\n")


def test_an_urgent_vm_is_restored_at_once_beside_a_mass_restore_and_not_again_by_it(
    fleet: Fleet,
) -> None:
    for name in ("vm1", "vm2", "vm3"):
        fleet.add(name)
    planned(fleet, "vm1", "vm2", "vm3")
    (fleet.mass / "slots").write_text("1\n")
    chunks = [fleet.backy.chunk(name, fleet.backy.revisions(name)[0], 0) for name in ("vm1", "vm2")]
    with (
        leased(chunks[0]) as first,
        leased(chunks[1]) as second,
        fleet.started("mass-restore", "./slots") as process,
    ):
        first.wait()
        assert fleet.run("mass-restore-one", "vm3").returncode == 0
        assert fleet.is_back("vm3")
        assert not fleet.complete() & {"vm1", "vm2"}
        written = fleet.restored("vm3").stat().st_mtime_ns
        assert fleet.run("mass-restore", "1").returncode == 75  # only one runs in a folder
        (fleet.mass / "slots").write_text("2\n")  # counts from the end of the next one
        first.release()
        second.wait()
        wait_for(lambda: len(attempts(fleet)) == 2, "the third ran beside the second")
        second.release()
        assert process.wait(120) == 0
    assert all(fleet.is_back(name) for name in ("vm1", "vm2", "vm3"))
    assert fleet.restored("vm3").stat().st_mtime_ns == written


def test_a_vm_that_was_half_written_gets_only_the_rest_even_if_newer_backups_were_made(
    fleet: Fleet,
) -> None:
    disks = {"vda": data(1, 2 * MIB), "vdb": data(2, 2 * MIB)}
    revision = fleet.add("vm1", **disks)
    fleet.plan("vm1")
    with (
        leased(chunk(fleet, "vm1", revision, "vdb")) as lease,
        fleet.started("mass-restore", "1"),
    ):
        lease.wait()
        wait_for(fleet.restored("vm1").exists, "the first disk is complete")
        fleet.power_cut()
    fleet.add("vm1", vda=data(3, 2 * MIB), vdb=data(4, 2 * MIB))
    assert fleet.run("mass-restore", "1").returncode == 0
    assert {disk: fleet.restored("vm1", disk).read_bytes() for disk in disks} == disks
    history = fleet.backy.ok("history", "vm1", "--json").record()["restores"]
    assert history[-1]["result"] == "done"
    assert 0 < history[-1]["written"] <= 2 * MIB  # of the four of both disks


def test_a_mass_restore_can_be_told_to_end_what_runs_and_to_start_nothing_more(
    fleet: Fleet,
) -> None:
    for name in ("vm1", "vm2"):
        fleet.add(name)
    planned(fleet, "vm1", "vm2")
    with (
        leased(fleet.backy.chunk("vm1", fleet.backy.revisions("vm1")[0], 0)) as lease,
        fleet.started("mass-restore", "1") as process,
    ):
        lease.wait()
        fleet.kill("parallel", number=signal.SIGHUP)
        lease.release()
        process.wait(120)
    assert fleet.complete() == {"vm1"}
    planned(fleet, "vm2", "vm1")
    assert fleet.run("mass-restore", "1").returncode == 0
    assert fleet.complete() == {"vm1", "vm2"}


def test_a_restore_that_outlived_its_parents_is_waited_for_and_its_work_is_not_done_twice(
    fleet: Fleet,
) -> None:
    revision = fleet.add("vm1")
    planned(fleet, "vm1")
    with leased(chunk(fleet, "vm1", revision, "vda")) as lease:
        with fleet.started("mass-restore", "1"):
            lease.wait()
            fleet.kill("mass-restore", "parallel", "mass-restore-on")
        with fleet.started("mass-restore-one", "vm1") as second:
            inode = (fleet.mass / "locks" / "vm1").stat().st_ino
            waiting = re.compile(rf"-> FLOCK .*:{inode} ")
            wait_for(lambda: bool(waiting.search(Path("/proc/locks").read_text())), "it waits")
            lease.release()
            assert second.wait(120) == 0
    assert fleet.is_back("vm1")
    history = fleet.backy.ok("history", "vm1", "--json").record()["restores"]
    assert [each["written"] for each in history] == [2 * MIB, 0]


def test_what_lies_at_the_target_is_never_overwritten_however_often_it_is_tried(
    fleet: Fleet,
) -> None:
    for name in ("vm1", "vm2"):
        fleet.add(name)
    fleet.plan("vm1", "vm2")
    fleet.restored("vm1").parent.mkdir(parents=True)
    fleet.restored("vm1").write_bytes(b"precious")
    for _ in range(2):
        assert fleet.run("mass-restore", "1").returncode == 1
    assert fleet.restored("vm1").read_bytes() == b"precious"
    assert fleet.is_back("vm2")
    (fleet.mass / "forecast").touch()
    report = fleet.run("mass-report", "forecast")
    assert report.returncode == 1
    assert "vm1 failed:10:0 " in report.stdout
    # Nor is another target, because the mark of the first one does not count for it.
    other = fleet.root / "other" / "vm2"
    other.mkdir(parents=True)
    (other / "vda.img").write_bytes(b"precious")
    assert fleet.run("mass-restore-one", "vm2", env={"TARGET": str(other)}).returncode == 10
    assert (other / "vda.img").read_bytes() == b"precious"


def test_each_disk_can_have_a_target_of_its_own_by_a_template(fleet: Fleet) -> None:
    need(absent("qemu-img"))
    disks = {"vda": data(1, 2 * MIB), "vdb": data(2, MIB)}
    fleet.add("vm.1", **disks)
    fleet.plan("vm.1")
    fleet.targets.mkdir()
    template = f"qcow2:{fleet.targets}/{{job}}-{{disk}}.qcow2"
    done = fleet.run("mass-restore", "1", env={"TARGET": template})
    assert done.returncode == 0, done.stderr
    for disk, content in disks.items():
        raw = fleet.root / disk
        image = fleet.targets / f"vm.1-{disk}.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
        assert raw.read_bytes() == content


def test_a_job_that_vanished_and_hostile_names_are_named_and_hold_up_no_other(
    fleet: Fleet,
) -> None:
    for name in ("7", "007", "vm@x+1-ü"):  # for awk two of them are one number
        fleet.add(name)
    odd = ["gone", "$(touch owned)", "--help", "../../x", "';{1} *"]
    order = [*odd, "007", "7", "vm@x+1-ü"]
    done = fleet.run("mass-plan", stdin="".join(f"{line}\n" for line in order))
    assert done.returncode == len({line.split()[0] for line in odd}), done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == order[len(odd) :]
    assert "gone" in done.stderr
    (fleet.mass / "plan").write_text(done.stdout)
    assert fleet.run("mass-restore", "2").returncode == 0
    assert all(fleet.is_back(name) for name in order[len(odd) :])
    assert fleet.run("mass-restore-one", "../../x").returncode == 2
    assert not list(fleet.root.rglob("owned"))
    report = fleet.run("mass-report", "/dev/null").stdout.splitlines()
    assert [line.split()[:2] for line in report[1:-1]] == [[n, "done"] for n in order[len(odd) :]]


def test_nothing_to_restore_is_an_error_and_no_success(fleet: Fleet) -> None:
    assert fleet.run("mass-restore", "2").returncode == 2
    assert fleet.run("mass-forecast", "2", "100").returncode == 2
    assert fleet.run("mass-report", "forecast").returncode == 2
    no_rate = fleet.run("mass-forecast", "2", stdin="vm1 x 1048576 - vda\n")
    assert no_rate.returncode != 0
    assert "name a rate" in no_rate.stderr


def test_a_forecast_puts_each_vm_into_the_first_free_place_and_names_who_is_late(
    fleet: Fleet,
) -> None:
    chance = random.Random(15)
    jobs = [
        (f"vm{n}", chance.randrange(1, 9000), chance.choice(["-", "1", "9"])) for n in range(99)
    ]
    plan = "".join(f"{name} x {size * MIB} {limit} vda\n" for name, size, limit in jobs)
    done = fleet.run("mass-forecast", "5", "100", stdin=plan)
    free = [0.0] * 5
    late = 0
    for (name, size, limit), line in zip(jobs, done.stdout.splitlines()[1:], strict=False):
        slot = free.index(min(free))
        start, free[slot] = free[slot], free[slot] + 1 + size / 100
        is_late = limit != "-" and free[slot] > 60 * int(limit)
        late += is_late
        words = line.split()
        assert words[0] == name
        assert int(words[1]) == pytest.approx(start, abs=1)
        assert int(words[2]) == pytest.approx(free[slot], abs=1)
        assert line.endswith(" LATE") == is_late
    assert 0 < late < len(jobs)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith(f" {late} late")
