"""Commands for several jobs do what they can for each, whatever is wrong with the others."""

import os
import sys
from pathlib import Path

import pytest

from tests.cli.runner import SMALL, Backy, environment, image, overwrite, ran
from tests.daemon.machine import Server

GIB = 1024**3
BUG = """
import sys
from backy.cli import main
from backy.operations.site import Site
repository = Site.repository
Site.repository = lambda site, job: 1 / 0 if job == "vm1" else repository(site, job)
sys.exit(main())
"""


def test_a_scrub_without_time_goes_on_with_the_job_that_was_read_longest_ago(
    backy: Backy, tmp_path: Path
) -> None:
    for job in ("vm1", "vm2"):
        source = image(tmp_path / f"{job}.img", SMALL[1])
        os.truncate(source, 2 * GIB)
        overwrite(source, GIB, SMALL[2])
        backy.backup(job, source)
    read = []
    for _ in range(4):
        said = backy.quiet("scrub", "--max-duration", "0s", "--json").records()
        read += [each["job"] for each in said if each["read"]]
    assert read == ["vm1", "vm2", "vm1", "vm2"]


def test_a_repository_that_cannot_be_opened_does_not_hide_the_reports_of_others(
    aged: Backy, tmp_path: Path
) -> None:
    aged.chunk("vm1", aged.revisions("vm1")[-1], 1).unlink()
    aged.ok("verify", "vm1")
    aged.backup("a", image(tmp_path / "a.img", SMALL[1]))
    (aged.base / "a" / "repository.json").write_text("{")
    result = aged.run("reports")
    assert result.code == 3
    assert "\nvm1  " in result.out


SICK = """
import sys
from backy.cli import main
from backy.sources.file import FileSource
look = FileSource.look
FileSource.look = lambda source: 1 / 0 if "vm1" in str(source.paths) else look(source)
sys.exit(main())
"""


def test_a_bug_with_one_source_does_not_hide_what_is_wrong_with_the_others(tmp_path: Path) -> None:
    server = Server(tmp_path)
    for job in ("vm1", "vm2", "vm3"):
        server.job(job)
    (tmp_path / "vm2.img").unlink()
    words = server.command("config", "check", "--sources")[3:]
    result = ran([sys.executable, "-c", SICK, *words], environment())
    assert result.code == 70
    assert "source of vm2: opening the source" in result.out
    assert "source of vm3: vda" in result.out
    assert "ZeroDivisionError: division by zero" in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "of_the_last"),
    [
        pytest.param("list", "vm3  chunks", id="list"),
        pytest.param("list --json", '"job": "vm3"', id="list-json"),
        pytest.param("reports", "vm3  2", id="reports"),
        pytest.param("reports --json", '"job": "vm3"', id="reports-json"),
        pytest.param("scrub", "vm3: ", id="scrub"),
        pytest.param("scrub --json", '"job": "vm3"', id="scrub-json"),
    ],
)
def test_a_bug_with_one_job_stops_no_other_and_is_told_at_the_end(
    aged: Backy, tmp_path: Path, command: str, of_the_last: str
) -> None:
    for job in ("vm2", "vm3"):
        aged.backup(job, image(tmp_path / f"{job}.img", SMALL[1]))
    aged.damage("vm3", aged.revisions("vm3")[-1], 0)
    assert "healed" in aged.ok("verify", "vm3").err
    (aged.base / "vm2" / "repository.json").write_text("{")  # no bug, and it does not hide the bug
    words = [*aged.command(), *command.split()]
    result = ran([sys.executable, "-c", BUG, *words[3:]], environment())
    assert result.code == 70
    assert of_the_last in result.out
    assert "ZeroDivisionError: division by zero" in result.err.splitlines()[-1]
