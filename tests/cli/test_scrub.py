"""backy scrub and backy reports: what is stored is looked after, and what was found is told."""

import re
from pathlib import Path

from backy.units import format_size
from tests.cli.runner import MIB, Backy, data, image, overwrite, tree

PROMISE = re.compile(
    r"vm1: (\d+\.\d) % of (\S+ \S+) read within 30d, oldest .+?; read (\S+ \S+)"
    r"(?:, (\S+ \S+) of indexes and pages)?, \d+\.\d s, .+/s\n"
)


def test_a_scrub_says_how_much_was_read_within_the_promised_time(
    either: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    either.backup("vm1", source)
    overwrite(source, 0, b"changed")
    either.backup("vm1", source)
    found = PROMISE.fullmatch(either.quiet("scrub").out)
    assert found
    # Both copies of two indexes of one line, and of two pages of three.
    assert found.groups() == ("100.0", "4.0 MiB", "4.0 MiB", format_size(2 * 2 * (1 + 4) * 65))
    found = PROMISE.fullmatch(either.quiet("scrub", "vm1").out)
    assert found
    assert found.groups() == ("100.0", "4.0 MiB", "0 B", None)


def test_what_is_stored_is_not_touched(backy: Backy, tmp_path: Path) -> None:
    backy.backup("vm1", image(tmp_path / "vm1.img", data(1)))
    before = tree(backy.base)
    backy.quiet("scrub", "--rate", "1GiB", "--max-duration", "10m")
    after = tree(backy.base)
    assert after.keys() - before.keys() == {"vm1/scrub.json"}
    del before["vm1/status.json"]  # says how the promise is kept
    assert {name: after[name] for name in before} == before


def test_damage_is_healed_from_the_source_and_reported(either: Backy, tmp_path: Path) -> None:
    revision = either.backup("vm1", image(tmp_path / "vm1.img", data(1)))
    either.damage("vm1", revision, 1)
    result = either.ok("scrub")
    assert f"healed from the source: {revision} vda bytes {MIB} to {2 * MIB}: " in result.err
    assert either.content("vm1") == data(1)
    [line] = either.quiet("reports").out.splitlines()[1:]
    job, report, verb, *_ = line.split()
    assert (job, verb) == ("vm1", "scrub")
    said = either.quiet("reports", "show", "vm1", report).out
    assert f"affects  {revision} vda bytes {MIB} to {2 * MIB}" in said
    assert "healed   from the source" in said
    assert either.quiet("reports", "delete", "vm1", "--healed").out == f"vm1: deleted {report}\n"
    assert len(either.quiet("reports").out.splitlines()) == 1


def test_damage_that_cannot_be_healed_is_the_exit_code_and_the_other_jobs_are_read(
    backy: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    revision = backy.backup("vm1", source)
    backy.backup("vm2", image(tmp_path / "vm2.img", data(2)))
    source.unlink()
    backy.damage("vm1", revision, 2)
    result = backy.run("scrub")
    assert result.code == 6
    assert f"damaged: {revision} vda bytes {2 * MIB} to {3 * MIB}: " in result.err
    assert "vm2: 100.0 % of 3.0 MiB read within 30d" in result.out
    assert backy.said_of("vm1", revision)["trust"] == "distrusted"
    [report] = [line.split()[1] for line in backy.quiet("reports").out.splitlines()[1:]]
    assert "healed   no" in backy.quiet("reports", "show", "vm1", report).out


def test_an_unusable_job_does_not_keep_the_others_from_being_read(
    backy: Backy, tmp_path: Path
) -> None:
    backy.backup("vm1", image(tmp_path / "vm1.img", data(1)))
    backy.backup("vm2", image(tmp_path / "vm2.img", data(2)))
    (backy.base / "vm1" / "repository.json").write_text("{")
    said = backy.refuses(3, "scrub")
    assert "vm1" in said.message
    assert (backy.base / "vm2" / "scrub.json").exists()


def test_wrong_limits_are_refused(backy: Backy) -> None:
    assert "too slow" in backy.refuses(2, "scrub", "--rate", "1KiB").message
    assert "0s" in backy.refuses(2, "scrub", "--within", "0s").message
    assert "duration" in backy.refuses(2, "scrub", "--max-duration", "long").message


def test_reports_say_what_to_name(backy: Backy, tmp_path: Path) -> None:
    backy.backup("vm1", image(tmp_path / "vm1.img", data(1)))
    assert "no report was named" in backy.refuses(2, "reports", "delete", "vm1").message
    assert "no report '../x'" in backy.refuses(9, "reports", "show", "vm1", "../x").message
    backy.refuses(9, "reports", "vm2")


def test_reports_are_listed_of_all_jobs_or_of_the_one_that_is_named(
    backy: Backy, tmp_path: Path
) -> None:
    for job in ("vm1", "show"):
        revision = backy.backup(job, image(tmp_path / f"{job}.img", data(1)))
        backy.damage(job, revision, 0)
        backy.run("verify", job)
    both, one = (
        [line.split() for line in backy.quiet("reports", *job).out.splitlines()]
        for job in ([], ["vm1"])
    )
    assert {line[0] for line in both[1:]} == {"vm1", "show"}
    assert one == [line for line in both if line[0] != "show"]
    # A job that is called like a command can be listed, too.
    assert backy.quiet("reports", "list", "show").out.count("\nshow ") == 1
    for words in (["vm1", "--json"], ["--json", "vm1"], ["list", "vm1", "--json"]):
        (report,) = backy.quiet("reports", *words).record()["reports"]
        assert report["job"] == "vm1"
