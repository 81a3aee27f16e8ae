"""Commands for several jobs do what they can for each, whatever is wrong with the others."""

import os
from pathlib import Path

from tests.cli.runner import SMALL, Backy, image, overwrite

GIB = 1024**3


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
